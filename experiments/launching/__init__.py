"""Many runs at once, and runs on other machines."""

"""What recall is measured on: sets of conversations whose questions know the records that answer them."""

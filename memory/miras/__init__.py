"""Miras: neural memories that minimise other losses than Titans, under other retentions."""

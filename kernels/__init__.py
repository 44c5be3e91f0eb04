"""Inner loops of the long-context core: each op beside its plain torch reference."""

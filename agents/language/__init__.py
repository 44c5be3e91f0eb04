"""What language agents share: prompts, texts that are not trusted, and the packer of a context budget."""

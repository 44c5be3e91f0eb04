"""Limits for the files of a model folder, which may be anybody's: templates, tokenizers, configs, weights."""

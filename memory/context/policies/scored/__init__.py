"""Policies that keep the tokens with the highest scores, each in a module of its own."""

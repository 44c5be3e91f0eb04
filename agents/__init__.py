"""Policies and learners: things that act, holding any memory."""

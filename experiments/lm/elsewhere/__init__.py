"""Attention elsewhere on a cluster of Ray, and a measurement of its speed."""

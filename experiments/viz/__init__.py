"""Visualization of memory: traces, pages and figures."""

"""Single-agent policies with any memory, their samplers and their learners."""

"""Multi-agent policies with graph attention, and trust-region learners for teams."""

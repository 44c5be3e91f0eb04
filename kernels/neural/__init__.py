"""Neural memory: the test-time learner of Titans and Miras."""

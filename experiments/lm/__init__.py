"""Language models: long-context measurements, conversations, KAgentBench and tuning records."""

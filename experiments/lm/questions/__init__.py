"""Questions about long texts that all context policies answer."""

from scrubjay.experiments.lm.questions.measurement import run_questions

__all__ = ["run_questions"]

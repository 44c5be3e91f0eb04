"""Scoreboard: Scrubjay's memories and sb3-contrib's RecurrentPPO on outside tasks, with the same frames.

`python -P -m scrubjay.experiments.scoreboard --out runs/scoreboard` trains and evaluates all contenders on
all tasks, and writes a report. `protocol` has the development tasks, test tasks and seeds of the default
settings.
"""

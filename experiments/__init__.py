"""The `scrubjay` command: recipes, runs, evaluation, plots and benchmarks."""

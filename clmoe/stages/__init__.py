"""The stages of a run, and the commands over them: the only place that joins runs with models."""

"""Answers: features, generation, per-question results."""

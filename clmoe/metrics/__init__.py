"""Accuracy of one answer, metrics of a whole sequence of tasks, and their intervals."""

"""Continual-learning methods beside the mixture: penalties, replay, distillation, prototypes."""

"""What a training says of itself when it is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingLog:
    """What a training did.

    Attributes:
        steps: Optimizer steps in all.
        resumed_at: The step it went on from; 0 for a training in one go.
        losses: Mean loss per supervised token, one a step.
        supervised: Supervised tokens of one epoch.
        trainable: Trained parameters.
        micro_batch: Samples at a time in each process.
        samples_per_second: Over the steps done in this process; None when there were none.
    """

    steps: int
    resumed_at: int
    losses: list[float]
    supervised: int
    trainable: int
    micro_batch: int
    samples_per_second: float | None

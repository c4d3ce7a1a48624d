"""The training loop: one screen, over Accelerate.

Per global batch: micro-batches forward and backward, loss divided by the supervised tokens of the
whole global batch (so accumulation equals a larger batch), clip, step, schedule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clmoe.data.batches import Batch, collate, training_order
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.errors import ClmoeError
from clmoe.events import Progress, emit
from clmoe.recipe.schema import Train
from clmoe.training.answer_loss import AnswerLoss, supervised_tokens
from clmoe.training.checkpoint import (
    TrainingState,
    load_checkpoint,
    save_checkpoint,
    trainable_tensors,
)
from clmoe.training.optimizer import make_optimizer
from clmoe.training.seeds import generator, stream


@dataclass(frozen=True)
class TrainingLog:
    """What a training did.

    Attributes:
        steps: Optimizer steps in all.
        resumed_at: The step it went on from; 0 for a training in one go.
        losses: Mean loss per supervised token, one a step.
        supervised: Supervised tokens of one epoch.
        trainable: Trained parameters.
        samples_per_second: Over the steps done in this process; None when there were none.
    """

    steps: int
    resumed_at: int
    losses: list[float]
    supervised: int
    trainable: int
    samples_per_second: float | None


def train_adapter(
    model: nn.Module,
    *,
    samples: Sequence[Encoded],
    inputs: Callable[[Batch], dict[str, Tensor]],
    settings: Train,
    pad: int,
    label: str,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Train what requires gradients in ``model`` on encoded conversations.

    Args:
        model: A PEFT model on its device.
        samples: The encoded conversations of the task.
        inputs: Turns a padded batch into what the inner model takes (embeddings with pictures).
        settings: The recipe's ``train`` section.
        pad: Id of the padding token.
        label: What progress and errors call this training; also names its random streams.
        checkpoint: Where to keep the state; an existing one is continued.

    Raises:
        ClmoeError: There is nothing to train on, or the loss stopped being finite.
    """
    if not samples:
        raise ClmoeError(f"{label}: there is nothing to train on")
    accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    batches_per_epoch = math.ceil(len(samples) / settings.batch_size)
    steps = math.ceil(batches_per_epoch * settings.epochs)
    parameters = trainable_tensors(model)
    optimizer, schedule = make_optimizer(parameters.values(), settings=settings, steps=steps)
    loss_of = accelerator.prepare(AnswerLoss(model))
    torch.manual_seed(stream(settings.seed, "dropout", label))
    state = TrainingState(step=0, losses=[])
    if checkpoint is not None:
        restored = load_checkpoint(checkpoint, model=model, optimizer=optimizer, schedule=schedule)
        state = restored or state
    resumed_at, started = state.step, time.monotonic()
    micro = settings.micro_batch or settings.batch_size
    model.train()
    order: list[list[int]] = []
    for step in range(state.step, steps):
        epoch, number = divmod(step, batches_per_epoch)
        if number == 0 or not order:
            order = training_order(
                len(samples),
                batch_size=settings.batch_size,
                generator=generator(settings.seed, "order", label, epoch),
            )
        rows = order[number]
        parts = [
            collate([samples[r] for r in part], rows=part, pad=pad, left=False)
            for part in (rows[i : i + micro] for i in range(0, len(rows), micro))
        ]
        tokens = sum(supervised_tokens(part) for part in parts)
        total = 0.0
        for part in parts:
            loss = loss_of(inputs(part), part.labels.to(accelerator.device)) / tokens
            total += float(loss.detach())
            accelerator.backward(loss)
        if not math.isfinite(total):
            raise ClmoeError(
                f"{label}: the loss is {total} at step {step + 1} of {steps}; nothing was saved",
                hint=f"lower train.lr (now {settings.lr:g}) or train.clip (now {settings.clip:g})",
            )
        if settings.clip > 0:
            accelerator.clip_grad_norm_(parameters.values(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        state.step = step + 1
        state.losses.append(total)
        emit(Progress(label=f"train {label}", done=step + 1, total=steps, note=f"loss {total:.3f}"))
        due = settings.checkpoint_every and state.step % settings.checkpoint_every == 0
        if checkpoint is not None and due and state.step < steps:
            save_checkpoint(
                checkpoint, state=state, model=model, optimizer=optimizer, schedule=schedule
            )
    model.eval()
    seconds, done = time.monotonic() - started, len(samples) * settings.epochs
    share = (steps - resumed_at) / steps
    return TrainingLog(
        steps=steps,
        resumed_at=resumed_at,
        losses=state.losses,
        supervised=sum(sum(label != IGNORE for label in s.labels) for s in samples),
        trainable=sum(p.numel() for p in parameters.values()),
        samples_per_second=done * share / seconds if share else None,
    )

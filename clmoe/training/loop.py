"""The training loop: one screen, over Accelerate.

Per global batch: each process takes its share in micro-batches, forward and backward; the loss is
divided by the supervised tokens of the whole global batch (so accumulation and further processes
equal a larger batch); clip, step, schedule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from clmoe.baselines.base import WITH_SHARDS, Strategy, StrategyLoss, part_of
from clmoe.data.batches import Batch, collate, training_order, with_replay
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.errors import ClmoeError
from clmoe.events import Progress, emit
from clmoe.parallel.engine import can_resume, make_engine, micro_batch, prepare, refuse_shards
from clmoe.parallel.world import world
from clmoe.recipe.schema import Strategy as Settings
from clmoe.recipe.schema import Train
from clmoe.training.checkpoint import Checkpoint, TrainingState, trainable_tensors
from clmoe.training.fitting import check_undivided, micro_batch_size, without_labels
from clmoe.training.optimizer import make_optimizer
from clmoe.training.seeds import generator, stream
from clmoe.training.training_log import TrainingLog


def train_adapter(
    model: nn.Module,
    *,
    samples: Sequence[Encoded],
    inputs: Callable[[Batch], dict[str, Tensor]],
    settings: Train,
    pad: int,
    label: str,
    strategy: Strategy | None = None,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Train what requires gradients in ``model`` on encoded conversations.

    Every process of `clmoe.parallel.world` calls it with the same arguments.

    Args:
        model: A PEFT model on its device.
        samples: The encoded conversations of the task, and after them those of the memory.
        inputs: Turns a padded batch into what the inner model takes (embeddings with pictures).
        settings: The recipe's ``train`` section.
        pad: Id of the padding token.
        label: What progress and errors call this training; also names its random streams.
        strategy: The continual-learning method, ready for the task; None: plain tuning.
        checkpoint: Where to keep the state; an existing one is continued.

    Raises:
        ClmoeError: There is nothing to train on, or the loss stopped being finite.
        UsageError: The method's steps cannot be divided, and would be; or it needs whole
            parameters, and they would be sharded.
    """
    ours, method = world(), strategy or Strategy(Settings())
    own = len(samples) - len(method.memory)  # the samples from here on are of the memory
    if own <= 0:
        raise ClmoeError(f"{label}: there is nothing to train on")
    if method.whole_steps:
        check_undivided(settings, kind=method.settings.kind)
    engine = make_engine(next(model.parameters()).device)
    if method.settings.kind not in WITH_SHARDS:
        refuse_shards(engine, what=f"strategy.kind={method.settings.kind}")
    lengths = [len(sample.input_ids) for sample in samples]
    supervised = [sum(label != IGNORE for label in sample.labels[1:]) for sample in samples]
    batches_per_epoch = math.ceil(own / settings.batch_size)
    steps = math.ceil(batches_per_epoch * settings.epochs)
    parameters = trainable_tensors(model)
    trainable = sum(p.numel() for p in parameters.values())
    loss_of = StrategyLoss(model, method)

    def loss_at(chosen: Sequence[int], rows: Sequence[int]) -> Tensor:
        # A process that has no row left shows the first again, unsupervised.
        shown = chosen or rows[:1]
        batch = collate([samples[r] for r in shown], rows=shown, pad=pad, left=False)
        part = part_of(batch if chosen else without_labels(batch), rows=rows,
                       supervised=supervised, first_replayed=own)  # fmt: skip
        loss: Tensor = loss_of(inputs(batch), part.batch.labels.to(engine.device), part)
        return loss

    model.train()
    one = collate(samples[:1], rows=[0], pad=pad, left=False)
    loss_of.check(inputs(one), one.labels.to(engine.device))
    micro = micro_batch_size(
        lambda rows: loss_at(rows, rows), lengths=lengths, parameters=list(parameters.values()),
        step=settings.batch_size * (2 if method.memory else 1), settings=settings, label=label,
        whole=method.whole_steps,
    )  # fmt: skip
    method.restore(method.moving())  # as if nothing had been tried
    optimizer, schedule = make_optimizer(parameters.values(), settings=settings, steps=steps)
    loss_of, optimizer = prepare(engine, loss_of, optimizer, micro_batch=micro, clip=settings.clip)
    parameters = trainable_tensors(model)  # sharding puts others in their place
    method.prepared(parameters)
    kept = checkpoint if can_resume(engine) else None
    saved = Checkpoint(kept, model=model, optimizer=optimizer, schedule=schedule, strategy=method)
    state = saved.load() or TrainingState(step=0, losses=[])
    resumed_at, started = state.step, time.monotonic()
    order: list[list[int]] = []
    for step in range(state.step, steps):
        epoch, number = divmod(step, batches_per_epoch)
        if number == 0 or not order:
            order = training_order(
                lengths[:own], batch_size=settings.batch_size, by_length=settings.group_by_length,
                generator=generator(settings.seed, "order", label, epoch),
            )  # fmt: skip
        rows = with_replay(order[number], first=own, samples=len(samples),
                           generator=generator(settings.seed, "replay", label, step))  # fmt: skip
        torch.manual_seed(stream(settings.seed, "dropout", label, step, ours.rank))
        # As many micro-batches in every process: all of them meet in the last backward pass.
        each = math.ceil(len(rows) / ours.size)
        mine, count = rows[ours.rank * each :][:each], math.ceil(each / micro)
        total = 0.0
        for turn in range(count):
            last = turn == count - 1
            with micro_batch(engine, loss_of, last=last):
                loss = loss_at(mine[turn * micro : (turn + 1) * micro], rows)
                penalty = method.penalty() if last else None
                if penalty is not None:
                    loss = loss + penalty / ours.size
                engine.backward(loss * ours.size)  # gradients are averaged over processes
                total += float(loss.detach())
        mean = sum(ours.gather(total))
        if not math.isfinite(mean):
            raise ClmoeError(
                f"{label}: the loss is {mean} at step {step + 1} of {steps}; nothing was saved",
                hint=f"lower train.lr (now {settings.lr:g}) or train.clip (now {settings.clip:g})",
            )
        if settings.clip > 0:
            engine.clip_grad_norm_(parameters.values(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()
        state.step = step + 1
        state.losses.append(mean)
        emit(Progress(label=f"train {label}", done=step + 1, total=steps, note=f"loss {mean:.3f}"))
        due = settings.checkpoint_every and state.step % settings.checkpoint_every == 0
        if due and state.step < steps:
            saved.save(state)
    model.eval()
    seconds, done = time.monotonic() - started, own * settings.epochs
    share = (steps - resumed_at) / steps
    return TrainingLog(
        steps=steps,
        resumed_at=resumed_at,
        losses=state.losses,
        supervised=sum(supervised[:own]),
        trainable=trainable,
        micro_batch=micro,
        samples_per_second=done * share / seconds if share else None,
    )

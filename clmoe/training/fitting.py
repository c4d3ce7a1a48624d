"""How many samples fit at a time, and what to say when the device runs out of memory.

`train.micro_batch: auto` is found by trial before the first step: forward and backward of the
longest samples, with the optimizer's memory set aside, halving until it fits. The global batch
stays, so the choice changes speed and never a result beyond rounding; a method whose steps cannot
be divided takes each as a whole, or not at all.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE
from clmoe.errors import MemoryExhaustedError, UsageError
from clmoe.events import Note, emit
from clmoe.parallel.world import world
from clmoe.recipe.schema import Train

_ADAMW_STATES = 2  # the two moments, each as large as the parameter
_CPU_SAYS = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError | MemoryExhaustedError) or (
        isinstance(error, RuntimeError) and _CPU_SAYS in str(error)
    )


def check_undivided(settings: Train, *, kind: str) -> None:
    """Refuse to divide the steps of a method that compares all samples of a step.

    A step is of ``2 * train.batch_size`` samples, half of them from memory; that of the first task,
    which has no memory yet, is judged like the others.

    Args:
        settings: The recipe's ``train`` section.
        kind: The method's ``strategy.kind``.

    Raises:
        UsageError: A step would be divided among processes or into micro-batches.
    """
    micro, step = settings.micro_batch, 2 * settings.batch_size
    because = f"strategy.kind={kind} compares all samples of a step with each other"
    if world().size > 1:
        raise UsageError(
            f"{because}, so its steps cannot be divided among {world().size} processes",
            hint="train in one process",
        )
    if isinstance(micro, int) and micro < step:
        raise UsageError(
            f"{because}, so a step of {step} samples (train.batch_size, and as many from memory) "
            f"cannot be taken {micro} at a time",
            hint=f"set train.micro_batch=null, or train.batch_size to at most {micro // 2}"
            if micro > 1
            else "set train.micro_batch=null",
        )


def micro_batch_size(
    trial: Callable[[list[int]], Tensor],
    *,
    lengths: Sequence[int],
    step: int,
    parameters: Sequence[Tensor],
    settings: Train,
    label: str,
    whole: bool = False,
) -> int:
    """Return the samples that each process takes at a time.

    Args:
        trial: The loss of samples, by their positions, as the training computes it.
        lengths: Tokens of every sample.
        step: Samples of a whole step, over all processes.
        parameters: What is trained.
        settings: The recipe's ``train`` section.
        label: What the note calls this training.
        whole: Whether a step cannot be divided.

    Raises:
        MemoryExhaustedError: Not even a single sample fits, or not the whole step.
    """
    # A small memory is drawn from with repetition: a step may have more samples than there are.
    share = step if whole else -(-min(step, len(lengths)) // world().size)
    if settings.micro_batch != "auto":
        return settings.micro_batch or share
    longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    micro = share
    while not _fits(lambda: trial(longest[:micro]), parameters):  # noqa: B023
        if whole:
            raise MemoryExhaustedError(f"a whole step of {share} samples does not fit")
        if micro == 1:
            raise MemoryExhaustedError("a single sample does not fit")
        micro = -(-micro // 2)
    micro = min(world().gather(micro))
    emit(Note(f"{label}: {micro} samples at a time fit (train.micro_batch=auto)"))
    return micro


def without_labels(batch: Batch) -> Batch:
    """The batch with nothing supervised."""
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE))


def _fits(trial: Callable[[], Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether forward and backward succeed with the optimizer's memory set aside."""
    aside: list[Tensor] = []
    try:
        aside += [torch.empty_like(p) for p in parameters for _ in range(_ADAMW_STATES)]
        torch.autograd.backward(trial())
        fits = True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    for parameter in parameters:
        parameter.grad = None
    del aside
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits

"""How many samples fit at a time, and what to say when the device runs out of memory.

`train.micro_batch: auto` is found by trial before the first step: forward and backward of the
longest samples, with the optimizer's memory set aside, halving until it fits. The global batch
stays, so the choice changes speed and never a result beyond rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE
from clmoe.errors import MemoryExhaustedError
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


def micro_batch_size(
    trial: Callable[[list[int]], Tensor],
    *,
    lengths: Sequence[int],
    step: int,
    parameters: Sequence[Tensor],
    settings: Train,
    label: str,
) -> int:
    """Return the samples that each process takes at a time.

    Args:
        trial: The loss of samples, by their positions, as the training computes it.
        lengths: Tokens of every sample.
        step: Samples of a whole step, over all processes.
        parameters: What is trained.
        settings: The recipe's ``train`` section.
        label: What the note calls this training.

    Raises:
        MemoryExhaustedError: Not even a single sample fits.
    """
    share = -(-min(step, len(lengths)) // world().size)
    if settings.micro_batch != "auto":
        return settings.micro_batch or share
    longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    micro = share
    while not _fits(lambda: trial(longest[:micro]), parameters):  # noqa: B023
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

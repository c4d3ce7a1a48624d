"""Measuring contenders side by side: time, memory and matrix operations, and what these say.

A contender may have several phases (forward; forward and backward); each is timed on its own turn.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clmoe.bench.machine import count_flops, matmul
from clmoe.bench.memory import peak_bytes
from clmoe.bench.timing import Spread, Work, clock_of, interleave, ratios, spread
from clmoe.errors import MemoryExhaustedError

YARDSTICK = "matrix product"


@dataclass(frozen=True)
class Figures:
    """What was measured of one phase of one contender.

    Attributes:
        seconds: One run.
        ratio: Its time over the reference's time in the same round.
        rate: Samples (or tokens, or questions) a second, at the median.
        flops: Operations of its matrix products.
        share: Of the device's measured rate of matrix products, at the medians.
        peak: Bytes of memory beyond what was there before.
    """

    seconds: Spread
    ratio: Spread
    rate: float
    flops: int
    share: float
    peak: int

    def data(self) -> dict[str, Any]:
        """The figures as plain data, times in milliseconds."""
        return {
            "ms": self.seconds.scaled(1e3),
            "ratio": self.ratio.scaled(1.0),
            "per_second": self.rate,
            "flops": self.flops,
            "matmul_share": self.share,
            "peak_bytes": self.peak,
        }


@dataclass(frozen=True)
class Measured:
    """What was measured of all contenders.

    Attributes:
        figures: By contender, then by phase.
        matmul: Operations a second of a large matrix product, at the median.
        rounds: How many there were.
        left_out: Contenders that the device's memory is too small for.
    """

    figures: dict[str, dict[str, Figures]]
    matmul: float
    rounds: int
    left_out: tuple[str, ...]


def measure(
    contenders: Mapping[str, Mapping[str, Work]],
    *,
    reference: str,
    needed: str,
    samples: int,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    seconds: float,
    label: str,
) -> Measured:
    """Measure contenders side by side.

    Args:
        contenders: By name their phases, the same for all.
        reference: Whose time is 1.
        needed: Who else must fit in the device's memory; any other one is left out if it does not.
        samples: Samples (tokens, questions) of one run.
        device: Where they run.
        dtype: In which the device's matrix products are measured.
        repeats: At most so many rounds.
        seconds: What the rounds may take together.
        label: What progress calls it.

    Raises:
        MemoryExhaustedError: The device has too little memory for the reference, or for whom is
            needed.
    """
    yardstick, operations = matmul(device=device, dtype=dtype)
    yardstick.run()
    once = {name: _once(works, device=device) for name, works in contenders.items()}
    left_out = tuple(name for name, seen in once.items() if seen is None)
    if {reference, needed} & set(left_out):
        raise _too_large(device)
    contenders = {name: works for name, works in contenders.items() if name not in left_out}
    try:
        timed = interleave(
            {
                YARDSTICK: yardstick,
                **{
                    f"{name}\0{phase}": work
                    for name, works in contenders.items()
                    for phase, work in works.items()
                },
            },
            repeats=repeats, seconds=seconds, clock=clock_of(device), label=label, warmups=0,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise _too_large(device) from error
    rate = operations / spread(timed[YARDSTICK]).median
    return Measured(
        {
            name: {
                phase: compare(
                    timed[f"{name}\0{phase}"],
                    reference=timed[f"{reference}\0{phase}"],
                    samples=samples,
                    flops=flops,
                    matmul_rate=rate,
                    peak=peak,
                )
                for phase, (flops, peak) in seen.items()
            }
            for name, seen in once.items()
            if seen is not None
        },
        matmul=rate,
        rounds=len(timed[YARDSTICK]),
        left_out=left_out,
    )


def _once(works: Mapping[str, Work], *, device: torch.device) -> dict[str, tuple[int, int]] | None:
    """Operations and peak memory of each phase, or None where the memory is too small.

    Running it here also warms it up: kernels are loaded, optimizer states are made.
    """
    seen = {}
    try:
        for phase, work in works.items():
            work.reset()
            flops = count_flops(work.run)
            work.reset()
            seen[phase] = flops, peak_bytes(work.run, device=device)
            work.reset()
    except torch.OutOfMemoryError:
        seen = {}
    if len(seen) == len(works):
        return seen
    for work in works.values():
        work.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def compare(
    times: Sequence[float],
    *,
    reference: Sequence[float],
    samples: int,
    flops: int,
    matmul_rate: float,
    peak: int,
) -> Figures:
    """Figures from the times of one phase, in seconds, and of the reference in the same rounds."""
    typical = spread(times)
    return Figures(
        seconds=typical,
        ratio=ratios(times, reference=reference),
        rate=samples / typical.median,
        flops=flops,
        share=flops / typical.median / matmul_rate,
        peak=peak,
    )


def _too_large(device: torch.device) -> MemoryExhaustedError:
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return MemoryExhaustedError(
        f"the device ran out of memory (peak {peak:.1f} GiB)",
        hint="a smaller --batch or --tokens, --gradient-checkpointing, or fewer --layers",
    )

"""The mixture costs what a plain LoRA of the same rank costs, forward and backward together."""

from __future__ import annotations

import time

import pytest
import torch

from clmoe.bench.contenders import LORA, OURS, Mixture
from clmoe.bench.layer import BOTH, host, parts, phases
from clmoe.bench.timing import interleave, ratios

LIMIT = 1.10


@pytest.mark.slow
@pytest.mark.parametrize("routers", ["per-block", "per-linear"])
def test_within_ten_percent_of_plain_lora(routers: str) -> None:
    """Processor time, which other processes on the machine do not stretch."""
    base = host(1024, 2752, device=torch.device("cpu"), dtype=torch.float32)
    found = parts(base, Mixture(rank=64, experts=8, routers=routers), "mlp")
    works = {name: phases(found[name], tokens=256, width=1024)[BOTH] for name in (LORA, OURS)}
    medians = []
    for _ in range(3):  # a busy machine is given another try
        times = interleave(works, repeats=11, seconds=1e9, clock=time.process_time, label="speed")
        medians.append(ratios(times[OURS], reference=times[LORA]).median)
        if medians[-1] < LIMIT:
            return
    raise AssertionError(f"median of the paired ratios to plain LoRA: {medians}, limit {LIMIT}")

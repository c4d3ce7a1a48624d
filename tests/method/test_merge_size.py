"""Two adapters of 100 M parameters merge quickly and without lying in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LAYERS, RANK, WIDE, TALL = 34, 64, 4096, 11008  # the MLPs of a 7B decoder: 98.6 M in 34 blocks

PROGRAM = '''
import json, resource, sys, time
from pathlib import Path
import torch
from clmoe.method.expert_roles import ExpertRoles
from clmoe.method.momentum import merge_adapters


def waiting():
    """Seconds this program was ready but another one had the core (Linux; elsewhere 0)."""
    path = Path("/proc/self/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


root, routers = Path(sys.argv[1]), json.loads(sys.argv[2])
roles = ExpertRoles(("specific", "shared") + ("none",) * 6, (0.3,) + (0.7,) * 7)
torch.set_num_threads(1)  # the merge is bound by memory; a second thread gains nothing
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, waited = time.perf_counter(), waiting()
report = merge_adapters(
    root / "old", current_dir=root / "new", out_dir=root / "out",
    roles={name: roles for name in routers}, gamma=0.7,
)
seconds = time.perf_counter() - start - (waiting() - waited)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "seconds": seconds, "mib": (peak - before) / 1024,
    "differ": report.factors.differ_from_current, "total": report.factors.total,
}))
'''


@pytest.mark.slow
def test_two_adapters_of_100_million_parameters(tmp_path: Path) -> None:
    linears = {
        f"layers.{layer}.mlp.{name}": f"layers.{layer}.mlp.gate"
        for layer in range(LAYERS)
        for name in ("gate", "up", "down")
    }
    config = {
        "peft_type": "CLMOE",
        "experts": 8,
        "r": RANK,
        "alpha": 128,
        "targets": "ffn",
        "routers": "per-block",
        "router_of": linears,
    }
    for seed, folder in enumerate((tmp_path / "old", tmp_path / "new")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for linear in linears:
            wide, tall = (TALL, WIDE) if linear.endswith("down") else (WIDE, TALL)
            stem = f"base_model.model.{linear}"
            tensors[f"{stem}.clmoe_A.weight"] = torch.rand(RANK, wide, generator=generator)
            tensors[f"{stem}.clmoe_B.weight"] = torch.rand(tall, RANK, generator=generator)
        for router in set(linears.values()):
            tensors[f"base_model.model.{router}.clmoe_router.weight"] = torch.ones(8, WIDE)
        count = sum(tensor.numel() for tensor in tensors.values())
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        del tensors
        (folder / "adapter_config.json").write_text(json.dumps(config))
    assert count > 98e6
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(sorted(set(linears.values())))],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = json.loads(output)
    result = 4 * count / 2**20
    assert found["differ"] == found["total"] == 2 * len(linears)
    assert found["seconds"] < 5, found
    assert found["mib"] < result + 1024, found

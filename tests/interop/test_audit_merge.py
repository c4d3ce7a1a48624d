"""The lambdas of real merges are found again; merges that did nothing, or something else, are told.

The released merge looks for prefixes that no key has and writes phi_t as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clmoe.interop.audit_merge import MergeAudit, audit_merge
from clmoe.interop.opened import open_adapter
from clmoe.method.expert_roles import single_expert_roles
from clmoe.method.momentum import merge_adapters
from clmoe.stages.audit import audit
from clmoe_cli.console import plain_json
from tests.interop.conftest import FIRST, SECOND, roles_for
from tests.interop.layouts import Experts, random_experts, write_released

Write = Callable[..., Path]


@pytest.fixture
def merge(ours: Write, tmp_path: Path) -> Callable[..., tuple[Path, Path, Path]]:
    """Merges two adapters as `clmoe merge` does."""

    def make(*, gamma: float = 0.7, dtype: torch.dtype = torch.float32, **options: Any):
        folders = []
        for name, seed in (("theta", 1), ("phi", 2)):
            folder = ours(name, seed)
            path = folder / "adapter_model.safetensors"
            save_file({n: t.to(dtype) for n, t in load_file(path).items()}, path)
            folders.append(folder)
        merge_adapters(
            folders[0],
            current_dir=folders[1],
            out_dir=tmp_path / "merged",
            roles=roles_for(gamma),
            gamma=gamma,
            **options,
        )
        return folders[0], folders[1], tmp_path / "merged"

    return make


def found_by(folders: tuple[Path, ...]) -> MergeAudit:
    previous, current, merged = (open_adapter(folder) for folder in folders)
    return audit_merge(previous, current=current, merged=merged)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-7), (torch.bfloat16, 3e-3)])
def test_the_lambdas_of_equation_10(merge: Any, dtype: torch.dtype, near: float) -> None:
    folders = merge(dtype=dtype)
    found = found_by(folders)
    assert list(found.experts) == [FIRST, SECOND]
    for router, roles in roles_for(0.7).items():
        for fit, weight in zip(found.experts[router], roles.lambdas, strict=True):
            assert fit.weight == pytest.approx(weight, abs=near)
            assert fit.explained
            assert fit.residual is not None
            assert fit.residual < near
    if dtype == torch.float32:
        assert {weight: len(fits) for weight, fits in found.weights.items()} == {0.3: 2, 0.7: 6}
        assert found.sentences() == [
            "one lambda explains each of 8 experts, and they are those of Eq 10 with gamma = 0.7"
        ]
    factors, routers = found.kinds
    assert (factors.tensors, factors.differ_from_current, factors.differ_from_previous) == (
        24, 24, 24
    )  # fmt: skip
    assert (routers.tensors, routers.differ_from_current, routers.differ_from_previous) == (2, 0, 2)


def test_the_fit_is_least_squares(ours: Write) -> None:
    folders = ours("a", 1), ours("b", 2), ours("c", 3)
    found = found_by(folders)
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    parts = []
    for held in tensors:  # expert 3 behind the second router: one linear
        start = f"base_model.model.{SECOND}.clmoe_"
        a, b = held[f"{start}A.weight"][6:], held[f"{start}B.weight"][:, 6:]
        parts.append(torch.cat([a.flatten(), b.flatten()]).double())
    d, m = parts[0] - parts[1], parts[2] - parts[1]
    weight = torch.linalg.lstsq(d[:, None], m[:, None]).solution.item()
    fit = found.experts[SECOND][3]
    assert fit.weight == pytest.approx(weight)
    assert fit.residual == pytest.approx(float((m - weight * d).norm() / d.norm()))
    assert not fit.explained


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
def test_other_gammas(merge: Any, gamma: float) -> None:
    found = found_by(merge(gamma=gamma))
    for router, roles in roles_for(gamma).items():
        weights = [fit.weight for fit in found.experts[router]]
        assert weights == pytest.approx(list(roles.lambdas), abs=1e-7)
    assert found.sentences()[0].endswith(f"those of Eq 10 with gamma = {gamma:g}")


@pytest.mark.parametrize(("rule", "weight"), [("keep", 0), ("momentum", 0.7), ("previous", 1)])
def test_the_lambda_of_the_routers(merge: Any, rule: str, weight: float) -> None:
    routers = found_by(merge(routers=rule)).kinds[1]
    assert routers.kind == "routers"
    assert routers.fit is not None
    assert routers.fit.weight == pytest.approx(weight, abs=1e-7)
    assert (routers.differ_from_previous == 0) == (rule == "previous")


def test_a_merge_of_products_is_explained_by_no_lambda(merge: Any) -> None:
    found = found_by(merge(space="product"))
    fits = [fit for group in found.experts.values() for fit in group]
    assert not any(fit.explained for fit in fits)
    assert min(fit.residual or 0.0 for fit in fits) > 0.1
    assert found.weights == {}
    assert found.sentences()[0].startswith("no lambda explains 8 of 8 experts")


def test_the_released_merge_is_phi(merge: Any) -> None:
    previous, current, merged = merge()
    shutil.rmtree(merged)
    shutil.copytree(current, merged)
    found = found_by((previous, current, merged))
    assert found.sentences() == [
        "this merged adapter equals phi_t: all 26 tensors are the same bit for bit, nothing was "
        "merged"
    ]
    assert [fit.weight for fit in found.experts[FIRST]] == [0.0] * 4
    assert (found.kinds[0].differ_from_current, found.kinds[0].differ_from_previous) == (0, 24)


def test_a_merge_that_is_theta(merge: Any) -> None:
    previous, current, merged = merge()
    shutil.rmtree(merged)
    shutil.copytree(previous, merged)
    assert (
        found_by((previous, current, merged))
        .sentences()[0]
        .startswith("this merged adapter equals theta_{t-1}: all 26 tensors")
    )


def test_only_the_experts_equal_phi(merge: Any) -> None:
    previous, current, merged = merge()
    old, new = (load_file(f / "adapter_model.safetensors") for f in (previous, current))
    mixed = {name: old[name] if "router" in name else new[name] for name in new}
    save_file(mixed, merged / "adapter_model.safetensors")
    assert found_by((previous, current, merged)).sentences() == [
        "the experts of this merged adapter equal phi_t: all 24 A_i and B_i are the same bit for "
        "bit"
    ]


def test_equal_sources_leave_lambda_open(ours: Write) -> None:
    found = found_by((ours("a", 1), ours("b", 1), ours("c", 1)))
    assert all(fit.weight is None and fit.explained for fit in found.experts[FIRST])
    assert len(found.sentences()) == 2
    table = audit([ours("d", 1), ours("e", 1), ours("f", 1)]).tables[1]
    assert table.rows == [["any: theta_{t-1} equals phi_t", "8", "-"]]


def test_one_expert(ours: Write, tmp_path: Path) -> None:
    folders = []
    for name, seed in (("theta", 1), ("phi", 2)):
        folder = ours(name, seed, experts=1)
        path = folder / "adapter_model.safetensors"
        save_file({n: t for n, t in load_file(path).items() if "router" not in n}, path)
        folders.append(folder)
    merge_adapters(
        folders[0], current_dir=folders[1], out_dir=tmp_path / "merged",
        roles=single_expert_roles(gamma=0.8), gamma=0.8,
    )  # fmt: skip
    found = found_by((*folders, tmp_path / "merged"))
    ((fit,),) = found.experts.values()
    assert fit.weight == pytest.approx(0.8, abs=1e-7)


def released(tmp_path: Path, name: str, experts: Experts, layout: str) -> Path:
    return write_released(tmp_path / name, experts, layout)


@pytest.mark.parametrize("layout", ["official", "easycl"])
def test_foreign_merges(layout: str, tmp_path: Path) -> None:
    """The released no-op, and a merge by hand of one expert of one linear."""
    old, new = random_experts(1), random_experts(2)
    theta, phi = (released(tmp_path, n, e, layout) for n, e in (("theta", old), ("phi", new)))
    same = released(tmp_path, "same", new, layout)
    assert audit([theta, phi, same]).notes[0].startswith("this merged adapter equals phi_t: all ")
    path, expert = "1.mlp.up_proj", 2
    for one, two in ((old.a, new.a), (old.b, new.b)):
        two[path][expert] = 0.25 * one[path][expert] + 0.75 * two[path][expert]
    merged = released(tmp_path, "merged", new, layout)
    result = audit([theta, phi, merged])
    router = f"model.language_model.layers.{path}"
    fits = result.data["merge"]["experts"]
    assert fits[router][expert]["weight"] == pytest.approx(0.25, abs=1e-6)
    assert fits[router][0]["weight"] == 0.0
    kinds = {kind["kind"]: kind for kind in result.data["merge"]["kinds"]}
    assert kinds["A_i and B_i"]["differ_from_current"] == 2
    assert (
        kinds["routers"]["differ_from_current"]
        == kinds["trained whole"]["differ_from_current"]
        == 0
    )


def test_the_merges_of_a_run(finished: Path) -> None:
    run = finished / "small"
    steps = ["01-recognition", "02-location", "03-count"]
    for before, now in zip(steps, steps[1:], strict=False):
        three = [run / "merge" / before, run / "train" / now, run / "merge" / now]
        result = audit([folder / "adapter" for folder in three])
        assert result.notes == (
            "one lambda explains each of 32 experts, and they are those of Eq 10 with gamma = 0.7",
        )
        weights = [float(row[0]) for row in result.tables[1].rows]
        assert set(weights) <= {0.3, 0.7}


def test_tables_and_data(merge: Any) -> None:
    result = audit(list(merge()))
    counts, weights, experts = result.tables
    assert counts.rows[0][:5] == ["A_i and B_i", "24", "24", "24", "-"]
    assert counts.rows[1][:5] == ["routers", "2", "0", "2", "0.0000"]
    assert [row[:2] for row in weights.rows] == [["0.3000", "2"], ["0.7000", "6"]]
    assert experts.rows[0][:5] == [FIRST, "0.7000", "0.3000", "0.7000", "0.7000"]
    assert json.loads(json.dumps(plain_json(result.data)))["merge"]["experts"][FIRST][1][
        "weight"
    ] == pytest.approx(0.3)


def test_many_routers_are_cut_in_the_table_alone(tmp_path: Path) -> None:
    folders = [released(tmp_path, name, random_experts(i), "coin") for i, name in enumerate("abc")]
    result = audit(folders)
    assert len(result.tables[2].rows) == 12
    assert len(result.data["merge"]["experts"]) == 14
    assert result.notes[-1] == "the lambdas of 2 more routers are in the output of --json"

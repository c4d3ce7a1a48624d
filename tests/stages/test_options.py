"""Every option of an open point changes what it says, through the whole sequence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clmoe.data.batches import collate
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline
from clmoe.stages.route import selected_tokens
from tests.conftest import SMALL

TASKS = ["data.tasks=recognition,location", "data.train_per_task=32", "data.test_per_task=8"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the default run over two tasks; tests add runs that share its store."""
    runs = tmp_path_factory.mktemp("two") / "runs"
    build(runs, "default")
    return runs


def build(runs: Path, name: str, *overrides: str) -> Run:
    pipeline.run(
        runs,
        recipe="shapes",
        overrides=[*SMALL, *TASKS, *overrides],
        name=name,
        dry_run=False,
        keep_going=False,
    )
    return Run.open(runs, name)


def theta(run: Run) -> dict[str, torch.Tensor]:
    folder = run.output(Node("merge", "location"), "adapter")
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "override",
    [
        "adapter.targets=all-linear",
        "adapter.routers=per-linear",
        "adapter.router_start=fresh",
        "adapter.dropout=0.2",
        "merge.space=product",
        "merge.routers=momentum",
        "merge.routers=previous",
        "route.scope=global",
        "route.tokens=question",
        "route.tokens=answer",
        "route.tokens=all",
        "base.projector=trained",
        "base.projector=merged",
        "data.turns=image",
        "protocol.order=reverse",
    ],
)
def test_option_changes_the_learned_adapter(two: Path, override: str) -> None:
    run = build(two, override.replace("=", "-").replace(".", "-"), override)
    assert all(state.status == "fresh" for state in run.states())
    if override.startswith("route.tokens") or override == "route.scope=global":
        weights = [
            load_file(r.output(Node("route", "location"), "router") / "task_router.safetensors")
            for r in (Run.open(two, "default"), run)
        ]
        assert any(not weights[0][name].equal(weights[1][name]) for name in weights[0])
        return
    if override == "protocol.order=reverse":
        assert run.tasks == ("location", "recognition")
        return
    default, other = theta(Run.open(two, "default")), theta(run)
    assert default.keys() != other.keys() or any(
        not default[name].equal(other[name]) for name in default
    )
    if "projector" in override:
        assert any("multi_modal_projector" in name for name in other)


@pytest.mark.parametrize("kind", ["kmeans", "lda"])
@pytest.mark.parametrize("feature", ["question-last", "embedding-mean"])
def test_task_index_kinds_and_features(two: Path, kind: str, feature: str) -> None:
    run = build(two, f"{kind}-{feature}", f"index.kind={kind}", f"index.feature={feature}")
    report = json.loads((run.path / "report" / "report.json").read_text())
    assert [sum(row) for row in report["identification"]["confusion"]] == [8, 8]
    if feature == "embedding-mean":  # which tells even these few questions apart
        assert report["identification"]["overall"] > 50
    assert run.manifest(Node("index", "location")).summary["kind"] == kind
    assert run.manifest(Node("index", "location")).summary["feature"] == feature


@pytest.mark.parametrize("override", ["train.gradient_checkpointing=true", "train.micro_batch=5"])
def test_speed_options_change_no_fingerprint(two: Path, override: str) -> None:
    result = pipeline.run(
        two,
        recipe="shapes",
        overrides=[*SMALL, *TASKS, override],
        name="speed",
        dry_run=False,
        keep_going=False,
    )
    assert {o.status for o in result.outcomes if o.node_label != "report"} == {"skipped"}


def test_checkpointing_gives_the_same_adapter(two: Path, tmp_path: Path) -> None:
    run = build(tmp_path / "runs", "checkpointing", "train.gradient_checkpointing=true")
    for name, tensor in theta(Run.open(two, "default")).items():
        torch.testing.assert_close(theta(run)[name], tensor, rtol=1e-4, atol=1e-6)


def test_all_tasks_fill_the_upper_triangle(two: Path) -> None:
    pipeline.evaluate(
        two,
        run="default",
        after="recognition",
        tasks="all",
        report="all",
        oracle_task=None,
        overrides=[],
        yes=False,
    )
    result = pipeline.report(two, run="default", kind="all", overrides=[])
    fwt = result.data["metrics"]["FWT"]
    cells = {(c["row"], c["task"]): c["percent"] for c in result.data["cells"]}
    assert fwt["value"] == pytest.approx(cells[1, "location"] - cells[0, "location"])


def test_tokens_of_equation_6() -> None:
    sample = Encoded(
        input_ids=[1, 2, 3, 4, 5],
        labels=[IGNORE, IGNORE, IGNORE, 4, 5],
        question=[False, True, True, False, False],
    )
    short = Encoded([1, 3], [IGNORE, 3], [False, False])
    batch = collate([sample, short], rows=[0, 1], pad=0, left=False)
    chosen = {
        tokens: selected_tokens(batch, tokens=tokens).int().tolist()
        for tokens in ("prompt", "question", "answer", "all")
    }
    assert chosen == {
        "prompt": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
        "question": [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]],
        "answer": [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]],
        "all": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    }

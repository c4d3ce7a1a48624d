"""Every continual-learning method through the whole sequence: state, sharing, kill and resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clmoe.data.memory import load_memory
from clmoe.errors import UsageError
from clmoe.evaluation.samples import read_samples
from clmoe.events import Event, Progress, subscribe
from clmoe.recipe.presets import PRESETS
from clmoe.recipe.schema import METHOD_NAMES
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline
from clmoe.stages.export import export
from tests.conftest import SMALL

STATEFUL = ["ewc", "mas", "er", "der", "derpp", "vs", "vqacl"]
TASKS = ["data.tasks=recognition,location", "data.train_per_task=32", "data.test_per_task=8"]
FEW = ["strategy.samples=4", "strategy.memory=20", "strategy.strength=5", "train.batch_size=8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods") / "runs"


def build(runs: Path, method: str, *overrides: str, name: str | None = None) -> Run:
    label = name or method
    pipeline.run(
        runs, recipe="shapes", name=label, dry_run=False, keep_going=False,
        overrides=[*SMALL, *TASKS, *FEW, f"method.name={method}", *overrides],
    )  # fmt: skip
    return Run.open(runs, label)


def adapter(run: Run, task: str) -> dict[str, torch.Tensor]:
    folder = run.output(Node("train", task), "adapter")
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("method", STATEFUL)
def test_killed_and_resumed_equals_uninterrupted(store: Path, tmp_path: Path, method: str) -> None:
    whole = build(store, method)

    def kill(event: Event) -> None:
        if isinstance(event, Progress) and event.label == "train location" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), subscribe(kill):
        build(tmp_path / "runs", method)
    again = build(tmp_path / "runs", method)
    assert again.manifest(Node("train", "location")).summary["resumed_at"] == 2
    assert same(adapter(whole, "location"), adapter(again, "location"))
    kept = [run.output(Node("train", "location"), "strategy") for run in (whole, again)]
    names = sorted(path.name for path in kept[0].iterdir())
    assert names
    for name in names:
        assert (kept[0] / name).read_bytes() == (kept[1] / name).read_bytes(), name


@pytest.mark.parametrize("method", STATEFUL)
def test_a_method_changes_the_second_task_and_reports_what_it_holds(
    store: Path, method: str
) -> None:
    run, plain = build(store, method), build(store, "vanilla")
    first = same(adapter(run, "recognition"), adapter(plain, "recognition"))
    assert first is (method != "vqacl")  # vqacl shows prototypes from the first task on
    assert not same(adapter(run, "location"), adapter(plain, "location"))
    manifest = run.manifest(Node("train", "location"))
    assert manifest.summary["extra_bytes"] == sum(manifest.summary["extra"].values()) > 0
    counts = manifest.counts
    replays = method not in ("ewc", "mas")
    assert (counts["conversations"], counts["replayed"]) == (32, 20 if replays else 0)
    own = plain.manifest(Node("train", "location"))
    assert own.summary["extra_bytes"] == 0
    assert own.counts["trainable_parameters"] == counts["trainable_parameters"]


@pytest.mark.parametrize("method", ["er", "der", "derpp", "vs", "vqacl"])
def test_the_memory_holds_equal_shares_after_every_task(store: Path, method: str) -> None:
    run = build(store, method)
    found = [
        Counter(
            e.task
            for e in load_memory(
                run.output(Node("train", task), "strategy") / "memory.jsonl"
            ).examples
        )
        for task in run.tasks
    ]
    assert found == [{"recognition": 20}, {"recognition": 10, "location": 10}]


def test_a_penalty_of_no_strength_is_plain_tuning(store: Path) -> None:
    run, plain = build(store, "ewc", "strategy.strength=0", name="weak"), build(store, "vanilla")
    assert same(adapter(run, "location"), adapter(plain, "location"))
    strong = build(store, "ewc", "strategy.strength=1e7", name="strong")
    start = adapter(plain, "recognition")

    def moved(end: dict[str, torch.Tensor]) -> float:
        return sum(float((end[name] - start[name]).norm()) for name in start)

    assert moved(adapter(strong, "location")) < 0.9 * moved(adapter(plain, "location"))


def test_one_adapter_a_task_is_chosen_by_the_task_found(store: Path) -> None:
    run = build(store, "pertask")
    alone = build(store, "pertask", "data.tasks=location", name="alone")
    assert same(adapter(run, "location"), adapter(alone, "location"))
    held = sum(tensor.nbytes for tensor in adapter(run, "location").values())
    found = [run.manifest(Node("train", task)).summary["extra_bytes"] for task in run.tasks]
    assert found == [0, held]
    assert "merge" not in {node.stage for node in run.nodes()}
    cell = Node("eval", "recognition", after="location")
    samples = read_samples(run.output(cell, "samples"))
    assert {s.predicted_task for s in samples} <= {"recognition", "location"}
    known = build(store, "pertask", "eval.oracle_task=true", name="known")
    oracle = read_samples(known.output(cell, "samples"))
    assert {s.predicted_task for s in oracle} == {"recognition"}
    # Where the task is found rightly, the answer is that of the task's own adapter.
    row = read_samples(run.output(Node("eval", "recognition", after="recognition"), "samples"))
    by_id = {s.question_id: s.prediction for s in row}
    assert all(by_id[s.question_id] == s.prediction for s in oracle)
    for sample, right in zip(samples, oracle, strict=True):
        if sample.predicted_task == "recognition":
            assert sample.prediction == right.prediction


def test_rmoe_and_moelora_share_all_but_evaluation(store: Path) -> None:
    rmoe, moelora = build(store, "rmoe"), build(store, "moelora")
    for task in rmoe.tasks:
        one, two = (run.state(Node("train", task)) for run in (rmoe, moelora))
        assert one.fingerprint == two.fingerprint
    cell = Node("eval", "location", after="location")
    assert rmoe.state(cell).fingerprint != moelora.state(cell).fingerprint


@pytest.mark.parametrize("method", ["pertask", "vqacl"])
def test_what_one_bundle_cannot_hold_is_not_exported(
    store: Path, tmp_path: Path, method: str
) -> None:
    build(store, method)
    with pytest.raises(UsageError, match=f"{method} answers with more than one adapter"):
        export(store, tmp_path / "bundle", run=method)
    assert not (tmp_path / "bundle").exists()


def test_noise_replaces_task_ids_and_softness_mixes_them(store: Path) -> None:
    plain = build(store, "rmoe")
    noisy = build(store, "rmoe", "index.noise=0.5", name="noisy")
    soft = build(store, "rmoe", "index.soft=10", name="soft")
    cell = Node("eval", "recognition", after="location")
    one, two, three = (read_samples(r.output(cell, "samples")) for r in (plain, noisy, soft))
    changed = sum(a.predicted_task != b.predicted_task for a, b in zip(one, two, strict=True))
    assert changed == 4  # half of eight questions, each to another task
    assert [s.predicted_task for s in three] == [s.predicted_task for s in one]
    assert plain.state(cell).fingerprint != soft.state(cell).fingerprint
    for run in (noisy, soft):
        theta = run.state(Node("train", "location")).fingerprint
        assert theta == plain.state(Node("train", "location")).fingerprint


def test_only_the_last_row_where_that_is_asked_for(store: Path) -> None:
    run = build(store, "vanilla", "eval.rows=last", name="last")
    cells = [node.label for node in run.nodes() if node.stage == "eval"]
    assert cells == ["eval/after-02-location/recognition", "eval/after-02-location/location"]
    report = json.loads((run.path / "report" / "report.json").read_text())
    assert report["metrics"]["AP"]["value"] is not None
    assert report["metrics"]["AF"]["value"] is None


def test_every_name_has_a_preset() -> None:
    assert tuple(PRESETS) == METHOD_NAMES

"""Freshness: the words of every reason, damage, sharing, going back, and rows that stay."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from clmoe.errors import ClmoeError, InputStageError, UsageError
from clmoe.runs import Node, Run, plan, remove, unreferenced
from clmoe.runs.reasons import show
from tests.runs.fake_stages import bring_up_to_date, make_run, not_fresh, perform

TRAIN = Node("train", "recognition")
WEIGHTS = "train/01-recognition/adapter/adapter_model.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = make_run(tmp_path / "runs")
    bring_up_to_date(made)
    return made


def text(run: Run, node: Node) -> str:
    return run.state(node).text


def test_never_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert text(run, Node("prepare")) == "missing: never run"
    with pytest.raises(InputStageError, match="nothing is prepared yet") as failure:
        run.nodes()
    assert failure.value.hint == "clmoe prepare --run one"
    run.make_current()
    perform(run, Node("prepare"))
    assert text(run, TRAIN) == "missing: never run"
    with pytest.raises(InputStageError, match="no cell of the matrix is evaluated") as failure:
        run.begin(Node("report"))
    assert failure.value.hint == "clmoe eval"
    with pytest.raises(InputStageError, match="train/01-recognition is missing: never run"):
        run.output(TRAIN, "adapter")


def test_a_changed_key_and_a_changed_input(run: Run) -> None:
    run.set_overrides(["train.lr=1e-4"])
    assert text(run, TRAIN) == "stale: train.lr 2e-4 -> 1e-4"
    assert text(run, Node("route", "recognition")) == "stale: train/01-recognition is stale"
    perform(run, TRAIN)
    assert text(run, Node("route", "recognition")) == "stale: train/01-recognition changed"
    with pytest.raises(InputStageError) as failure:
        run.output(Node("route", "recognition"), "router")
    assert str(failure.value) == "route/01-recognition is stale: train/01-recognition changed"
    assert failure.value.hint == "clmoe route --task recognition --run one"


def test_equal_outputs_leave_the_rest_fresh(run: Run) -> None:
    old = run.output(TRAIN, "adapter") / "adapter_model.safetensors"
    run.set_overrides(["train.lr=1e-4"])
    perform(run, TRAIN, content=old.read_text(encoding="utf-8"))
    stale = not_fresh(run)
    assert {label for label in stale if "01-recognition" in label} == set()
    assert stale["train/02-location"] == "stale: train.lr 2e-4 -> 1e-4"


def test_damage_by_size_and_by_content(run: Run) -> None:
    path = run.path / WEIGHTS
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-12], encoding="utf-8")
    assert text(run, TRAIN) == "damaged: adapter_model.safetensors is 12 bytes short"
    with pytest.raises(InputStageError, match="12 bytes short"):
        run.output(TRAIN, "adapter")
    path.write_text(whole + "x", encoding="utf-8")
    assert text(run, TRAIN) == "damaged: adapter_model.safetensors is 1 bytes too long"
    path.write_text(whole.swapcase() if whole != whole.swapcase() else "y" * len(whole), "utf-8")
    assert text(run, TRAIN) == "fresh"
    damaged = {state.node.label: state.text for state in run.verify() if state.status != "fresh"}
    assert damaged == {
        "train/01-recognition": "damaged: adapter_model.safetensors has changed since it was "
        "committed (another sha256)"
    }
    path.unlink()
    assert text(run, TRAIN) == "damaged: adapter_model.safetensors is missing"
    assert not run.adopt(TRAIN)
    perform(run, TRAIN)
    assert text(run, TRAIN) == "fresh"
    assert not_fresh(run) == {}
    assert [item.path.name[:9] for item in unreferenced(run.runs_dir)] == [".damaged-"]


def test_a_folder_that_is_gone(run: Run) -> None:
    directory = run.state(TRAIN).directory
    assert directory is not None
    shutil.rmtree(directory)
    assert text(run, TRAIN).startswith("damaged: its folder or its manifest.json is gone")
    assert text(run, Node("route", "recognition")) == "stale: train/01-recognition is damaged"
    assert bring_up_to_date(run) == ["train/01-recognition"]


def test_going_back_finds_the_old_version(run: Run) -> None:
    before = {state.node.label: state.fingerprint for state in run.states()}
    run.set_overrides(["merge.gamma=0.8"])
    ran = bring_up_to_date(run)
    assert ran[0] == "merge/02-location"
    assert run.set_overrides(["merge.gamma=0.7"]) == ["merge.gamma"]
    assert text(run, Node("merge", "location")) == (
        "stale: merge.gamma 0.8 -> 0.7; the store has this version"
    )
    assert bring_up_to_date(run) == []
    assert {state.node.label: state.fingerprint for state in run.states()} == before


def test_runs_share_the_store(run: Run) -> None:
    two = make_run(run.runs_dir, "method.name=mmoe", name="two")
    assert text(two, Node("prepare")) == "missing: never run here; the store has this version"
    ran = bring_up_to_date(two)
    assert ran == [node.label for node in two.nodes() if node.stage == "eval" and node.position] + [
        "report"
    ]
    three = make_run(run.runs_dir, "method.name=rmoe", name="three")
    trained = [label for label in bring_up_to_date(three) if label.startswith("train")]
    assert trained == ["train/03-color"]  # fake merge/01 equals train/01, so task 2 is shared too


def test_a_beta_sweep_trains_nothing(run: Run) -> None:
    run.set_overrides(["eval.beta=0.9"])
    assert {label.split("/")[0] for label in bring_up_to_date(run)} == {"eval", "report"}


def test_older_rows_stay_when_later_tasks_are_trained(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    perform(run, Node("prepare"))
    for node in run.plan.learning(1) + run.plan.row(1):
        perform(run, node)
    perform(run, Node("report"))
    assert text(run, Node("report")) == "fresh"
    for node in run.plan.learning(2):
        perform(run, node)
    assert text(run, Node("eval", "recognition", after="recognition")) == "fresh"
    assert text(run, Node("report")) == "fresh"
    perform(run, Node("eval", "recognition", after="location"))
    assert text(run, Node("report")) == (
        "stale: eval/after-02-location/recognition is new; route/02-location is new; "
        "merge/02-location is new"
    )


def test_a_cell_that_was_not_asked_for(run: Run) -> None:
    unseen = Node("eval", "color", after="recognition")
    perform(run, unseen)
    states = {state.node.label: state.text for state in run.states()}
    assert states["eval/after-01-recognition/color"] == "fresh"
    assert states["report"] == "stale: eval/after-01-recognition/color is new"


def test_another_version_of_a_stage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.STAGE_VERSIONS, "index", 2)
    assert text(run, Node("index", "color")) == "stale: version of index 1 -> 2"


def test_files_that_prepare_reads(tmp_path: Path) -> None:
    questions = tmp_path / "questions.json"
    questions.write_text("[1]", encoding="utf-8")
    run = make_run(tmp_path / "runs")
    prepare = Node("prepare")

    def commit(given: Run) -> None:
        with given.lock():
            workspace = given.begin(prepare, external=given.external([questions]))
            data = workspace.path / "data"
            data.mkdir(exist_ok=True)
            (data / "source.json").write_text('{"tasks": ["a"]}', encoding="utf-8")
            given.commit(workspace, outputs={"data": "data"})

    commit(run)
    assert text(run, prepare) == "fresh"
    os.utime(questions, ns=(1, 1))
    assert text(run, prepare) == "fresh"  # another time, the same content
    questions.write_text("[2]", encoding="utf-8")
    assert text(run, prepare) == f"stale: {questions} changed"
    assert not run.adopt(prepare, external=run.external([questions]))
    commit(run)
    assert text(run, prepare) == "fresh"
    two = make_run(tmp_path / "runs", name="two")
    assert two.adopt(prepare, external=two.external([questions]))
    questions.write_text("[1]", encoding="utf-8")
    assert text(run, prepare) == f"stale: {questions} changed; the store has this version"
    questions.unlink()
    assert text(run, prepare) == f"stale: {questions} is gone"


def test_a_split_that_was_not_prepared(run: Run) -> None:
    manifest_path = run.path / "prepare" / "manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    del manifest["outputs"]["recognition/val"]
    manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
    run.set_overrides(["eval.split=val"])
    with pytest.raises(InputStageError, match="prepare has no recognition/val") as failure:
        run.begin(Node("eval", "recognition", after="base"))
    assert failure.value.hint == "clmoe prepare --run one"


def test_a_newer_program_wrote_it(run: Run) -> None:
    manifest_path = run.path / "train" / "01-recognition" / "manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    manifest_path.write_text(json.dumps({**manifest, "schema": 99}), encoding="utf-8")
    with pytest.raises(ClmoeError, match="was written by a newer version of clmoe"):
        run.states()
    run.files.about.write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(ClmoeError, match="one was made by a newer version of clmoe"):
        Run.open(run.runs_dir, "one")


def test_half_a_line_of_history(run: Run) -> None:
    before = run.history()
    with run.files.history.open("a", encoding="utf-8") as file:
        file.write('{"version": 99, "ti')
    assert run.history() == before
    run.set_overrides(["report.seed=1"])
    perform(run, Node("report"))
    assert [change.version for change in run.history()][-2:] == [len(before), len(before) + 1]


def test_a_damaged_pointer_file(run: Run) -> None:
    run.files.current.write_text("{", encoding="utf-8")
    with pytest.raises(ClmoeError, match="current.json is damaged"):
        run.states()
    run.files.current.unlink()
    assert bring_up_to_date(run) == []


def test_opening_runs(tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputStageError, match="there is no run in") as failure:
        Run.open(tmp_path / "nowhere")
    assert failure.value.hint == "clmoe prepare"
    run.make_current()
    assert Run.open(run.runs_dir).name == "one"
    assert run.command(TRAIN) == "clmoe train --task recognition"
    with pytest.raises(UsageError, match="no run 'onne' in .*; did you mean 'one'"):
        Run.open(run.runs_dir, "onne")
    with pytest.raises(UsageError, match="cannot be the name of a run"):
        Run.open(run.runs_dir, "../one")
    again = make_run(run.runs_dir, "merge.gamma=0.9")
    assert again.history() == run.history()
    assert Run.open(run.runs_dir).recipe.merge.gamma == 0.9


def test_bad_overrides_change_nothing(run: Run) -> None:
    with pytest.raises(UsageError, match="did you mean 'train.lr'"):
        run.set_overrides(["merge.gamma=0.8", "trian.lr=1"])
    assert Run.open(run.runs_dir, "one").recipe == run.recipe
    assert not_fresh(run) == {}


def test_clean_shows_and_removes_only_what_no_run_uses(run: Run) -> None:
    root = run.runs_dir
    assert unreferenced(root) == []
    two = make_run(root, "train.seed=1", name="two")
    bring_up_to_date(two)
    assert unreferenced(root) == []
    run.set_overrides(["merge.gamma=0.8"])
    bring_up_to_date(run)
    with two.lock():
        two.set_overrides(["train.lr=1e-4"])
        two.begin(TRAIN)
    found = unreferenced(root)
    assert {item.path.parent.name for item in found} == {
        "merge",
        "train",
        "route",
        "eval",
        "report",
    }
    assert all(item.bytes > 0 and not item.path.name.startswith(".partial") for item in found)
    assert remove(root, chosen=found) == sum(item.bytes for item in found)
    assert unreferenced(root) == []
    assert [state.text for state in run.verify() if state.status != "fresh"] == []
    two.set_overrides(["train.lr=3e-4"])
    assert [item.path.name[:9] for item in unreferenced(root)] == [".partial-"]
    assert remove(root, chosen=found) == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2e-4, "2e-4"), (1.5e-4, "1.5e-4"), (0.7, "0.7"), (128.0, "128"), (100000.0, "1e5"),
        (None, "null"), (True, "true"), (8, "8"), (["a", "b"], "a,b"), ("cosine", "cosine"),
        ({"a": "b"}, '{"a":"b"}'), (0.0, "0"),
    ],
)  # fmt: skip
def test_values_in_reasons(value: object, shown: str) -> None:
    assert show(value) == shown

"""Commits: killed at every step the old version is still current, and the next commit works."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clmoe.errors import ClmoeError, InputStageError
from clmoe.runs import Node, Run, atomic
from tests.runs.fake_stages import bring_up_to_date, make_run, not_fresh, perform, write_outputs

NODE = Node("train", "recognition")
STEPS = [
    "commit started",
    "outputs synced",
    "manifest.json written",
    "manifest.json replaced",
    "version in place",
    "leftovers removed",
    "current.json written",
    "current.json replaced",
    "history appended",
    "links updated",
]
SWITCH = STEPS.index("current.json replaced")


def prepared(runs_dir: Path) -> Run:
    """A run with one training that has become stale."""
    run = make_run(runs_dir)
    perform(run, Node("prepare"))
    perform(run, NODE)
    run.set_overrides(["train.lr=1e-4"])
    return run


def stop_at(name: str, how: Callable[[], None]) -> Callable[[str], None]:
    def hook(step: str) -> None:
        if step == name:
            how()

    return hook


def test_these_are_all_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(tmp_path)
    seen: list[str] = []
    workspace = run.begin(NODE)
    outputs = write_outputs(workspace.path, NODE, content="new")
    monkeypatch.setattr(atomic, "step", seen.append)
    run.commit(workspace, outputs=outputs)
    assert seen == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step(tmp_path: Path, step: str) -> None:
    run = prepared(tmp_path)
    old = run.manifest(NODE)
    child = os.fork()
    if child == 0:
        workspace = run.begin(NODE)
        outputs = write_outputs(workspace.path, NODE, content="new")
        atomic.step = stop_at(step, lambda: os._exit(9))
        run.commit(workspace, outputs=outputs)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    again = Run.open(tmp_path, "one")
    if STEPS.index(step) < SWITCH:
        assert again.manifest(NODE).fingerprint == old.fingerprint
        again.set_overrides(["train.lr=2e-4"])
        assert again.output(NODE, "adapter").is_dir()
        again.set_overrides(["train.lr=1e-4"])
    else:
        assert again.state(NODE).status == "fresh"
    bring_up_to_date(again)
    assert not_fresh(again) == {}
    assert [s.text for s in again.verify() if s.status != "fresh"] == []
    assert (again.path / "train/01-recognition").resolve() == again.state(NODE).directory
    changes = again.history()
    assert [change.version for change in changes] == list(range(1, len(changes) + 1))
    assert [c.label for c in changes].count("train/01-recognition") == 2
    assert not list((tmp_path / ".store").glob("*/.partial-*"))


@pytest.mark.parametrize("step", STEPS[:SWITCH])
def test_disk_full(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(tmp_path)
    old = run.manifest(NODE)
    workspace = run.begin(NODE)
    outputs = write_outputs(workspace.path, NODE, content="new")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "step", stop_at(step, full))
        with pytest.raises(ClmoeError, match="could not be committed: the disk is full; the"):
            run.commit(workspace, outputs=outputs)
    assert run.manifest(NODE).fingerprint == old.fingerprint
    bring_up_to_date(run)
    assert not_fresh(run) == {}


def test_a_killed_stage_goes_on_in_its_folder(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    child = os.fork()
    if child == 0:
        workspace = run.begin(NODE)
        (workspace.path / "checkpoint.pt").write_text("step 200", encoding="utf-8")
        os._exit(9)
    os.waitpid(child, 0)
    with run.lock():
        workspace = run.begin(NODE)
        assert workspace.resumed
        assert (workspace.path / "checkpoint.pt").read_text(encoding="utf-8") == "step 200"
        outputs = write_outputs(workspace.path, NODE, content="new")
        manifest = run.commit(workspace, outputs=outputs)
    folder = run.state(NODE).directory
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "manifest.json"]
    assert manifest.label == "train/01-recognition"


def test_another_recipe_does_not_go_on_with_it(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    with run.lock():
        (run.begin(NODE).path / "checkpoint.pt").write_text("1e-4", encoding="utf-8")
    run.set_overrides(["train.lr=3e-4"])
    with run.lock():
        workspace = run.begin(NODE)
        assert not workspace.resumed
        assert [path.name for path in workspace.path.iterdir()] == [".begun.json"]


@pytest.mark.parametrize("relative", ["nowhere", "../../outside", "."])
def test_an_output_that_is_not_there(tmp_path: Path, relative: str) -> None:
    run = prepared(tmp_path)
    workspace = run.begin(NODE)
    with pytest.raises(ClmoeError, match="train/01-recognition did not write its output 'adapter'"):
        run.commit(workspace, outputs={"adapter": relative})
    assert run.state(NODE).status == "stale"


def test_a_link_is_not_an_output(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    workspace = run.begin(NODE)
    (workspace.path / "adapter").mkdir()
    (workspace.path / "adapter" / "weights").symlink_to("/etc/hostname")
    with pytest.raises(ClmoeError, match="neither a file nor a folder"):
        run.commit(workspace, outputs={"adapter": "adapter"})


def test_inputs_must_be_fresh(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    with pytest.raises(InputStageError) as failure:
        run.begin(Node("route", "recognition"))
    assert str(failure.value) == "train/01-recognition is stale: train.lr 2e-4 -> 1e-4"
    assert failure.value.hint == "clmoe train --task recognition --run one"


def test_what_the_store_has_is_not_made_again(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    run.set_overrides(["train.lr=2e-4"])
    with pytest.raises(ClmoeError, match="is in the store already: adopt it"):
        run.begin(NODE)
    assert run.adopt(NODE)


def test_overlapping_outputs_are_hashed_alike(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    manifest = perform(run, Node("prepare"))
    whole = {file.path: file.sha256 for file in manifest.outputs["data"].files}
    part = manifest.outputs["color/test"].files
    assert [file.path for file in part] == ["data.arrow"]
    assert part[0].sha256 == whole["color/test/data.arrow"]


def test_the_manifest_on_disk(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    perform(run, Node("prepare"))
    with run.lock():
        workspace = run.begin(NODE)
        outputs = write_outputs(workspace.path, NODE, content="x")
        run.commit(
            workspace,
            outputs=outputs,
            counts={"steps": 100},
            summary={"loss": 0.5},
            warnings=["one image is small"],
            device="cpu",
        )
    stored = json.loads((run.path / "train/01-recognition/manifest.json").read_text("utf-8"))
    assert stored["counts"] == {"steps": 100}
    assert stored["warnings"] == ["one image is small"]
    assert stored["seeds"] == {"train.seed": 0}
    assert stored["environment"]["device"] == "cpu"
    assert stored["recipe"]["protocol.order"] == ["recognition"]
    assert stored["inputs"][0]["role"] == "data:recognition"
    assert stored["status"] == "complete"

"""The plan, identities of base models, digests, and writing files."""

from __future__ import annotations

from pathlib import Path

import pytest

from clmoe.errors import UsageError
from clmoe.events import Event, subscribe
from clmoe.recipe import resolve_text
from clmoe.recipe.schema import Base
from clmoe.runs import Node, Plan, node_command, order_tasks
from clmoe.runs.atomic import append_line
from clmoe.runs.base_identity import base_identity
from clmoe.runs.environment import environment
from clmoe.runs.hashing import DigestCache, files_below, record_files, tree_digest

TASKS = ("recognition", "location", "color")


def plan(*overrides: str) -> Plan:
    return Plan(resolve_text("", origin="x", overrides=overrides).recipe, TASKS)


def labels(made: Plan) -> list[str]:
    return [node.label for node in made.nodes()]


def test_the_full_method() -> None:
    made = plan()
    assert labels(made)[:9] == [
        "prepare", "eval/after-00-base/recognition", "eval/after-00-base/location",
        "eval/after-00-base/color", "train/01-recognition", "route/01-recognition",
        "merge/01-recognition", "index/01-recognition", "eval/after-01-recognition/recognition",
    ]  # fmt: skip
    assert labels(made)[-1] == "report"
    assert len(labels(made)) == 1 + 3 + 3 * 4 + (1 + 2 + 3) + 1
    seen: set[str] = set()
    for node in made.nodes():
        assert {read.node.label for read in made.reads(node)} <= seen
        seen.add(node.label)


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("clmoe", {"train", "route", "merge", "index"}),
        ("mmoe", {"train", "route", "merge"}),
        ("rmoe", {"train", "route", "index"}),
        ("vanilla", {"train"}),
        ("ema", {"train", "merge"}),
        ("multitask", {"train"}),
    ],
)
def test_stages_of_a_method(method: str, stages: set[str]) -> None:
    nodes = plan(f"method.name={method}").nodes()
    assert {node.stage for node in nodes} == stages | {"prepare", "eval", "report"}


def test_what_stages_read() -> None:
    made = plan()

    def reads(*node: str) -> list[str]:
        return [f"{r.node.label}:{r.output}" for r in made.reads(made.locate(Node(*node)))]

    assert reads("train", "recognition") == ["prepare:recognition/train"]
    assert reads("train", "color") == ["prepare:color/train", "merge/02-location:adapter"]
    assert reads("merge", "location") == [
        "train/02-location:adapter", "merge/01-recognition:adapter",
        "route/01-recognition:router", "route/02-location:router",
    ]  # fmt: skip
    assert reads("index", "color") == ["prepare:color/train"]
    assert reads("eval", "color", "recognition") == [
        "prepare:color/test", "merge/01-recognition:adapter", "route/01-recognition:router",
        "index/01-recognition:index",
    ]  # fmt: skip
    assert reads("eval", "color", "base") == ["prepare:color/test"]
    made = plan("eval.oracle_task=true")
    assert "index/01-recognition:index" not in reads("eval", "recognition", "location")
    assert "index/01-recognition:index" in reads("eval", "color", "location")
    made = plan("eval.beta=1")
    assert reads("eval", "color", "recognition") == [
        "prepare:color/test", "merge/01-recognition:adapter",
    ]  # fmt: skip
    made = plan("method.name=multitask")
    assert reads("train", "all") == [f"prepare:{task}/train" for task in TASKS]
    assert reads("eval", "color", "all") == ["prepare:color/test", "train/00-all:adapter"]


def test_commands() -> None:
    made = plan()
    assert node_command(Node("train", "location")) == "clmoe train --task location"
    assert node_command(Node("prepare"), run="two") == "clmoe prepare --run two"
    assert node_command(made.cell(2, "color")) == "clmoe eval --after location"
    assert node_command(made.cell(0, "color")) == "clmoe eval --after base"
    assert node_command(Node("train", "all", None, 0)) == "clmoe train"
    with pytest.raises(UsageError, match="there is no task 'colour'; did you mean 'color'"):
        made.locate(Node("train", "colour"))


def test_orders() -> None:
    assert order_tasks(TASKS, order="reverse") == TASKS[::-1]
    assert order_tasks(TASKS, order=TASKS[::-1]) == TASKS[::-1]
    with pytest.raises(UsageError) as failure:
        order_tasks(TASKS, order=("recognition", "colour"))
    assert str(failure.value) == (
        "protocol.order must name every prepared task once: 'colour' is not prepared; did you "
        "mean 'color'?; 'location' is missing; 'color' is missing"
    )


def test_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = DigestCache(tmp_path / "digests.json")
    base = Base(model="org/llava")
    assert base_identity(base, cache=cache).digest == "hub:org/llava@unresolved"
    reference = tmp_path / "hub" / "models--org--llava" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("a" * 40, encoding="utf-8")
    assert base_identity(base, cache=cache).digest == f"hub:org/llava@{'a' * 40}"
    pinned = Base(model="org/llava", revision="b" * 40)
    assert base_identity(pinned, cache=cache).digest == f"hub:org/llava@{'b' * 40}"


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    cache = DigestCache(tmp_path / "digests.json")
    digests = []
    for name, text in (("a", "{}"), ("b", "{}"), ("c", '{"x": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text, encoding="utf-8")
        (tmp_path / name / ".cache").write_text(name, encoding="utf-8")
        digests.append(base_identity(Base(model=str(tmp_path / name)), cache=cache).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_cache_sees_every_change(tmp_path: Path) -> None:
    import os

    file = tmp_path / "weights"
    file.write_text("one", encoding="utf-8")
    old = file.stat().st_mtime_ns - 10**10
    os.utime(file, ns=(old, old))
    cache = DigestCache(tmp_path / "digests.json")
    first = cache.digest(file)
    file.write_text("two", encoding="utf-8")
    assert cache.digest(file) != first
    file.write_text("one", encoding="utf-8")
    assert cache.digest(file) == first
    (tmp_path / "digests.json").write_text("not JSON", encoding="utf-8")
    assert DigestCache(tmp_path / "digests.json").digest(file) == first


def test_a_tree_is_known_by_names_and_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text("x", encoding="utf-8")
    one, two = record_files(tmp_path / "a"), record_files(tmp_path / "b")
    assert one == two
    assert list(files_below(tmp_path / "a")) == ["inner/file"]
    assert tree_digest(one) == tree_digest(two)
    (tmp_path / "b" / "inner" / "file").rename(tmp_path / "b" / "file")
    assert tree_digest(record_files(tmp_path / "b")) != tree_digest(one)
    alone = record_files(tmp_path / "b" / "file")
    assert tree_digest(alone) == alone[0].sha256 == one[0].sha256


def test_half_a_line_is_dropped_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    with path.open("a", encoding="utf-8") as file:
        file.write("tw")
    append_line(path, "three")
    assert path.read_text(encoding="utf-8") == "one\nthree\n"


def test_the_environment_is_plain_data() -> None:
    events: list[Event] = []
    with subscribe(events.append):
        found = environment(device="cpu")
    assert found["device"] == "cpu"
    assert "torch" in found["versions"]
    assert events == []

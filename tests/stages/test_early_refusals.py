"""What would fail after the last training is refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from clmoe.errors import UsageError
from clmoe.parallel.world import World
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline, refusals
from clmoe.training import fitting
from tests.conftest import SMALL

THREE = "data.tasks=recognition,location,count"


def begin(runs: Path, *overrides: str, dry_run: bool = False) -> None:
    pipeline.run(
        runs, recipe="shapes", overrides=overrides, name="new", dry_run=dry_run, keep_going=False
    )


def refused(runs: Path, *overrides: str) -> UsageError:
    """The error of `run`, with and without --dry-run, after which there is no such run."""
    found = []
    for dry_run in (True, False):
        with pytest.raises(UsageError) as caught:
            begin(runs, *overrides, dry_run=dry_run)
        found.append(caught.value)
    assert not (runs / "new").exists()
    assert (found[0].message, found[0].hint) == (found[1].message, found[1].hint)
    return found[0]


@pytest.mark.parametrize("method", ["er", "der", "derpp", "vs", "vqacl"])
@pytest.mark.parametrize(
    ("given", "size", "tasks"), [((THREE,), 2, 3), ((), 9, 10)], ids=["named", "of the source"]
)
def test_a_memory_with_no_room_for_every_task(
    tmp_path: Path, method: str, given: tuple[str, ...], size: int, tasks: int
) -> None:
    error = refused(tmp_path, f"method.name={method}", f"strategy.memory={size}", *given)
    assert error.message == (
        f"a memory of {size} has no room for one example of each of {tasks} tasks"
    )
    assert error.hint == f"set strategy.memory to at least {tasks}"
    assert error.exit_code == 2


def test_a_memory_with_just_enough_room(tmp_path: Path) -> None:
    for allowed in (
        ["method.name=er", "strategy.memory=3"],
        ["method.name=er", "strategy.memory=2", "strategy.policy=reservoir"],
        ["method.name=ewc", "strategy.memory=2"],
    ):
        begin(tmp_path, THREE, *allowed, dry_run=True)


def test_the_tasks_that_are_prepared_count(runs: Path) -> None:
    given = ["strategy.kind=er", "strategy.memory=2"]
    with pytest.raises(UsageError, match="each of 3 tasks"):
        pipeline.train(runs, run=None, task="recognition", overrides=given, again=True, yes=False)
    assert Run.open(runs).recipe.strategy.kind == "none"
    with pytest.raises(UsageError, match="each of 3 tasks"):
        pipeline.prepare(
            runs, recipe=None, source=None, overrides=given, name="small", keep_going=False
        )
    assert Run.open(runs).recipe.strategy.kind == "none"


def test_tasks_that_only_the_data_tells_count_once_they_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = refusals._known_tasks

    def as_if_the_data_told(run: Run) -> int:
        prepared = run.state(Node("prepare")).status == "fresh"
        return known(run) if prepared else 0

    monkeypatch.setattr(refusals, "_known_tasks", as_if_the_data_told)
    with pytest.raises(UsageError, match="each of 3 tasks"):
        begin(tmp_path, *SMALL, "method.name=er", "strategy.memory=2")
    run = Run.open(tmp_path, "new")
    assert [state.node.stage for state in run.states() if state.status == "fresh"] == ["prepare"]


def test_a_micro_batch_that_divides_the_steps_of_vs(tmp_path: Path) -> None:
    error = refused(tmp_path, THREE, "method.name=vs", "train.micro_batch=31")
    assert "so a step of 32 samples" in error.message
    for allowed in (
        ["method.name=vs", "train.micro_batch=32"],
        ["method.name=vs", "train.micro_batch=auto"],
        ["method.name=er", "train.micro_batch=4"],
    ):
        begin(tmp_path, THREE, *allowed, dry_run=True)


def test_processes_may_not_share_a_training_of_vs(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "launched", lambda: True)
    opened = Run.open(runs)
    refusals.refuse_processes(opened)
    refusals.refuse_processes(opened.preview(["strategy.kind=er"]))
    monkeypatch.setattr(fitting, "world", lambda: World(size=2))
    with pytest.raises(UsageError, match="cannot be divided among 2 processes"):
        refusals.refuse_processes(opened.preview(["strategy.kind=vs"]))


def test_an_unknown_scorer(runs: Path) -> None:
    wrong = "report.scorer=exat"
    error = refused(runs, wrong)
    assert error.message.startswith("there is no scorer 'exat'; there are exact, ")
    assert (error.hint, error.exit_code) == ("did you mean exact?", 2)
    before = Run.open(runs).recipe
    for command in (
        lambda: pipeline.prepare(
            runs, recipe=None, source=None, overrides=[wrong], name="small", keep_going=False
        ),
        lambda: pipeline.train(
            runs, run=None, task="recognition", overrides=[wrong], again=True, yes=False
        ),
        lambda: pipeline.route(runs, run=None, task=None, overrides=[wrong]),
        lambda: pipeline.merge(runs, run=None, task=None, overrides=[wrong]),
        lambda: pipeline.index(runs, run=None, task=None, overrides=[wrong]),
        lambda: pipeline.evaluate(
            runs, run=None, after=None, tasks="seen", report="none", oracle_task=None,
            overrides=[wrong], yes=False,
        ),
        lambda: pipeline.report(runs, run=None, kind="all", overrides=[wrong]),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="there is no scorer 'exat'"):
            command()
    assert Run.open(runs).recipe == before

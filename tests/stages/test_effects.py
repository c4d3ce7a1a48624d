"""Overrides that change nothing are told; those that change a result are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clmoe.events import Event, Note, subscribe
from clmoe.runs.run import Run
from clmoe.stages import pipeline


def warnings(command: Callable[[], object]) -> list[str]:
    events: list[Event] = []
    with subscribe(events.append):
        command()
    return [event.text for event in events if isinstance(event, Note) and event.level == "warning"]


def told(runs: Path, *overrides: str, recipe: str = "shapes") -> list[str]:
    return warnings(
        lambda: pipeline.run(
            runs, recipe=recipe, overrides=overrides, name=None, dry_run=True, keep_going=False
        )
    )


@pytest.mark.parametrize(
    ("method", "override"),
    [
        ("vanilla", "merge.gamma=0.9"),
        ("vanilla", "index.kind=lda"),
        ("rmoe", "merge.space=product"),
        ("mmoe", "index.soft=1"),
        ("pertask", "index.soft=1"),
        ("multitask", "index.noise=0.5"),
        ("er", "strategy.strength=10"),
        ("vanilla", "strategy.memory=10"),
        ("clmoe", "eval.seed=3"),
    ],
)
def test_an_override_that_changes_nothing_is_told(
    tmp_path: Path, method: str, override: str
) -> None:
    [text] = told(tmp_path, f"method.name={method}", override)
    assert text == f"{override} changes nothing with these settings (method {method})"


def test_noise_does_nothing_where_the_tasks_are_known(tmp_path: Path) -> None:
    [text] = told(tmp_path, "eval.oracle_task=true", "index.noise=0.5")
    assert text == "index.noise=0.5 changes nothing with these settings (method clmoe)"
    assert len(told(tmp_path, "eval.oracle_task=true", "index.noise=0.5", "eval.seed=1")) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["merge.gamma=0.9"],
        ["index.soft=1"],
        ["index.noise=0.5", "eval.seed=3"],
        ["method.name=pertask", "index.noise=0.5"],
        ["method.name=vanilla", "train.lr=1e-2"],
        ["method.name=er", "strategy.memory=20"],
        ["adapter.experts=4"],
        ["protocol.order=reverse"],
        ["data.tasks=recognition,location", "name=other"],
        # values that hold anyway, and keys that change only speed, labels or the report
        ["method.name=vanilla", "merge.gamma=0.7"],
        ["train.micro_batch=4", "runtime.threads=1", "eval.batch_size=2", "eval.rows=last"],
        ["report.seed=3", "report.scorer=vqa"],
    ],
)
def test_any_other_override_is_not(tmp_path: Path, overrides: list[str]) -> None:
    assert told(tmp_path, *overrides) == []


def test_a_recipe_that_cannot_be_without_its_overrides_has_nothing_to_compare(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("include: shapes\nadapter: {experts: 6}\n")
    assert told(tmp_path / "runs", "adapter.experts=8", "index.kind=lda", recipe=str(path)) == []


def test_a_value_of_the_method_s_own_block_is_what_an_override_replaces(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("include: shapes\nmethods: {vanilla: {merge.gamma: 0.9}}\n")
    given = ["method.name=vanilla", "merge.gamma=0.9"]
    assert told(tmp_path / "runs", *given, recipe=str(path)) == []


def test_the_recipe_of_a_run_is_changed(runs: Path) -> None:
    def report(*overrides: str) -> list[str]:
        return warnings(
            lambda: pipeline.report(runs, run="small", kind="ap-af", overrides=overrides)
        )

    assert report("eval.seed=5") == [
        "eval.seed=5 changes nothing with these settings (method clmoe)"
    ]
    assert report("eval.seed=5") == []  # nothing is changed, and it was told
    assert Run.open(runs, "small").recipe.eval.seed == 5


def test_a_task_that_is_not_learned_yet_has_no_true_id_among_those_learned(runs: Path) -> None:
    def answer(tasks: str, *overrides: str) -> list[str]:
        return warnings(
            lambda: pipeline.evaluate(
                runs, run="small", after="recognition", tasks=tasks, report="none",
                oracle_task=True, overrides=overrides, yes=False,
            )
        )  # fmt: skip

    assert answer("seen", "index.noise=0.5") == [
        "index.noise=0.5 changes nothing with these settings (method clmoe)"
    ]
    assert answer("all", "index.noise=0.25") == []

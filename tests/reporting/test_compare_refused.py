"""Runs that do not belong beside each other, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from clmoe.errors import UsageError
from clmoe.reporting.compare import compare
from tests.reporting.builders import made_run


def refused(*runs: Any, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        compare(list(runs), **options)
    return caught.value


def test_nothing_to_compare() -> None:
    assert str(refused()) == "there is no run to compare"


def test_other_tasks() -> None:
    error = refused(made_run("a"), made_run("b", tasks=("color", "causal")))
    assert str(error) == "b and a have other tasks: only one of them has causal, count"


def test_another_order_of_the_same_tasks_is_accepted() -> None:
    found = compare([made_run("a"), made_run("b", tasks=("count", "color"), protocol__order="r")])
    assert found.tasks == ("color", "count")
    assert found.differences[found.groups[1].label].overall.mean == 0


def test_other_questions_say_how_many() -> None:
    scores = {
        "color": {f"color-{i}": 1.0 for i in range(4)},
        "count": {f"count-{i}": 1.0 for i in range(2, 6)},
    }
    error = refused(made_run("a"), made_run("b", method="vanilla", scores=scores))
    assert str(error) == (
        "b and a were not asked the same questions of count: 4 differ, the first is count-0"
    )
    assert error.hint == "compare runs of the same prepared data and split"


def test_other_content_behind_the_same_ids() -> None:
    error = refused(
        made_run("a"), made_run("b", method="vanilla", data={"color": "same", "count": "other"})
    )
    assert str(error) == (
        "b and a have other data: their questions of count have the same ids, but not the same "
        "content"
    )


def test_one_run_is_behind() -> None:
    error = refused(made_run("a"), made_run("b", method="vanilla", rows={1: [2]}))
    assert str(error) == "a stands after 2 of 2 tasks (exact), b after 1 (exact)"
    assert error.hint == "finish the one that is behind, e.g. clmoe eval --run b"


def test_the_same_recipe_and_seed_twice() -> None:
    error = refused(made_run("a"), made_run("b"))
    assert str(error) == (
        "a and b are the same recipe with the same seed: one of them would be counted twice"
    )
    assert error.hint == "leave out b"
    assert str(refused(made_run("a"), made_run("a"))) == "named twice: a"


def test_an_unknown_baseline() -> None:
    error = refused(made_run("a"), made_run("v", method="vanilla"), baseline="vanila")
    assert str(error) == ("no single one of these runs is called 'vanila'; did you mean 'vanilla'?")
    assert error.hint == "--baseline takes one of clmoe, a, vanilla, v"

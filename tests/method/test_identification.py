"""The confusion of identified tasks, by hand."""

from __future__ import annotations

import json

import pytest

from clmoe.errors import ClmoeError
from clmoe.method.identification import identification


def test_confusion_by_hand() -> None:
    found = identification(
        ["b", "a", "a", "b", "a", "c"],
        predicted=["b", "a", "b", "b", "a", "a"],
        order=["a", "b", "c", "d"],
        learned=["a", "b"],
    )
    assert found.tasks == ("a", "b", "c")
    assert found.learned == ("a", "b")
    assert found.confusion == ((2, 1), (0, 2), (1, 0))
    assert found.accuracy == {"a": pytest.approx(200 / 3), "b": 100, "c": None}
    assert found.overall == 80  # the question of c, not learned yet, could not be identified
    json.dumps(found.as_dict())


def test_only_unlearned_tasks_have_no_accuracy() -> None:
    found = identification(["c"], predicted=["a"], order=["a", "c"], learned=["a"])
    assert (found.overall, found.accuracy) == (None, {"c": None})


def test_bad_input_is_refused() -> None:
    with pytest.raises(ClmoeError, match="2 true tasks, but 1 identified"):
        identification(["a", "a"], predicted=["a"], order=["a"], learned=["a"])
    with pytest.raises(ClmoeError, match="unknown tasks: b, z"):
        identification(["z", "a"], predicted=["a", "b"], order=["a", "b"], learned=["a"])

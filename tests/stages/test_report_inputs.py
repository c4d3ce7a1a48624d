"""The report speaks of merges, so another merge is another report even where answers are equal."""

from __future__ import annotations

import json
from pathlib import Path

from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline
from tests.conftest import SMALL


def test_another_merge_with_equal_answers_is_another_report(runs: Path) -> None:
    pipeline.run(
        runs, recipe="shapes", overrides=[*SMALL, "merge.gamma=0.7000001"], name="near",
        dry_run=False, keep_going=False,
    )  # fmt: skip
    near, small = (Run.open(runs, name) for name in ("near", "small"))
    for task in ("recognition", "location", "count"):
        cells = [r.output(Node("eval", task, after="count"), "samples") for r in (near, small)]
        assert cells[0].read_bytes() == cells[1].read_bytes()  # else this tests nothing
    found = json.loads((near.path / "report" / "understanding.json").read_text())
    assert found["momentum"][1]["report"]["gamma"] == 0.7000001

"""What a finished command prints: facts, whole tables, notes, and last the next command."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clmoe.stages.result import Outcome, Table
from clmoe_cli import console, tables

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(script: Path, *arguments: str, columns: int, **environment: str) -> str:
    """What a person sees who runs the script in a terminal of that width (both streams)."""
    ours, theirs = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "CI"}}
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**variables, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "50", **environment},
    )
    os.close(theirs)
    seen = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([ours], [], [], 0.1)[0]:
            continue
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(timeout=10) == 0
    return seen.decode().replace("\r\n", "\n")


def matrix_cells(text: str) -> list[list[str]]:
    """The numbers of the lines that have eleven of them."""
    lines = (re.findall(r"\d+\.\d", line) for line in text.splitlines())
    return [numbers for numbers in lines if len(numbers) == 11]


class TestPiped:
    """Not on a terminal: plain text, nothing shortened."""

    def test_facts_table_notes_and_the_next_command(
        self, clmoe_command: Callable[..., Any]
    ) -> None:
        ran = clmoe_command("eval")
        lines = ran.out.splitlines()
        assert lines[0] == "train/01-recognition: done in 12 s"
        assert lines[1] == "  loss 2.1 -> 0.9"
        assert lines[3] == "accuracy, percent"
        assert lines[4].split()[:3] == ["recognition", "location", "judge"]
        assert lines[-2:] == ["theta_1 = phi_1: nothing to merge", "next: clmoe merge"]
        assert len(matrix_cells(ran.out)) == 11
        assert "\x1b" not in ran.out

    def test_results_and_progress_do_not_mix(self, clmoe_command: Callable[..., Any]) -> None:
        ran = clmoe_command("eval")
        assert "a library that prints" not in ran.out
        assert "a library that prints" in ran.err
        assert "train recognition (missing: never run)" in ran.err

    def test_many_skipped_stages_are_one_line(
        self, clmoe_command: Callable[..., Any], pipeline: Any
    ) -> None:
        one = pipeline.result.outcomes[0]
        skipped = replace(one, status="skipped", reason="nothing changed", lines=())
        pipeline.result = replace(pipeline.result, outcomes=(skipped,) * 9 + (one,))
        lines = clmoe_command("run", "shapes").out.splitlines()
        assert lines[:2] == [
            "skipped 9 stages that are up to date",
            "train/01-recognition: done in 12 s",
        ]

    def test_many_finished_stages_are_a_count_and_the_last_one(self, pipeline: Any) -> None:
        one: Outcome = pipeline.result.outcomes[0]
        last = replace(one, node_label="report", seconds=0.5, lines=("report.md in runs/x",))
        assert console.outcome_lines([*[one] * 20, last]) == [
            "21 stages done in 4 min 07 s, the last of them:",
            "report: done in 0.5 s",
            "  report.md in runs/x",
        ]

    def test_a_few_skipped_stages_say_why(self, pipeline: Any) -> None:
        one: Outcome = replace(pipeline.result.outcomes[0], status="skipped", lines=("a fact",))
        assert console.outcome_lines([one]) == [
            "skipped train/01-recognition: missing: never run",
            "  a fact",
        ]


class TestJson:
    """--json: one object, of JSON's own types."""

    def test_everything_is_in_it(self, clmoe_command: Callable[..., Any]) -> None:
        found = clmoe_command("eval", "--json").json
        assert found["command"] == "eval"
        assert found["run"] == "shapes"
        assert found["next"] == "clmoe merge"
        assert found["exit_code"] == 0
        assert found["data"] == {"ap": 63.5, "folder": "runs/shapes"}
        assert found["outcomes"][0]["summary"] == {"loss": None, "steps": 100}
        assert found["tables"][0]["columns"][1] == "recognition"
        assert len(found["tables"][0]["rows"]) == 11

    def test_a_value_without_a_form_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="object has no form in JSON"):
            console.plain_json({"a": [object()]})


class TestTerminal:
    """On a terminal: every number of ten tasks at 80 columns, colours unless NO_COLOR."""

    def test_the_matrix_is_whole_at_80_columns(self, fake_script: Path) -> None:
        text = on_a_terminal(fake_script, "eval", columns=80)
        plain = ESCAPES.sub("", text)
        rows = matrix_cells(plain)
        assert len(rows) == 11
        assert rows[0][:2] == ["61.3", "61.4"]
        assert rows[10][-2:] == ["72.2", "100.0"]
        assert max(len(line) for line in plain.splitlines()) <= 80
        assert "recog = recognition" in plain or "reco = recognition" in plain
        assert "\u2026" not in plain

    def test_the_full_names_at_160_columns(self, fake_script: Path) -> None:
        plain = ESCAPES.sub("", on_a_terminal(fake_script, "eval", columns=160))
        assert "recognition  location  judge" in plain
        assert "= recognition" not in plain

    def test_nothing_is_cut_at_40_columns(self, fake_script: Path) -> None:
        plain = ESCAPES.sub("", on_a_terminal(fake_script, "eval", columns=40))
        assert len(matrix_cells(plain)) == 11

    def test_no_color(self, fake_script: Path) -> None:
        coloured = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
        text = on_a_terminal(fake_script, "train", columns=80, NO_COLOR="1")
        assert not coloured.search(text)

    def test_the_last_line_is_the_next_command(self, fake_script: Path) -> None:
        plain = ESCAPES.sub("", on_a_terminal(fake_script, "eval", columns=80))
        assert plain.rstrip().splitlines()[-1] == "next: clmoe merge"


class TestTables:
    """The layout itself."""

    def test_headers_shrink_only_as_far_as_needed(self) -> None:
        table = Table("", ["", "recognition", "location"], [["a", "1.0", "2.0"]])
        assert tables.fit_headers(table, width=24) == (["", "recognition", "location"], 2)
        assert tables.fit_headers(table, width=15) == (["", "recog", "locat"], 2)

    def test_equal_short_headers_get_a_number(self) -> None:
        short = tables.abbreviate(["counting", "counted", "count"], length=5, only=[True] * 3)
        assert short == ["count", "coun2", "coun3"]

    def test_text_columns_keep_their_header(self) -> None:
        table = Table("", ["stage", "why it is stale"], [["merge/01", "train.lr 2e-4 -> 1e-4"]])
        assert tables.fit_headers(table, width=10)[0] == ["stage", "why it is stale"]

    @pytest.mark.parametrize(
        "cell", ["61.3", "-0.5", "\u22120.5", "", "-", "\u2013", "1,600", "3%"]
    )
    def test_numbers(self, cell: str) -> None:
        assert tables.numeric_columns(Table("", ["x"], [[cell]])) == [True]

    @pytest.mark.parametrize("cell", ["fresh", "a1", "1 of 2", "12ab34"])
    def test_not_numbers(self, cell: str) -> None:
        assert tables.numeric_columns(Table("", ["x"], [[cell]])) == [False]

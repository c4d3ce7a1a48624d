"""Tables, notes and files of a comparison: nothing of the paper among what was measured."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from clmoe.errors import UsageError
from clmoe.reporting.compare import Comparison, compare
from clmoe.reporting.compare_files import form_of, render
from clmoe.reporting.compare_tables import OTHER_TASKS, Side, notes, paper_side, tables
from clmoe.reporting.latex import escape, latex
from clmoe.reporting.paper_numbers import PAPER, PAPER_VLT5, paper_tasks
from clmoe.reporting.tables import Table
from tests.reporting.builders import made_run


@pytest.fixture
def ten() -> Comparison:
    """Vanilla and clmoe over the paper's ten tasks, one question in four right, or two."""
    return compare(
        [
            made_run("v", method="vanilla", tasks=paper_tasks(), rows={10: [1] * 10}),
            made_run("c", tasks=paper_tasks(), rows={10: [2] * 10}, extra_bytes=3 * 2**20),
        ]
    )


def shown(comparison: Comparison, which: str = "llava") -> tuple[dict[str, Table], Side]:
    side = paper_side(comparison, which=which)
    return {table.title: table for table in tables(comparison, paper=side)}, side


def column(table: Table, name: str) -> list[str]:
    return [row[table.columns.index(name)] for row in table.rows]


def test_the_paper_has_columns_of_its_own(ten: Comparison) -> None:
    found, _ = shown(ten)
    ap = found["AP after all 10 tasks, exact, percent"]
    assert column(ap, "AP") == ["25.00", "50.00"]
    assert column(ap, f"AP, {PAPER}") == ["32.51", "51.34"]
    assert column(ap, "minus vanilla") == ["-", "+25.00"]
    metrics = found["metrics after all 10 tasks, exact"]
    assert column(metrics, f"AF-ref, {PAPER}") == ["20.69", "-0.02"]
    assert metrics.columns.index(f"AF-ref, {PAPER}") == metrics.columns.index("AF-ref") + 1
    block = found[f"{PAPER}: accuracy after all 10 tasks, percent"]
    assert column(block, "recognition") == ["19.25", "46.50"]
    measured = found["accuracy after all 10 tasks, exact, percent"]
    assert measured.columns == ["method", *paper_tasks()]
    assert {cell for row in measured.rows for cell in row[1:]} == {"25.0", "50.0"}


def test_without_the_paper_none_of_it_is_shown(ten: Comparison) -> None:
    found, side = shown(ten, "none")
    text = json.dumps([[t.title, t.columns, t.rows] for t in found.values()])
    assert PAPER not in text
    assert "51.34" not in text
    assert not any(PAPER in line for line in notes(ten, paper=side))


def test_vl_t5_is_a_block_that_must_be_asked_for(ten: Comparison) -> None:
    assert not any(PAPER_VLT5 in title for title in shown(ten)[0])
    found, side = shown(ten, "all")
    block = found[f"{PAPER_VLT5}: accuracy after all 10 tasks, percent"]
    assert column(block, "method")[:3] == ["Vanilla", "EWC", "MAS"]
    assert any("20.63" in line for line in notes(ten, paper=side))


def test_caveats_are_told(ten: Comparison) -> None:
    told = " ".join(notes(ten, paper=shown(ten)[1]))
    for words in ("54.71", "beside AF-ref", "has seen VQA v2", "36.98"):
        assert words in told


def test_reasons_of_dashes_are_told_once(ten: Comparison) -> None:
    told = notes(ten, paper=shown(ten)[1])
    missing = [line for line in told if line.startswith("LA -")]
    assert len(missing) == 1
    assert missing[0].startswith("LA -: missing: m[1][1] (recognition after recognition)")


def test_other_tasks_have_no_paper_column_and_say_so() -> None:
    found = compare([made_run("a"), made_run("v", method="vanilla")])
    assert OTHER_TASKS in notes(found, paper=shown(found)[1])
    assert not any(PAPER in name for t in shown(found)[0].values() for name in t.columns)


def test_the_cost_of_misidentification_needs_a_twin() -> None:
    plain = made_run("a", identified=50.0, rows={2: [2, 3]})
    oracle = made_run("o", eval__oracle_task=True, rows={2: [3, 3]})
    found, _ = shown(compare([plain, oracle]), "none")
    (table,) = (t for title, t in found.items() if title.startswith("cost of misidentified"))
    assert table.rows == [["clmoe", "50.0", "62.50", "75.00", "+12.50", "0.00 to 37.50"]]
    other = made_run("o", eval__oracle_task=True, merge__gamma=0.9, rows={2: [3, 3]})
    titles = shown(compare([plain, other]), "none")[0]
    assert not any(title.startswith("cost") for title in titles)


def test_extra_memory_in_mebibytes(ten: Comparison) -> None:
    table = shown(ten)[0]["what a method needs"]
    assert column(table, "extra MiB") == ["-", "3.00"]
    told = "extra MiB -: these trainings were made before it was measured (vanilla)"
    assert told in notes(ten, paper=shown(ten)[1])


def test_extra_memory_that_is_known_needs_no_note() -> None:
    known = compare([made_run("c", extra_bytes=0, parameters=8)])
    side = paper_side(known, which="none")
    assert not any("extra MiB" in line for line in notes(known, paper=side))
    nothing = compare([made_run("c")])  # then there is no table of it
    assert not any("extra MiB" in line for line in notes(nothing, paper=side))


def test_extra_memory_by_its_parts() -> None:
    parts = {"memory": 20, "logits": 10}
    found = compare([made_run("e", method="er", extra_bytes=30, extra=parts), made_run("c")])
    side = paper_side(found, which="none")
    groups = json.loads(render(found, paper=side, form="json"))["groups"]
    assert [group["extra_bytes"] for group in groups] == [30, None]
    assert [group["extra"] for group in groups] == [parts, None]


def test_csv_has_a_line_for_each_quantity(ten: Comparison) -> None:
    side = paper_side(ten, which="all")
    lines = list(csv.DictReader(io.StringIO(render(ten, paper=side, form="csv"))))
    by = {(line["method"], line["quantity"]): line for line in lines}
    ap = by["clmoe", "AP"]
    assert (float(ap["mean"]), float(ap["difference"]), ap["questions"]) == (50.0, 25.0, "40")
    assert (ap[PAPER], ap[PAPER_VLT5], ap["sd"]) == ("51.34", "", "")
    assert by["clmoe", "AF-ref"][PAPER] == "-0.02"
    assert by["clmoe", "AF"][PAPER] == ""
    assert by["clmoe", "AF-ref"]["why"].startswith("missing in the reference: recognition")
    block = [line for line in lines if line["method"].startswith(PAPER_VLT5)]
    assert len(block) == 8 * 12
    assert all(line["mean"] == "" == line[PAPER] for line in block)
    assert float(by["clmoe", "color"]["difference_low"]) >= 0


def test_json_keeps_both_sides_apart(ten: Comparison) -> None:
    side = paper_side(ten, which="all")
    loaded = json.loads(render(ten, paper=side, form="json"))
    assert loaded["groups"][1]["metrics"]["AP"]["mean"] == 50.0
    assert loaded["groups"][1]["metrics"]["AF"]["mean"] is None
    assert loaded["groups"][1]["difference"]["overall"]["mean"] == 25.0
    assert loaded["paper"][PAPER]["clmoe"]["ap"] == 51.34
    assert set(loaded["paper"][PAPER_VLT5]) >= {"Vanilla", "Multitask"}


def test_markdown_and_latex_hold_every_table(ten: Comparison) -> None:
    side = paper_side(ten, which="llava")
    found = tables(ten, paper=side)
    markdown, tex = (render(ten, paper=side, form=form) for form in ("markdown", "latex"))
    assert markdown.count("\n| ---") == len(found) == tex.count(r"\begin{tabular}")
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == len(found)
    assert tex.startswith(r"% \usepackage{booktabs}")
    assert "\n- paper, LLaVA-7B: " in markdown
    assert "\n% paper, LLaVA-7B: " in tex


def test_latex_of_one_table() -> None:
    table = Table("a_b, 95 % & more", ["method", "AF"], [["x_1", "-0.02±1.5"], ["rmoe", "-"]])
    assert latex(table).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{a\_b, 95 \% \& more}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & AF \\",
        r"\midrule",
        r"x\_1 & $-$0.02$\pm$1.5 \\",
        r"rmoe & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("LLaVA-7B", "LLaVA-7B"),
        ("-1.0 to -0.5", "$-$1.0 to $-$0.5"),
        ("{a}\\", r"\{a\}\textbackslash{}"),
        ("lr=3e-4", "lr=3e-4"),
    ],
)
def test_escaping(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.parametrize(
    ("suffix", "form"), [(".csv", "csv"), (".md", "markdown"), (".tex", "latex"), (".json", "json")]
)
def test_the_suffix_tells_the_format(suffix: str, form: str) -> None:
    assert form_of(suffix) == form


def test_an_unknown_suffix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the suffix '.docx' tells no format") as caught:
        form_of(".docx")
    assert caught.value.hint == "name the file *.csv, *.md, *.tex, *.json, or give --format"


def test_spread_over_seeds_is_shown_with_the_mean() -> None:
    rows: dict[int, Any] = {0: [2, 3], 1: [1, 3], 2: [3, 3]}
    found = compare([made_run(f"c{s}", seed=s, rows={2: rows[s]}) for s in rows])
    ap, accuracy, *_ = tables(found, paper=paper_side(found, which="none"))
    assert ap.rows == [["clmoe", "3", "62.50", "12.50", "31.45 to 93.55"]]
    assert accuracy.rows == [["clmoe", "50.0±62.1", "75.0±0.0"]]

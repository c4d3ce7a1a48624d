"""Each command calls the one function of the pipeline that it stands for, with what was typed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clmoe.errors import InputStageError
from clmoe_cli import console

STEP = {"run": None, "task": None, "overrides": []}
MEASURED = {
    "rank": 64, "experts": 8, "dtype": None, "device": None, "repeats": 20, "seconds": 30.0,
}  # fmt: skip
CASES: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    (
        "prepare",
        "prepare",
        (Path("runs"),),
        {"recipe": None, "source": None, "overrides": [], "name": None, "keep_going": False},
    ),
    (
        "prepare --source vqa_v2 data.root=DIR --keep-going --name v --recipe my.yaml",
        "prepare",
        (Path("runs"),),
        {
            "recipe": "my.yaml",
            "source": "vqa_v2",
            "overrides": ["data.root=DIR"],
            "name": "v",
            "keep_going": True,
        },
    ),
    (
        "train --task recognition",
        "train",
        (Path("runs"),),
        {**STEP, "task": "recognition", "again": False, "yes": False},
    ),
    (
        "train --lr 1e-4 --seed 3 train.epochs=2 --again --yes --run other",
        "train",
        (Path("runs"),),
        {
            "run": "other",
            "task": None,
            "overrides": ["train.lr=0.0001", "train.seed=3", "train.epochs=2"],
            "again": True,
            "yes": True,
        },
    ),
    ("route --top-k 3", "route", (Path("runs"),), {**STEP, "overrides": ["route.top_k=3"]}),
    ("merge --gamma 0.7", "merge", (Path("runs"),), {**STEP, "overrides": ["merge.gamma=0.7"]}),
    (
        "merge --task location a.b=x=y",
        "merge",
        (Path("runs"),),
        {**STEP, "task": "location", "overrides": ["a.b=x=y"]},
    ),
    ("index --kind lda", "index", (Path("runs"),), {**STEP, "overrides": ["index.kind=lda"]}),
    (
        "eval --report ap-af",
        "evaluate",
        (Path("runs"),),
        {
            "run": None,
            "after": None,
            "tasks": "seen",
            "report": "ap-af",
            "oracle_task": None,
            "overrides": [],
            "yes": False,
        },
    ),
    (
        "eval --after location --tasks all --report none --oracle-task --beta 0.25 --yes",
        "evaluate",
        (Path("runs"),),
        {
            "run": None,
            "after": "location",
            "tasks": "all",
            "report": "none",
            "oracle_task": True,
            "overrides": ["eval.beta=0.25"],
            "yes": True,
        },
    ),
    (
        "report report.scorer=vqa",
        "report",
        (Path("runs"),),
        {"run": None, "kind": "all", "overrides": ["report.scorer=vqa"], "figures": False},
    ),
    (
        "report --figures --report none --run other",
        "report",
        (Path("runs"),),
        {"run": "other", "kind": "none", "overrides": [], "figures": True},
    ),
    (
        "compare one two",
        "compare",
        (Path("runs"),),
        {
            "names": ["one", "two"],
            "baseline": None,
            "scorer": None,
            "paper": "llava",
            "form": None,
            "out": None,
            "figures": None,
        },
    ),
    (
        "compare table1 --baseline vanilla --scorer vqa --paper all --format latex --out t.tex"
        " --figures drawn",
        "compare",
        (Path("runs"),),
        {
            "names": ["table1"],
            "baseline": "vanilla",
            "scorer": "vqa",
            "paper": "all",
            "form": "latex",
            "out": Path("t.tex"),
            "figures": Path("drawn"),
        },
    ),
    (
        "run shapes method.name=vanilla --name v --dry-run",
        "run",
        (Path("runs"),),
        {
            "recipe": "shapes",
            "overrides": ["method.name=vanilla"],
            "name": "v",
            "dry_run": True,
            "keep_going": False,
        },
    ),
    (
        "study table2_ablation_shapes train.epochs=2 --jobs 2",
        "study",
        (Path("runs"),),
        {
            "source": "table2_ablation_shapes",
            "overrides": ["train.epochs=2"],
            "dry_run": False,
            "print_commands": False,
            "jobs": 2,
        },
    ),
    (
        "study my.yaml --dry-run",
        "study",
        (Path("runs"),),
        {
            "source": "my.yaml",
            "overrides": [],
            "dry_run": True,
            "print_commands": False,
            "jobs": 1,
        },
    ),
    ("status --verify", "status", (Path("runs"),), {"run": None, "verify": True}),
    ("use vanilla", "use", (Path("runs"), "vanilla"), {}),
    (
        "export --out learned",
        "export_bundle",
        (Path("runs"),),
        {"out": Path("learned"), "run": None, "after": None, "push": None},
    ),
    (
        "export --after location --out learned --push USER/NAME --run other",
        "export_bundle",
        (Path("runs"),),
        {"out": Path("learned"), "run": "other", "after": "location", "push": "USER/NAME"},
    ),
    (
        "import DIR --out location --base llava-hf/llava-1.5-7b-hf",
        "import_adapter",
        (Path("DIR"),),
        {"out": Path("location"), "base": "llava-hf/llava-1.5-7b-hf"},
    ),
    ("audit one two three", "audit", ([Path("one"), Path("two"), Path("three")],), {}),
    ("doctor", "doctor", (Path("runs"),), {"recipe": None, "overrides": []}),
    (
        "doctor shapes train.micro_batch=4 --runs other",
        "doctor",
        (Path("other"),),
        {"recipe": "shapes", "overrides": ["train.micro_batch=4"]},
    ),
    (
        "doctor train.micro_batch=4 base.quantization=nf4",
        "doctor",
        (Path("runs"),),
        {"recipe": None, "overrides": ["train.micro_batch=4", "base.quantization=nf4"]},
    ),
    (
        "bench layer --hidden 64 --intermediate 96 --tokens 8 --rank 16 --experts 4 --device cpu",
        "bench_layer",
        (),
        {
            **MEASURED,
            "hidden": 64,
            "intermediate": 96,
            "tokens": 8,
            "rank": 16,
            "experts": 4,
            "device": "cpu",
        },
    ),
    (
        "bench train --model llava-7b --layers 2 --batch 1 --tokens 8 --gradient-checkpointing",
        "bench_train",
        (),
        {
            **MEASURED,
            "model": "llava-7b",
            "layers": 2,
            "batch": 1,
            "tokens": 8,
            "checkpointing": True,
        },
    ),
    (
        "bench eval --batch-size 8 --questions 32 --new-tokens 5 --dtype bfloat16 --seconds 9",
        "bench_eval",
        (),
        {
            **MEASURED,
            "model": None,
            "layers": None,
            "batch": 8,
            "questions": 32,
            "new_tokens": 5,
            "dtype": "bfloat16",
            "repeats": 10,
            "seconds": 9.0,
        },
    ),
    ("recipes list", "recipes_list", (), {}),
    ("recipes show shapes", "recipes_show", ("shapes",), {}),
    ("recipes explain merge.gamma", "recipes_explain", ("merge.gamma",), {}),
]


@pytest.mark.parametrize(("line", "name", "arguments", "options"), CASES, ids=lambda c: str(c)[:40])
def test_a_command_calls_the_pipeline(
    clmoe_command: Callable[..., Any],
    pipeline: Any,
    line: str,
    name: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    ran = clmoe_command(*shlex.split(line))
    assert ran.code == 0, ran.err
    assert pipeline.calls == [(name, arguments, options)]


@pytest.mark.parametrize("line", ["--runs there status", "status --runs there"])
def test_runs_stands_before_or_after_the_command(
    clmoe_command: Callable[..., Any], pipeline: Any, line: str
) -> None:
    ran = clmoe_command(*line.split())
    assert pipeline.calls[0][1] == (Path("there"),)
    assert ran.out.splitlines()[-1] == "next: clmoe --runs there merge"


def test_suggested_commands_repeat_what_was_typed(
    clmoe_command: Callable[..., Any], pipeline: Any
) -> None:
    ran = clmoe_command("train", "--run", "my run", "--runs", "the runs")
    assert ran.out.splitlines()[-1] == "next: clmoe --runs 'the runs' merge --run 'my run'"
    pipeline.error = InputStageError("no", hint="clmoe train --task location")
    ran = clmoe_command("merge", "--run", "b")
    assert ran.err.splitlines()[-1] == "hint: clmoe train --task location --run b"
    pipeline.error = InputStageError("no", hint="clmoe recipes show shapes")
    assert clmoe_command("merge", "--run", "b").err.endswith("hint: clmoe recipes show shapes\n")


def test_runs_comes_from_the_environment(
    clmoe_command: Callable[..., Any], pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLMOE_RUNS", "elsewhere")
    ran = clmoe_command("status")
    assert pipeline.calls[0][1] == (Path("elsewhere"),)
    assert ran.out.splitlines()[-1] == "next: clmoe merge"


def test_bare_prepare_uses_the_recipe_of_the_folder(
    clmoe_command: Callable[..., Any], pipeline: Any
) -> None:
    Path("clmoe.yaml").write_text("name: mine\n", encoding="utf-8")
    clmoe_command("prepare")
    clmoe_command("prepare", "--recipe", "shapes")
    assert [options["recipe"] for _, _, options in pipeline.calls] == ["clmoe.yaml", "shapes"]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("train recognition", "'recognition' is not KEY=VALUE", "--task recognition?"),
        ("train train.ler", "'train.ler' is not KEY=VALUE", "did you mean train.lr=VALUE?"),
        ("merge gama:0.7", "'gama:0.7' is not KEY=VALUE", "did you mean merge.gamma=VALUE?"),
        ("eval =3", "'=3' is not KEY=VALUE", "look like train.lr=1e-4"),
        ("merge --gamma 0.7 merge.gamma=0.8", "merge.gamma is given twice", "give it once"),
        ("run method.name=vanilla", "the recipe is missing", "clmoe run shapes method.name=va"),
        ("trian", "no such command 'trian'. Did you mean 'train'?", "clmoe --help"),
        ("train --tsk x", "no such option: --tsk", "clmoe train --help"),
        ("eval --report some", "'some' is not one of 'ap-af', 'all', 'none'", "clmoe eval --help"),
        ("run", "missing argument 'RECIPE'", "clmoe run --help"),
        ("import DIR", "missing option '--out'", "clmoe import --help"),
        ("audit", "missing argument 'ADAPTER'", "clmoe audit --help"),
        ("compare", "missing argument 'RUN|STUDY'", "clmoe compare --help"),
        ("compare a --format pdf", "'pdf' is not one of 'table', 'csv'", "clmoe compare --help"),
        ("study", "missing argument 'FILE'", "clmoe study --help"),
        ("study train.lr=1", "the study is missing before 'train.lr=1'", "clmoe study --help"),
        ("study x --jobs 0", "invalid value for '--jobs'", "clmoe study --help"),
        ("study x --dry-run --print-commands", "give one of them", "clmoe study x --dry-run"),
        ("merge --gamma much", "invalid value for '--gamma'", "clmoe merge --help"),
    ],
)
def test_usage_errors_exit_2_with_a_way_out(
    clmoe_command: Callable[..., Any], pipeline: Any, line: str, message: str, hint: str
) -> None:
    ran = clmoe_command(*line.split())
    assert ran.code == 2
    assert ran.out == ""
    first, second = ran.err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith("hint: ")
    assert hint in second
    assert pipeline.calls == []


def test_a_bare_command_prints_the_help_and_exits_2(clmoe_command: Callable[..., Any]) -> None:
    ran = clmoe_command()
    assert ran.code == 2
    assert "Usage: clmoe" in ran.out
    assert ran.err == ""


class TestClean:
    """It shows first; it removes with --yes, or after a yes on a terminal."""

    def applied(self, pipeline: Any) -> list[bool]:
        return [options["apply"] for _, _, options in pipeline.calls]

    def test_without_a_terminal_it_only_shows(
        self, clmoe_command: Callable[..., Any], pipeline: Any
    ) -> None:
        assert clmoe_command("clean").code == 0
        assert self.applied(pipeline) == [False]

    def test_yes_shows_and_removes(self, clmoe_command: Callable[..., Any], pipeline: Any) -> None:
        clmoe_command("clean", "--yes")
        assert self.applied(pipeline) == [False, True]

    def test_nothing_to_remove_is_not_removed(
        self, clmoe_command: Callable[..., Any], pipeline: Any
    ) -> None:
        pipeline.result = replace(pipeline.result, tables=())
        clmoe_command("clean", "--yes")
        assert self.applied(pipeline) == [False]

    @pytest.mark.parametrize("answer", [True, False])
    def test_a_terminal_is_asked(
        self,
        clmoe_command: Callable[..., Any],
        pipeline: Any,
        monkeypatch: pytest.MonkeyPatch,
        answer: bool,
    ) -> None:
        monkeypatch.setattr(console, "ask", lambda question: answer)
        clmoe_command("clean")
        assert self.applied(pipeline) == ([False, True] if answer else [False])

    def test_json_is_one_object(self, clmoe_command: Callable[..., Any], pipeline: Any) -> None:
        assert clmoe_command("clean", "--yes", "--json").json["exit_code"] == 0
        assert clmoe_command("clean", "--json").json["exit_code"] == 0
        assert self.applied(pipeline) == [False, True, False]

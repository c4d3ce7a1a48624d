"""`--processes N`: the same results as one process, and the error of the process that failed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file
from torch.distributed.run import config_from_args, get_args_parser

from clmoe.errors import ClmoeError, UsageError
from clmoe.parallel import failures, launch
from tests.conftest import SMALL
from tests.parallel.failing import HOW

ROOT = Path(__file__).parents[2]
MULTI_GPU = ROOT / "recipes" / "accelerate" / "multi_gpu.yaml"
# Two processes take eight samples each of a batch of 16; so does the single process, in turn.
SAME_SHARES = "train.micro_batch=8"


def command(runs: Path, *words: str, module: str = "clmoe_cli", **variables: str) -> Any:
    code = f"from clmoe.parallel import launch; launch.MODULE = {module!r}; "
    code += "import sys; from clmoe_cli.app import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "--runs", str(runs), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **variables},
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The finished run of one process, and the same of two."""
    from clmoe.stages import pipeline

    root = tmp_path_factory.mktemp("pair")
    pipeline.run(
        root / "one", recipe="shapes", overrides=[*SMALL, SAME_SHARES], name="small",
        dry_run=False, keep_going=False,
    )  # fmt: skip
    done = command(
        root / "two", "run", "shapes", "--name", "small", "--processes", "2", "--json", *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "run"
    assert "Warning" not in done.stderr
    return root / "one" / "small", root / "two" / "small"


def tensors(run: Path, stage: str) -> dict[str, Any]:
    return {
        f"{path.relative_to(run)}:{name}": tensor.double()
        for folder in sorted((run / stage).iterdir())
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "merge", "route", "index"])
def test_two_processes_give_what_one_gives(pair: tuple[Path, Path], stage: str) -> None:
    one, two = (tensors(run, stage) for run in pair)
    assert one
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if stage in ("train", "merge"):  # the same micro-batches, so the same sums
            assert tensor.equal(two[name]), name
        worst = float((tensor - two[name]).norm() / tensor.norm().clamp_min(1e-30))
        assert worst <= (1e-6 if stage == "route" else 1e-5), name


@pytest.mark.slow
def test_two_processes_lose_and_answer_alike(pair: tuple[Path, Path]) -> None:
    one, two = pair
    for path in sorted((one / "train").glob("*/losses.json")):
        other = json.loads((two / path.relative_to(one)).read_text())
        assert json.loads(path.read_text()) == pytest.approx(other, rel=1e-5)
        manifest = json.loads((two / path.relative_to(one)).with_name("manifest.json").read_text())
        assert manifest["counts"]["processes"] == 2
        assert manifest["counts"]["micro_batch"] == 8
    cells = sorted(one.glob("eval/*/*/samples.jsonl"))
    assert len(cells) == 9
    for cell in cells:
        assert cell.read_text() == (two / cell.relative_to(one)).read_text()
    for path in sorted(one.glob("route/*/router/task_router.json")):
        mine, other = (json.loads(p.read_text()) for p in (path, two / path.relative_to(one)))
        for name, router in mine["routers"].items():
            if router["gap"] > 1e-6:
                assert router["experts"] == other["routers"][name]["experts"]


@pytest.mark.slow
def test_answers_that_differ_in_bf16_are_reported(tmp_path: Path) -> None:
    """Other sums of a batch are rounded otherwise, so equal answers are no promise there.

    One process takes all 16 samples of a batch at once, two take eight each; `pytest -s` shows how
    many answers differ.
    """
    answers = []
    for processes in ("1", "2"):
        words = ["run", "shapes", "--name", "small", "--processes", processes]
        done = command(tmp_path / processes, *words, *SMALL, "base.dtype=bfloat16")
        assert done.returncode == 0, done.stderr
        samples = [
            json.loads(line)
            for cell in sorted((tmp_path / processes / "small" / "eval").glob("*/*/samples.jsonl"))
            for line in cell.read_text().splitlines()
        ]
        answers.append([(s["question_id"], s["prediction"]) for s in samples])
    one, two = answers
    assert [question for question, _ in one] == [question for question, _ in two]
    differing = sum(a != b for a, b in zip(one, two, strict=True))
    found = f"bfloat16, one process and two: {differing} of {len(one)} answers differ"
    sys.stdout.write(found + "\n")


@pytest.mark.slow
def test_only_the_leading_process_writes(pair: tuple[Path, Path]) -> None:
    log = (pair[1] / "log.jsonl").read_text().splitlines()
    begun = [e["node"] for e in map(json.loads, log) if e.get("kind", e.get("event")) == "begin"]
    assert begun
    assert len(begun) == len(set(begun))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("raise", 4, "error: process 1 of 2: the second process stumbled\n  a.jpg:1: torn\n"),
        ("memory", 5, "error: process 1 of 2: train/01-recognition ran out of memory on cpu"),
        ("kill", 1, "error: process 1 of 2 was killed by SIGKILL\n"),
    ],
)
def test_a_failing_process_ends_the_run_with_its_own_error(
    tmp_path: Path, how: str, code: int, said: str
) -> None:
    words = ["run", "shapes", "--name", "small", "--processes", "2", *SMALL]
    done = command(tmp_path, *words, module="tests.parallel.failing", **{HOW: how})
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "ChildFailedError" not in done.stderr
    assert not list((tmp_path / ".store").glob("train/*/manifest.json"))


@pytest.mark.slow
def test_sharding_that_silently_became_copies_is_refused(tmp_path: Path) -> None:
    words = ["run", "shapes", "--name", "small", "--processes", "2", *SMALL, "eval.beta=1"]
    done = command(tmp_path, *words, ACCELERATE_USE_FSDP="true")
    assert done.returncode == 1
    assert "FSDP over 2 processes was asked for, but Accelerate made MULTI_CPU" in done.stderr


@pytest.mark.slow
def test_processes_for_gpus_are_refused_where_there_is_none(tmp_path: Path) -> None:
    """The command that the shipped configuration names, on a machine without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = ["launch", "--config_file", str(MULTI_GPU), "--num_processes", "2"]
    words += ["--main_process_port", "0", "-m", "clmoe_cli", "--runs", str(tmp_path)]
    words += ["run", "shapes", "--name", "small", *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={name: value for name, value in os.environ.items() if name != launch.CPU},
        cwd=ROOT,
    )
    assert done.returncode != 0
    said = "error: Accelerate's launcher started 2 processes for GPUs, but PyTorch finds no GPU"
    assert said in done.stderr
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.slow
def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    words = ["run", "shapes", "--processes", "2", *SMALL, "train.epochs=400"]
    with subprocess.Popen(
        [sys.executable, "-m", "clmoe_cli", "--runs", str(tmp_path), *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        stderr = process.stderr
        assert stderr is not None
        for line in stderr:
            if line.startswith("train recognition"):
                break
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        rest = stderr.read()
        assert process.wait(timeout=60) == 130
    assert "interrupted; nothing lost" in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("option", ["--run", "--runs", "--task", "--node", "--max", "-h", "-m"])
def test_a_command_line_for_each_launcher(option: str) -> None:
    words = ["train", option, "small", "--processes", "2", "train.lr=1e-3"]
    options = launch.accelerate_options(2)
    parsed = launch.parsed(launch_command_parser(), options, words)
    assert (parsed.multi_gpu, parsed.num_processes, parsed.num_machines) == (True, 2, 1)
    assert (parsed.module, parsed.mixed_precision) == (True, "no")
    assert (parsed.training_script, parsed.training_script_args) == ("clmoe_cli", words)
    parser = get_args_parser()  # type: ignore[no-untyped-call]
    parsed = launch.parsed(parser, launch.torchrun_options(2), words)
    assert (parsed.standalone, parsed.nproc_per_node, parsed.run_path) == (True, "2", False)
    assert (parsed.module, parsed.training_script) == (True, "clmoe_cli")
    assert config_from_args(parsed)[2] == ["-u", "-m", "clmoe_cli", *words]  # type: ignore[no-untyped-call]


def test_a_launcher_that_refuses_its_options_prints_no_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ClmoeError, match=r"does not start: .*unrecognized arguments: --no-such$"):
        launch.parsed(argparse.ArgumentParser("torchrun"), ["--no-such"], [])
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_run_is_named_with_an_option(runs: Path) -> None:
    words = ["train", "--run", "small", "--task", "recognition", "--again", "--lr=4e-3"]
    done = command(runs, *words, "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "train"
    manifest = json.loads((runs / "small" / "train" / "01-recognition/manifest.json").read_text())
    assert manifest["counts"]["processes"] == 2


@pytest.mark.parametrize(
    ("processes", "variables", "said"),
    [
        (0, {}, "--processes is 0; it must be at least 1"),
        (3, {"WORLD_SIZE": "2"}, "--processes is 3, but the launcher started 2"),
        (2, {"ACCELERATE_MIXED_PRECISION": "no"}, "Accelerate's launcher started a single process"),
    ],
)
def test_numbers_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, processes: int, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        launch.wanted(processes)


def test_how_many_are_still_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (launch.wanted(None), launch.wanted(1), launch.wanted(2)) == (1, 1, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (launch.wanted(None), launch.wanted(2)) == (1, 1)


def test_the_earliest_failure_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures.first(tmp_path) is None
    monkeypatch.setenv(failures.FOLDER, str(tmp_path))
    for rank, message in (("1", "torn"), ("0", "connection closed"), ("2", "torn")):
        monkeypatch.setenv("RANK", rank)
        failures.leave(message, hint=None, problems=["p"], exit_code=4, traceback="t")
    report = failures.first(tmp_path)
    assert report is not None
    assert (report.rank, report.message, report.problems) == (1, "torn", ("p",))
    error = launch.LaunchedError(report, size=3)
    assert isinstance(error, ClmoeError)
    assert (str(error), error.exit_code) == ("process 1 of 3: torn", 4)

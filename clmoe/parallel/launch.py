"""Starting a command in several processes: Accelerate's launcher on GPUs, torchrun's on a CPU.

Accelerate's own launcher starts a single process where there is no GPU, so it is not used there.
Both run inside this process, which then reports the failure of the process that failed first.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError, UsageError
from clmoe.parallel import failures

MODULE = "clmoe_cli"
ASKED = "CLMOE_PROCESSES"
"""Environment variable with the number of processes that were asked for."""
CPU = "ACCELERATE_USE_CPU"
"""Accelerate's environment variable that asks for the CPU where there are GPUs."""
STARTED_BY_ACCELERATE = "ACCELERATE_MIXED_PRECISION"
"""An environment variable that Accelerate's launcher always sets."""


class LaunchedError(ClmoeError):
    """A launched process failed; carries what that process said.

    Attributes:
        problems: Its single bad places.
        traceback: Its traceback.
    """

    def __init__(self, report: failures.Report, *, size: int) -> None:
        """Take over message, hint and exit code of the process."""
        where = f"process {report.rank} of {size}: " if report.rank else ""
        super().__init__(where + report.message, hint=report.hint)
        self.problems = report.problems
        self.exit_code = report.exit_code
        self.traceback = report.traceback


def launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def cpu_asked() -> bool:
    """Whether the environment asks for the CPU, in any of the words that Accelerate takes."""
    return os.environ.get(CPU, "").lower() in {"1", "true", "t", "yes", "y", "on"}


def wanted(processes: int | None) -> int:
    """How many processes this command still has to start: 1 means that it runs right here.

    Raises:
        UsageError: The number is not positive, or not that of the launcher which started us.
    """
    if processes is None:
        return 1
    if processes < 1:
        raise UsageError(f"--processes is {processes}; it must be at least 1", hint="--processes 2")
    if launched():
        if processes != int(os.environ["WORLD_SIZE"]):
            raise UsageError(
                f"--processes is {processes}, but the launcher started {os.environ['WORLD_SIZE']}",
                hint="leave --processes out under a launcher",
            )
        return 1
    if processes > 1 and STARTED_BY_ACCELERATE in os.environ:
        raise UsageError(
            f"--processes is {processes}, but Accelerate's launcher started a single process",
            hint=f"clmoe ... --processes {processes} without Accelerate's launcher",
        )
    return processes


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run ``clmoe ARGUMENTS`` in several processes on this machine and wait for them.

    Args:
        processes: How many.
        arguments: The command line without the program's name.

    Raises:
        LaunchedError: The first process that failed, with its own message.
        ClmoeError: A process was killed.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    on_gpu = torch.cuda.is_available() and not cpu_asked()
    if on_gpu and torch.cuda.device_count() < processes:
        raise UsageError(
            f"--processes is {processes}, but this machine has {torch.cuda.device_count()} GPUs"
        )
    start = _accelerate if on_gpu else _torchrun
    with tempfile.TemporaryDirectory(prefix="clmoe-") as folder:
        variables = {
            failures.FOLDER: folder,
            ASKED: str(processes),
            "OMP_NUM_THREADS": os.environ.get(
                "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))
            ),
        }
        try:
            with _variables(variables), _quiet_launcher():
                start(processes, arguments)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            raise ClmoeError(f"stopped by {error.sigval.name}") from error
        except ChildFailedError as error:
            raise _cause(Path(folder), error.failures, size=processes) from error


def _cause(folder: Path, exits: Mapping[int, Any], *, size: int) -> ClmoeError | KeyboardInterrupt:
    """What made the processes fail: a kill from outside, or else the earliest report."""
    for rank, failure in sorted(exits.items()):
        if failure.exitcode in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
            name = signal.Signals(-failure.exitcode).name
            return ClmoeError(
                f"process {rank} of {size} was killed by {name}",
                hint="SIGKILL often means that the machine ran out of memory: clmoe doctor",
            )
    report = failures.first(folder)
    if report is None:
        codes = ", ".join(f"process {r}: {f.exitcode}" for r, f in sorted(exits.items()))
        return ClmoeError(f"the launched processes failed without a word (exit codes: {codes})")
    if report.exit_code == 128 + signal.SIGINT:
        return KeyboardInterrupt()
    return LaunchedError(report, size=size)


def torchrun_options(processes: int) -> list[str]:
    """Options of torch.distributed.run on one machine, and the module to run."""
    return ["--standalone", f"--nproc-per-node={processes}", "-m", MODULE]


def accelerate_options(processes: int) -> list[str]:
    """Options of ``accelerate launch`` on one machine with several GPUs, and the module to run."""
    return [
        "--multi_gpu", f"--num_processes={processes}", "--num_machines=1", "--main_process_port=0",
        "--mixed_precision=no", "--dynamo_backend=no", "--module", MODULE,
    ]  # fmt: skip


def parsed(parser: Any, options: Sequence[str], arguments: Sequence[str]) -> Any:
    """What a launcher's parser makes of its own options, with the module's arguments put in.

    The parser never sees the arguments: torchrun's takes ``--run`` for one of its own options.

    Raises:
        ClmoeError: The parser refuses the options; it has no chance to print its usage.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            found = parser.parse_args(list(options))
    except SystemExit as error:
        why = (said.getvalue().strip().splitlines() or ["no reason given"])[-1]
        raise ClmoeError(f"the launcher of the processes does not start: {why}") from error
    found.training_script_args = list(arguments)
    return found


def _torchrun(processes: int, arguments: Sequence[str]) -> None:
    from torch.distributed import run as torchrun

    launcher: Any = torchrun  # it has no annotations
    parser = launcher.get_args_parser()
    launcher.run(parsed(parser, torchrun_options(processes), arguments))


def _accelerate(processes: int, arguments: Sequence[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    launch_command(parsed(launch_command_parser(), accelerate_options(processes), arguments))


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Keep the launcher's own log of signals and failures off standard error: we report them."""
    logger = logging.getLogger("torch.distributed.elastic")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)

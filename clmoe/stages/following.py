"""One process leads a command; the others perform the stages that it announces.

Only the leading process opens runs for writing, holds locks, begins and commits versions. A stage
that several processes share is announced with everything it needs, and each of them calls the
stage's `perform`, whose collective steps meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from clmoe.parallel.world import World, join, part, world
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.context import Context
from clmoe.stages.exhaustion import exhausted
from clmoe.training.fitting import is_out_of_memory

STAGE_MODULES = {
    "prepare": "clmoe.stages.prepare",
    "train": "clmoe.stages.train",
    "route": "clmoe.stages.route",
    "merge": "clmoe.stages.merge",
    "index": "clmoe.stages.index",
    "eval": "clmoe.stages.evaluate",
}
SHARED = {"train", "route", "index", "eval"}


@dataclass(frozen=True)
class _Job:
    runs: Path
    run: str
    node: Node
    folder: Path


def perform(context: Context, node: Node, folder: Path) -> Any:
    """Perform a stage in this process, and in those that follow it where the stage is shared."""
    if node.stage in SHARED:
        world().tell(_Job(context.run.runs_dir, context.run.name, node, folder))
    return _perform(context, node, folder)


@contextmanager
def together() -> Iterator[bool]:
    """Meet the other processes of this command; yields whether this one leads it.

    In a following process everything is done when the context is entered. A leading process that
    fails sends no farewell: its launcher ends the others.
    """
    ours = join()
    if not ours.leads:
        _follow(ours)
    yield ours.leads
    if ours.leads:
        ours.tell(None)
    part()


def _follow(ours: World) -> None:
    context: Context | None = None
    while True:
        job: _Job | None = ours.tell(None)
        if job is None:
            return
        if context is None or (context.run.runs_dir, context.run.name) != (job.runs, job.run):
            context = Context(Run.open(job.runs, job.run))
        _perform(context, job.node, job.folder)


def _perform(context: Context, node: Node, folder: Path) -> Any:
    try:
        return import_module(STAGE_MODULES[node.stage]).perform(context, node, folder)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise exhausted(context.recipe, node, device=context.device) from error

"""Bringing one node up to date: skip, take from the store, or run its stage and commit."""

from __future__ import annotations

import time
from collections.abc import Mapping

from clmoe.errors import BusyError, ClmoeError
from clmoe.events import Note, StageFinished, StageSkipped, StageStarted, emit
from clmoe.runs.commit import Workspace
from clmoe.runs.freshness import NodeState
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.context import Context
from clmoe.stages.following import perform
from clmoe.stages.result import Outcome

WAIT_SECONDS = 0.5


def bring_up_to_date(
    context: Context, node: Node, *, external: Mapping[str, str] | None = None
) -> Outcome:
    """Make a node fresh, with the least work, and say what that took."""
    run = context.run
    state = run.state(node, external=external)
    label = state.node.label
    if state.status == "fresh":
        emit(StageSkipped(node.stage, node.task, "nothing changed"))
        return _outcome(context, state, status="skipped", reason="nothing changed", seconds=0.0)
    reason = state.text
    if run.adopt(node, external=external):
        emit(StageSkipped(node.stage, node.task, "the store has this version"))
        return _outcome(
            context, run.state(node), status="skipped", reason="taken from the store", seconds=0.0
        )
    emit(StageStarted(node.stage, node.task, reason))
    started = time.monotonic()
    workspace = _begin(run, node, external=external)
    if workspace is None:
        return _outcome(
            context,
            run.state(node),
            status="skipped",
            reason="made by another process",
            seconds=time.monotonic() - started,
        )
    result = perform(context, workspace.node, workspace.path)
    run.commit(
        workspace,
        outputs=result.outputs,
        counts=result.counts,
        summary={**result.summary, "lines": list(result.lines)},
        warnings=result.warnings,
        device=context.used_device,
    )
    seconds = time.monotonic() - started
    emit(StageFinished(node.stage, node.task, seconds, "; ".join(result.lines[:1])))
    after = run.state(node, external=external)
    if after.status != "fresh":
        raise ClmoeError(
            f"{label} was committed but is {after.text}",
            hint="did a file change while it ran? run the same command again",
        )
    return _outcome(context, after, status="done", reason=reason, seconds=seconds)


def _begin(run: Run, node: Node, *, external: Mapping[str, str] | None) -> Workspace | None:
    """Begin a version; where another run's process is making it, wait and adopt it instead."""
    told = False
    while True:
        try:
            return run.begin(node, external=external)
        except BusyError as error:
            if not told:
                emit(Note(f"waiting: {error}"))
                told = True
            time.sleep(WAIT_SECONDS)
            if run.adopt(node, external=external):
                return None


def _outcome(
    context: Context, state: NodeState, *, status: str, reason: str, seconds: float
) -> Outcome:
    manifest = context.run.manifest(state.node)
    summary = {k: v for k, v in manifest.summary.items() if k != "lines"}
    assert state.directory is not None
    return Outcome(
        node_label=state.node.label,
        status=status,
        reason=reason,
        seconds=seconds,
        fingerprint=manifest.fingerprint,
        path=state.directory,
        summary={**summary, "counts": dict(manifest.counts)},
        lines=tuple(manifest.summary.get("lines", ())),
    )

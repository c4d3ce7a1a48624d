"""How long a study will take, from what the store measured before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clmoe.recipe.fingerprint import canonical_json
from clmoe.runs.layout import Layout
from clmoe.runs.manifest import Manifest, read_manifest
from clmoe.runs.plan import ALL_TASKS, Node
from clmoe.stages.study_plan import CellWork

_EPOCHS = "train.epochs"
# They decide what comes out, and hardly how long it takes.
_NO_COST = ("train.lr", "protocol.order", "merge.gamma", "eval.beta", "index.shrinkage")


@dataclass(frozen=True)
class Estimate:
    """Seconds of work, done one after another.

    Attributes:
        training: Of the trainings to do; None where none was measured on the same base.
        others: Of the other stages whose like was measured.
        measured: How many stages of the store that rests on.
    """

    training: float | None
    others: float
    measured: int

    def text(self, *, jobs: int) -> str:
        """One sentence."""
        if self.training is None:
            return "time: unknown until one training was done"
        total = self.training + self.others
        shared = f"; at best {spent(total / jobs)} with --jobs {jobs}" if jobs > 1 else ""
        return (
            f"time: about {spent(self.training)} of training and {spent(self.others)} of other "
            f"stages, from {self.measured} stages measured in the store{shared}"
        )


@dataclass(frozen=True)
class _Measured:
    """A committed stage: `questions` it read, where known."""

    stage: str
    base: str
    like: str
    epochs: float
    questions: int | None
    seconds: float
    joint: bool


def estimate(runs_dir: Path, todo: Iterable[tuple[CellWork, Node]]) -> Estimate:
    """Seconds for stages to do, in proportion to the questions they read.

    Stages of the same kind on the same base count; where there are some whose recipe differs in
    nothing that costs time, only those.

    Args:
        runs_dir: The folder of all runs.
        todo: The stages, each with its run.
    """
    store = _measurements(Layout(runs_dir.absolute()))
    used: set[int] = set()
    training, others, unknown = 0.0, 0.0, False
    for work, node in todo:
        near = _alike(store, work, node)
        used |= {id(item) for item in near}
        if not near:
            unknown |= node.stage == "train"
            continue
        seconds = _seconds(near, work, node)
        if node.stage == "train":
            training += seconds
        else:
            others += seconds
    return Estimate(None if unknown else training, others, len(used))


def spent(seconds: float) -> str:
    """Seconds, roughly: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _alike(store: Sequence[_Measured], work: CellWork, node: Node) -> list[_Measured]:
    same = [m for m in store if m.stage == node.stage and _same_base(m, work, node)]
    like = _like(work.plan.part(node))
    return [m for m in same if m.like == like] or same


def _seconds(near: Sequence[_Measured], work: CellWork, node: Node) -> float:
    """The mean pace of like stages times the questions; without those, their mean time."""
    epochs = float(work.plan.part(node).get(_EPOCHS, 1.0))
    asked = [work.questions.get(r.output) for r in work.plan.reads(node) if _is_data(r.node.stage)]
    known = [m for m in near if m.questions]
    if asked and known and all(number is not None for number in asked):
        questions = sum(number or 0 for number in asked)
        pace = sum(m.seconds / (m.questions or 1) / m.epochs for m in known) / len(known)
        return pace * questions * epochs
    tasks = len(work.plan.tasks) if node.task == ALL_TASKS else 1
    each = [m.seconds / m.epochs / (tasks if m.joint else 1) for m in near]
    return sum(each) / len(each) * epochs * tasks


def _same_base(measured: _Measured, work: CellWork, node: Node) -> bool:
    return not work.plan.reads_base(node) or measured.base == work.plan.recipe.base.model


def _measurements(layout: Layout) -> list[_Measured]:
    manifests = [m for stage in layout.stages() for m in _manifests(stage)]
    questions = {
        output.sha256: int(m.counts[name])
        for m in manifests
        if m.stage == "prepare"
        for name, output in m.outputs.items()
        if name in m.counts
    }
    return [_measured(m, questions) for m in manifests if m.stage != "report"]


def _measured(manifest: Manifest, questions: Mapping[str, int]) -> _Measured:
    read = [questions.get(i.sha256) for i in manifest.inputs if _is_data(i.node)]
    known = read and all(number is not None for number in read)
    return _Measured(
        stage=manifest.stage,
        base=manifest.base["name"] if manifest.base else "",
        like=_like(manifest.recipe),
        epochs=float(manifest.recipe.get(_EPOCHS, 1.0)),
        questions=sum(number or 0 for number in read) if known else None,
        seconds=manifest.seconds,
        joint=manifest.label.endswith(f"-{ALL_TASKS}"),
    )


def _manifests(stage: Path) -> list[Manifest]:
    found = []
    for path in sorted(stage.glob("[!.]*")):
        try:
            found.append(read_manifest(path))
        except (OSError, ValueError):
            continue  # not a version: `clean` lists it
    return found


def _like(part: Mapping[str, Any]) -> str:
    return canonical_json(
        {k: v for k, v in part.items() if k not in _NO_COST and not k.endswith(".seed")}
    )


def _is_data(node: str) -> bool:
    return node == "prepare"

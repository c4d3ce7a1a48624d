"""What the runs of a study would do: which stages they share, and which the store has already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clmoe.errors import InputStageError
from clmoe.recipe.load import ResolvedRecipe
from clmoe.recipe.schema import Recipe
from clmoe.recipe.study_cells import Cell, TasksOf
from clmoe.runs.base_identity import base_identity
from clmoe.runs.freshness import Resolver
from clmoe.runs.hashing import DigestCache
from clmoe.runs.identities import identities
from clmoe.runs.journal import prepared_tasks
from clmoe.runs.layout import Layout
from clmoe.runs.manifest import read_manifest
from clmoe.runs.plan import Node, Plan, order_tasks
from clmoe.runs.run import DATA_OUTPUT, SOURCE_FILE, Run


@dataclass(frozen=True)
class CellWork:
    """One run of a study and what is left of it.

    Attributes:
        cell: The run.
        plan: Its stages.
        identity: Label of each node but the report -> its identity.
        stored: The identities whose results the store has.
        finished: Whether every stage of the run is up to date, the report too.
        questions: `task/split` -> number of questions, as far as known.
    """

    cell: Cell
    plan: Plan
    identity: Mapping[str, str]
    stored: frozenset[str]
    finished: bool
    questions: Mapping[str, int]

    def nodes(self) -> list[Node]:
        """Every node but the report."""
        return [node for node in self.plan.nodes() if node.label in self.identity]

    def trainings(self) -> list[str]:
        """The identities of its trainings, in order."""
        return [self.identity[node.label] for node in self.nodes() if node.stage == "train"]


@dataclass(frozen=True)
class Counts:
    """How much a study is.

    Attributes:
        trainings: Of all runs, each by itself.
        distinct: Different ones among them; at most so many, see `clmoe.runs.identities`.
        stored: Those of the different ones that the store has.
        new: For each run, its trainings that neither the store nor an earlier run has.
        todo: Identity -> the run and node that would make it, of every stage.
    """

    trainings: int
    distinct: int
    stored: int
    new: tuple[int, ...]
    todo: Mapping[str, tuple[CellWork, Node]]


class Tasks:
    """The tasks of a recipe in the order `forward`: as prepared, else as its source says."""

    def __init__(
        self, runs_dir: Path, *, prepare: Callable[[ResolvedRecipe, str], None] | None = None
    ) -> None:
        """`prepare` is called where only the prepared data tells; None: that is an error."""
        self._layout = Layout(runs_dir.absolute())
        self._prepare = prepare

    def __call__(self, resolved: ResolvedRecipe, name: str) -> tuple[str, ...]:
        """The tasks of a recipe; `name` is that of a run which needs them.

        Raises:
            InputStageError: Only the prepared data tells, and it is not prepared.
        """
        found = self._known(resolved.recipe)
        if found is None and self._prepare is not None:
            self._prepare(resolved, name)
            found = self._known(resolved.recipe)
        if found is None:
            raise InputStageError(
                f"only the data of {resolved.recipe.data.source} tells which tasks there are: "
                "prepare it first",
                hint=f"clmoe prepare --recipe RECIPE --name {name}",
            )
        return found

    def _known(self, recipe: Recipe) -> tuple[str, ...] | None:
        from clmoe.data.sources.reading import select_tasks
        from clmoe.data.sources.registry import get_source

        source = get_source(recipe.data.source)
        prepared = _stored_prepare(self._layout, Plan(recipe, ()))
        if prepared is not None:
            return prepared_tasks(prepared / DATA_OUTPUT / SOURCE_FILE)
        if source.default_order and recipe.data.question_types is None:
            return select_tasks(recipe.data.tasks, source.default_order)
        return None


def look_at(runs_dir: Path, cells: Sequence[Cell], *, tasks_of: TasksOf) -> list[CellWork]:
    """What is left of each run; nothing is written but the cache of digests.

    Raises:
        InputStageError, UsageError: As `tasks_of` and the order of tasks do.
    """
    layout = Layout(runs_dir.absolute())
    cache = DigestCache(layout.digests)
    works = []
    for cell in cells:
        recipe = cell.resolved.recipe
        tasks = order_tasks(tasks_of(cell.resolved, cell.run), order=recipe.protocol.order)
        plan = Plan(recipe, tasks)
        identity = identities(plan)
        finished = _finished(layout, cell)
        stored = frozenset(identity.values()) if finished else frozenset()
        if not finished and layout.store.is_dir():
            resolver = _resolver(layout, plan, cache=cache)
            nodes = [node for node in plan.nodes() if node.label in identity]
            stored = frozenset(
                identity[node.label] for node in nodes if resolver.state(node).stored
            )
        questions = _questions(layout, plan)
        works.append(CellWork(cell, plan, identity, stored, finished, questions))
    return works


def count(works: Iterable[CellWork]) -> Counts:
    """Count the stages of a study by identity."""
    chosen = list(works)
    stored = frozenset[str]().union(*(work.stored for work in chosen))
    todo: dict[str, tuple[CellWork, Node]] = {}
    new = []
    for work in chosen:
        fresh = [n for n in work.nodes() if work.identity[n.label] not in stored | todo.keys()]
        new.append(sum(node.stage == "train" for node in fresh))
        todo.update({work.identity[node.label]: (work, node) for node in fresh})
    every = [identity for work in chosen for identity in work.trainings()]
    return Counts(
        trainings=len(every),
        distinct=len(set(every)),
        stored=len(set(every) & stored),
        new=tuple(new),
        todo=todo,
    )


def _finished(layout: Layout, cell: Cell) -> bool:
    """Whether every stage that the recipe asks for is up to date in the run of that name."""
    if not (layout.run(cell.run) / "run.json").is_file():
        return False
    run = Run(layout.root, name=cell.run, resolved=cell.resolved)
    try:
        wanted = {node.label for node in run.nodes()}
        return all(s.status == "fresh" for s in run.states() if s.node.label in wanted)
    except InputStageError:
        return False


def _resolver(layout: Layout, plan: Plan, *, cache: DigestCache) -> Resolver:
    """Judges nodes by the store alone."""
    return Resolver(
        plan,
        layout=layout,
        current={},
        base=partial(base_identity, plan.recipe.base, cache=cache),
        cache=cache,
    )


def _stored_prepare(layout: Layout, plan: Plan) -> Path | None:
    """The version of prepare that the store has for a recipe, if it has one."""
    resolver = _resolver(layout, plan, cache=DigestCache(layout.digests))
    state = resolver.state(Node("prepare"))
    if not state.stored or state.fingerprint is None:
        return None
    return layout.version("prepare", state.fingerprint)


def _questions(layout: Layout, plan: Plan) -> Mapping[str, int]:
    """How many questions each task and split has: as prepared, else as the recipe limits them."""
    prepared = _stored_prepare(layout, plan)
    if prepared is not None:
        return {key: int(value) for key, value in read_manifest(prepared).counts.items()}
    limits = {split: getattr(plan.recipe.data, f"{split}_per_task") for split in _SPLITS}
    return {
        f"{task}/{split}": limit
        for task in plan.tasks
        for split, limit in limits.items()
        if limit is not None
    }


def final_metrics(runs_dir: Path, run: str, names: Sequence[str]) -> dict[str, float | None]:
    """Metrics of a finished run, from its report; None where one is undefined."""
    path = Layout(runs_dir.absolute()).run(run) / "report" / "report.json"
    found = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return {name: found[name]["value"] for name in names}


_SPLITS = ("train", "val", "test")

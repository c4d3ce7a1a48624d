"""From a study to its runs: every combination checked as a recipe, and a name for each.

A run's name is `STUDY-WORD-WORD`, one word for each thing that its point sets: a method as it is
called, else the last part of the key and the value (`gamma0.7`, `kind_lda`), then the order of the
tasks, then `seed0`. So it does not change when other points come or go. Combinations that give
the same recipe are one run, which has the name of the first.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import factorial
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from clmoe.errors import UsageError
from clmoe.recipe.fingerprint import canonical_json, fingerprint
from clmoe.recipe.keys import keys
from clmoe.recipe.load import ResolvedRecipe, load_recipe
from clmoe.recipe.study import (
    ORDER_KEY,
    SEED_KEY,
    Orders,
    Point,
    Study,
    find_study,
    read_study,
)

LONGEST_WORD = 40

TasksOf: TypeAlias = Callable[[ResolvedRecipe, str], Sequence[str]]
"""The tasks of a recipe in the order `forward`; the text is the name of a run that needs them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study.

    Attributes:
        run: Its name.
        values: The value of each key that varies in the study, and its own name where it has one.
        overrides: KEY=VALUE; with the study's recipe they give the run.
        resolved: The checked recipe.
    """

    run: str
    values: dict[str, Any]
    overrides: tuple[str, ...]
    resolved: ResolvedRecipe


def load_study(source: str | Path, *, overrides: Sequence[str] = ()) -> Study:
    """Reads a shipped study (by name) or a file (by path) and checks every run but for orders.

    Args:
        source: A shipped study's name, or a path.
        overrides: KEY=VALUE for every run, stronger than the file's.

    Raises:
        UsageError: With every problem of the file, or one for each run that shows it.
    """
    path = find_study(source)
    problems: list[str] = []
    study = read_study(path, problems=problems)
    fixed = []
    for given in overrides:
        key = given.partition("=")[0].strip()
        if key in study.keys:
            problems.append(f"override {given}: {key} varies in this study")
        else:
            fixed.append(given)
    if study.recipe:
        problems += _recipe_problems(study, overrides=fixed)
    if problems:
        problems = list(dict.fromkeys(problems))
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UsageError(f"the study {path.name} has {count}:\n{lines}", hint="clmoe study --help")
    return study


def study_cells(
    study: Study, *, tasks_of: TasksOf, overrides: Sequence[str] = ()
) -> tuple[Cell, ...]:
    """The runs of a study: all points of the first order and seed, then of the next.

    Args:
        study: From `load_study`.
        tasks_of: Asked only where there are random orders; for each point.
        overrides: As for `load_study`.

    Raises:
        UsageError: There are fewer orders than were asked for, or a recipe is wrong.
    """
    words = _Words(study.keys)
    cells: dict[str, Cell] = {}
    names: Counter[str] = Counter()
    starts = ["-".join([study.name, *words.of_point(point)]) for point in study.points]
    ends = [f"-{words.of(SEED_KEY, seed)}" for seed in study.seeds] or [""]

    def tasks(place: int, word: str) -> Sequence[str]:
        name = f"{starts[place]}{word}{ends[0]}"
        return tasks_of(_resolve(study, study.points[place], {}, overrides), name)

    orders = [_orders(study.orders, tasks=partial(tasks, i)) for i in range(len(starts))]
    seeds: list[dict[str, Any]] = [{SEED_KEY: seed} for seed in study.seeds] or [{}]
    for (seed, end), turn in product(zip(seeds, ends, strict=True), range(len(orders[0]))):
        for point, start, ordered in zip(study.points, starts, orders, strict=True):
            word, order = ordered[turn]
            run, setting = f"{start}{word}{end}", {**order, **seed}
            cell = _cell(study, point, setting, overrides, run=run)
            flat = {k: v for k, v in cell.resolved.recipe.flat().items() if k != "name"}
            if (same := canonical_json(flat)) not in cells:
                cells[same] = cell
                names[run] += 1
    return tuple(
        cell if names[cell.run] == 1 else _renamed(cell, mark=fingerprint(same)[:6])
        for same, cell in cells.items()
    )


def random_orders(tasks: Sequence[str], *, count: int, seed: int) -> list[tuple[str, ...]]:
    """Different permutations of tasks, neither forward nor reverse; more only adds to the list.

    Raises:
        UsageError: There are not so many.
    """
    forward = tuple(tasks)
    seen = {forward, forward[::-1]}
    there = factorial(len(forward)) - len(seen)
    if count > there:
        raise UsageError(
            f"orders: {count} random orders of {len(forward)} tasks, but besides forward and "
            f"reverse there are {there}"
        )
    draw = random.Random(seed)
    found: list[tuple[str, ...]] = []
    while len(found) < count:
        order = tuple(draw.sample(forward, len(forward)))
        if order not in seen:
            seen.add(order)
            found.append(order)
    return found


def _orders(
    orders: Orders | None, *, tasks: Callable[[str], Sequence[str]]
) -> list[tuple[str, dict[str, Any]]]:
    """A word of a run's name, and what it sets, for each order: the random ones last.

    `tasks` is given the first word.
    """
    if orders is None:
        return [("", {})]
    given = [name for name in ("forward", "reverse") if getattr(orders, name)]
    words = [f"-{name}" for name in given]
    words += [f"-random{orders.seed}.{number}" for number in range(1, orders.random + 1)]
    values: list[str | list[str]] = [*given]
    if orders.random:
        drawn = random_orders(tasks(words[0]), count=orders.random, seed=orders.seed)
        values += [list(order) for order in drawn]
    return [(word, {ORDER_KEY: value}) for word, value in zip(words, values, strict=True)]


def _resolve(
    study: Study, point: Point, setting: dict[str, Any], overrides: Sequence[str]
) -> ResolvedRecipe:
    given = {**study.overrides, **point.values, **setting}
    lines = [f"{key}={_text(value)}" for key, value in given.items()]
    return load_recipe(study.recipe, overrides=[*lines, *overrides])


def _cell(
    study: Study, point: Point, setting: dict[str, Any], overrides: Sequence[str], *, run: str
) -> Cell:
    resolved = _resolve(study, point, setting, overrides)
    flat = resolved.recipe.flat()
    values = {key: flat[key] for key in study.keys}
    if point.name is not None:
        values["name"] = point.name
    return Cell(run, values, resolved.overrides, resolved)


def _renamed(cell: Cell, *, mark: str) -> Cell:
    return Cell(f"{cell.run}-{mark}", cell.values, cell.overrides, cell.resolved)


def _recipe_problems(study: Study, *, overrides: Sequence[str]) -> list[str]:
    """What the recipes say, each problem once; with a run that has it where not all do."""
    words = _Words(study.keys)
    where: dict[str, list[str]] = {}
    for point in study.points:
        try:
            _resolve(study, point, {}, overrides)
        except UsageError as error:
            lines = error.message.split("\n")
            for line in lines[1:] or lines:
                label = ", ".join(words.of_point(point))
                where.setdefault(line.strip(), []).append(label)
    return [
        problem if len(labels) == len(study.points) else f"{problem} [{labels[0]}]"
        for problem, labels in where.items()
    ]


def _text(value: Any) -> str:
    """A value as YAML on one line, as an override has it."""
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


class _Words:
    """The words of a study's runs' names."""

    def __init__(self, varying: Sequence[str]) -> None:
        """Two keys whose last parts are equal are called by their whole names."""
        ends = Counter(key.rpartition(".")[2] for key in varying)
        self._of_key = {
            key: key if ends[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2]
            for key in varying
        } | {SEED_KEY: "seed"}

    def of_point(self, point: Point) -> list[str]:
        if point.name is not None:
            return [point.name]
        return [self.of(key, value) for key, value in point.values.items()]

    def of(self, key: str, value: Any) -> str:
        if isinstance(value, str) and "number" in keys()[key].type:
            value = _number(value)  # YAML reads 1e-3 as text, and the recipe as a number
        if isinstance(value, bool) or value is None:
            shown = f"_{'null' if value is None else str(value).lower()}"
        elif isinstance(value, int | float):
            shown = f"{value:.10g}"
        elif isinstance(value, list):
            shown = "_" + ".".join(map(str, value))
        else:
            shown = f"_{value}"
        bare = key == "method.name" or (key == ORDER_KEY and isinstance(value, str))
        word = shown.removeprefix("_") if bare else self._of_key[key] + shown
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-") or "x"
        if len(plain) > LONGEST_WORD:
            plain = f"{plain[: LONGEST_WORD - 9]}-{fingerprint(word)[:8]}"
        return plain

"""Opening a run to work on it: made from a recipe, or as it is with some keys changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clmoe.errors import InputStageError, UsageError
from clmoe.events import Note, emit
from clmoe.recipe.load import DEFAULT_RECIPE, load_recipe, shipped_recipes
from clmoe.recipe.schema import Recipe
from clmoe.runs.layout import Layout
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.effects import tell_without_effect
from clmoe.stages.refusals import refuse_method, refuse_settings

if TYPE_CHECKING:
    from clmoe.stages.context import Context


def create_run(
    runs_dir: Path,
    *,
    recipe: str | None,
    source: str | None,
    overrides: Sequence[str],
    name: str | None,
    keep_going: bool,
    keep: bool = True,
    needs_base: bool = False,
) -> Run:
    """The run that a command names: reopened as it is, or made from (or given) a recipe.

    With neither recipe nor source an existing run keeps its own recipe and overrides. With
    ``needs_base`` a base model that cannot be used is refused before anything is written, as are
    settings that would fail later.
    """
    changes = [*overrides]
    known = Layout(runs_dir.absolute()).run_names()
    kept = name or DEFAULT_RECIPE
    if recipe is None and source is None and kept in known:
        opened = Run.open(runs_dir, kept)
        old, seen = opened.recipe, opened.preview(changes)
        refuse_settings(seen.recipe)
        refuse_method(seen)
        if needs_base and seen.recipe.base != old.base:
            check_base_of(seen.recipe)
        for key in opened.set_overrides(changes) if changes else ():
            emit(Note(f"recipe changed: {key}"))
        tell_without_effect(seen.recipe, before=old, overrides=changes)
        return opened
    if recipe is None and source is not None and source in {r.name for r in shipped_recipes()}:
        recipe = source
    elif source is not None:
        changes = [f"data.source={source}", *changes]
        if recipe is None:
            label = source.replace("/", "-").replace(":", "-")
            changes = [f"name={label}", *changes]
    if keep_going:
        changes.append("data.keep_going=true")
    resolved = load_recipe(recipe, overrides=changes)
    label = name or resolved.recipe.name
    wanted = Run(runs_dir.absolute(), name=label, resolved=resolved)
    refuse_settings(resolved.recipe)
    refuse_method(wanted)
    tell_without_effect(
        resolved.recipe, before=_without(recipe, changes, else_=resolved.recipe), overrides=changes
    )
    if not keep:
        return wanted
    if needs_base:
        check_base_of(resolved.recipe)
    after = resolved.recipe.flat()
    before = Run.open(runs_dir, label).recipe.flat() if label in known else after
    for key, value in after.items():
        if before[key] != value:
            emit(Note(f"the recipe of the run {label} changed: {key} {before[key]} -> {value}"))
    return Run.create(runs_dir, resolved=resolved, name=label)


def _without(recipe: str | None, overrides: Sequence[str], *, else_: Recipe) -> Recipe:
    """A recipe with no overrides but the method; ``else_`` where it has none or needs them."""
    naming = [item for item in overrides if item.partition("=")[0].strip() == "method.name"]
    if len(naming) == len(overrides):
        return else_
    try:
        return load_recipe(recipe, overrides=naming).recipe
    except UsageError:
        return else_


def check_base_of(recipe: Recipe) -> None:
    """Refuse a base model that is not there, is no vision-language model or has no processor.

    Of its weights only the files' headers are read; the built-in base needs no look.
    """
    if recipe.base.model != "tiny" or recipe.base.revision is not None:
        from clmoe.model.backbone import check_base

        check_base(recipe.base)


@contextmanager
def open_run(
    runs_dir: Path,
    *,
    run: str | None,
    overrides: Sequence[str],
    refuse: Callable[[Run], None] = lambda run: None,
    every_cell: bool = False,
) -> Iterator[tuple[Context, list[str]]]:
    """Open a run for writing, with overrides written down; yields its context and notes.

    ``refuse`` looks at the run as it would be and raises before anything is written; with
    ``every_cell`` tasks are asked that are not learned yet.
    """
    opened = Run.open(runs_dir, run)
    with opened.lock():
        seen = opened.preview(overrides)
        refuse_settings(seen.recipe)
        refuse(seen)
        if seen.recipe.base != opened.recipe.base:
            check_base_of(seen.recipe)
        notes = []
        if overrides:
            old = opened.recipe
            notes = [f"recipe changed: {change}" for change in opened.set_overrides(overrides)]
            tell_without_effect(seen.recipe, before=old, overrides=overrides, every_cell=every_cell)
        state = opened.state(Node("prepare"))
        if state.status != "fresh":
            raise InputStageError(
                f"the data is not up to date: {state.text}",
                hint=f"clmoe prepare --name {opened.name}",
            )
        from clmoe.stages.context import Context

        yield Context(opened), notes

"""A study file: one recipe, what all its runs share, and what varies between them.

```yaml
# The first line says what the study shows.
name: gamma                      # begins the name of each run
recipe: shapes                   # a shipped recipe, or a file beside this one
overrides: {train.epochs: 2}     # keys that hold for every run
grid:                            # every combination; a list of grids is all of theirs
  method.name: [clmoe, ema]
  merge.gamma: [0.6, 0.7]
runs:                            # and these; a name replaces what varies in the run's name
  - {name: moelora, merge.rule: none, eval.beta: 1.0}
seeds: [0, 1, 2]                 # each of them with every train.seed
orders: {random: 3, seed: 0, forward: true, reverse: true}    # and every protocol.order
```

Keys may be dotted or nested, as in a recipe; relative paths are taken from the file's folder.
`clmoe.recipe.study_cells` makes runs of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from clmoe.errors import UsageError, did_you_mean
from clmoe.recipe.documents import StrictLoader, absolute, find_recipe, shipped_folder
from clmoe.recipe.explain import unknown_key
from clmoe.recipe.keys import keys
from clmoe.recipe.load import ShippedRecipe
from clmoe.recipe.schema import SECTIONS, flatten

STUDIES_FOLDER = "paper"
ORDER_KEY = "protocol.order"
SEED_KEY = "train.seed"
_FIELDS = ("name", "recipe", "overrides", "grid", "runs", "seeds", "orders")
_ORDER_FIELDS = ("random", "seed", "forward", "reverse")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Orders:
    """Orders of the tasks: as given, turned round, and random permutations drawn from a seed."""

    random: int = 0
    seed: int = 0
    forward: bool = True
    reverse: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """What one combination of the grid, or one of the runs, sets; with a name of its own or not."""

    values: Mapping[str, Any]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """A study file whose own structure is sound.

    Attributes:
        name: The study's name.
        description: The first line of the file's comment.
        recipe: A shipped recipe's name, or the absolute path of a file.
        overrides: Keys that hold for every run.
        points: What varies, besides seeds and orders.
        seeds: Values of `train.seed`; empty: the recipe's.
        orders: Values of `protocol.order`; None: the recipe's.
        path: The file.
    """

    name: str
    description: str
    recipe: str
    overrides: Mapping[str, Any]
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    orders: Orders | None
    path: Path

    @property
    def keys(self) -> tuple[str, ...]:
        """The recipe keys that vary, in the order of the file."""
        named = dict.fromkeys(key for point in self.points for key in point.values)
        if self.orders is not None:
            named[ORDER_KEY] = None
        if self.seeds:
            named[SEED_KEY] = None
        return tuple(named)


def shipped_studies() -> list[ShippedRecipe]:
    """The studies of the package, sorted by name: each with the first line of its comment."""
    found = []
    for path in sorted((shipped_folder() / STUDIES_FOLDER).glob("*.yaml")):
        found.append(ShippedRecipe(path.stem, _description(path.read_text(encoding="utf-8"))))
    return found


def find_study(source: str | Path) -> Path:
    """The file of a shipped study's name, or of a path.

    Raises:
        UsageError: There is neither, or it is a recipe's name.
    """
    text = str(source)
    names = [study.name for study in shipped_studies()]
    if text in names:
        return shipped_folder() / STUDIES_FOLDER / f"{text}.yaml"
    path = Path(text).expanduser()
    if path.is_file():
        return path.absolute()
    if (shipped_folder() / f"{text}.yaml").is_file():
        raise UsageError(f"{text} is a recipe, not a study", hint=f"clmoe run {text}")
    raise UsageError(
        f"no study {text!r}: neither a shipped study ({', '.join(names)}) nor a file"
        f"{did_you_mean(text, names)}",
        hint="clmoe study --help",
    )


def read_study(path: Path, *, problems: list[str]) -> Study:
    """Reads a study file; what is wrong goes to `problems`, and the rest is kept.

    Raises:
        UsageError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is not a mapping with {', '.join(_FIELDS)}")
    return _Reader(path.absolute(), problems).study(content, description=_description(text))


def _description(text: str) -> str:
    first = text.split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


@dataclass(slots=True)
class _Reader:
    """Reads the fields of one file and notes what is wrong with them."""

    path: Path
    problems: list[str] = field(default_factory=list)

    def study(self, content: Mapping[Any, Any], *, description: str) -> Study:
        for key in content:
            if key in _FIELDS:
                continue
            said = did_you_mean(str(key), _FIELDS)
            if key in SECTIONS or key in keys():
                said = ": it is a key of a recipe, so write it below overrides, grid or runs"
            self.problems.append(f"{key} is not a field of a study{said}")
        grids = self._grids(content.get("grid"))
        runs = self._runs(content.get("runs"))
        found = Study(
            name=self._name(content),
            description=description,
            recipe=self._recipe(content),
            overrides=self._known(content.get("overrides"), where="overrides"),
            points=(*grids, *runs) or (Point({}),),
            seeds=self._seeds(content.get("seeds")),
            orders=self._orders(content.get("orders")),
            path=self.path,
        )
        self._check_twice(found)
        if not any(content.get(name) for name in ("grid", "runs", "seeds", "orders")):
            self.problems.append("nothing varies: give grid, runs, seeds or orders")
        return found

    def _name(self, content: Mapping[Any, Any]) -> str:
        name = content.get("name")
        if name is None:
            self.problems.append("name is missing: it begins the name of each run")
        elif not isinstance(name, str) or not _NAME.fullmatch(name):
            self.problems.append(
                f"name: {name!r} cannot begin the name of a run: letters, digits, '.', '_' and "
                "'-' only"
            )
        return str(name)

    def _recipe(self, content: Mapping[Any, Any]) -> str:
        source = content.get("recipe")
        if not isinstance(source, str):
            self.problems.append("recipe is missing: a shipped recipe's name, or a file")
            return ""
        try:
            path = find_recipe(source, beside=self.path.parent)
        except UsageError as error:
            self.problems.append(error.message)
            return ""
        return source if path == shipped_folder() / f"{source}.yaml" else str(path.resolve())

    def _grids(self, given: Any) -> list[Point]:
        grids = given if isinstance(given, list) else [] if given is None else [given]
        points = []
        for place, grid in enumerate(grids, start=1):
            where = "grid" if len(grids) == 1 else f"grid {place}"
            axes: dict[str, list[Any]] = {}
            for key, values in self._flat(grid, where=where).items():
                if not isinstance(values, list) or not values:
                    self.problems.append(f"{where}: {key} must be a list of values")
                    continue
                if twice := [value for value in values if values.count(value) > 1]:
                    self.problems.append(f"{where}: {key} has {twice[0]} twice")
                axes[key] = [absolute(key, value, folder=self.path.parent) for value in values]
            if axes:
                chosen = product(*axes.values())
                points += [Point(dict(zip(axes, values, strict=True))) for values in chosen]
        return points

    def _runs(self, given: Any) -> list[Point]:
        if given is not None and not isinstance(given, list):
            self.problems.append("runs must be a list of mappings of keys")
            return []
        points = []
        for place, run in enumerate(given or [], start=1):
            where = f"runs {place}"
            name = run.pop("name", None) if isinstance(run, dict) else None
            if name is not None and not _NAME.fullmatch(str(name)):
                self.problems.append(f"{where}: the name {name!r} cannot be part of a run's name")
            values = self._known(run, where=where)
            points.append(Point(values, None if name is None else str(name)))
        return points

    def _seeds(self, given: Any) -> tuple[int, ...]:
        if given is None:
            return ()
        sound = isinstance(given, list) and all(type(s) is int and s >= 0 for s in given)
        if not sound or not given or len(set(given)) < len(given):
            self.problems.append(
                f"seeds must be a list of different whole numbers from 0 on (it is {given!r})"
            )
            return ()
        return tuple(given)

    def _orders(self, given: Any) -> Orders | None:
        if given is None:
            return None
        if not isinstance(given, dict):
            self.problems.append(
                f"orders must be a mapping with {', '.join(_ORDER_FIELDS)} (it is {given!r})"
            )
            return None
        values: dict[str, Any] = {}
        for key, value in given.items():
            whole = key in ("random", "seed")
            if key not in _ORDER_FIELDS:
                near = did_you_mean(str(key), _ORDER_FIELDS)
                self.problems.append(f"orders: {key} is not a field of orders{near}")
            elif whole and (type(value) is not int or value < 0):
                self.problems.append(f"orders: {key} must be a whole number (it is {value!r})")
            elif not whole and not isinstance(value, bool):
                self.problems.append(f"orders: {key} must be true or false (it is {value!r})")
            else:
                values[key] = value
        found = Orders(**values)
        if not (found.random or found.forward or found.reverse):
            self.problems.append("orders: there is no order: random is 0, the others are false")
        return found

    def _check_twice(self, study: Study) -> None:
        varied = {key for point in study.points for key in point.values}
        for key, shorthand, used in (
            (SEED_KEY, "seeds", bool(study.seeds)),
            (ORDER_KEY, "orders", study.orders is not None),
        ):
            if used and (key in varied or key in study.overrides):
                self.problems.append(f"{key} is given twice: by {shorthand} and by its key")

    def _known(self, block: Any, *, where: str) -> dict[str, Any]:
        return {
            key: absolute(key, value, folder=self.path.parent)
            for key, value in self._flat(block, where=where).items()
        }

    def _flat(self, block: Any, *, where: str) -> dict[str, Any]:
        """The recipe keys of a mapping, dotted."""
        if block is None:
            return {}
        if not isinstance(block, dict):
            self.problems.append(f"{where} must be a mapping of keys (it is {block!r})")
            return {}
        found: dict[str, Any] = {}
        for key, value in flatten({str(key): value for key, value in block.items()}).items():
            if key in SECTIONS:
                self.problems.append(f"{where}: {key} is a section: write its keys below it")
            elif key == "name":
                self.problems.append(f"{where}: name cannot be set: the study names its runs")
            elif key not in keys():
                self.problems.append(f"{where}: {unknown_key(key)}")
            else:
                found[key] = value
        return found

"""The sources of questions by name, and what every source must offer.

A source turns files (or nothing, as the built-in `shapes` does) into lists of `Example`.
Choosing, limiting, cutting a validation split, checking images and writing is done once for all
of them, in `clmoe.data.prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from clmoe.data.checks import Problems
from clmoe.data.example import Example
from clmoe.errors import UsageError
from clmoe.recipe.schema import Data

SOURCES = {
    "shapes": "clmoe.data.sources.shapes:ShapesSource",
    "vqa_v2": "clmoe.data.sources.vqa_v2:VqaV2Source",
    "cl4vqa": "clmoe.data.sources.cl4vqa:Cl4VqaSource",
    "vqacl": "clmoe.data.sources.vqacl:VqaclSource",
    "easy_vqa": "clmoe.data.sources.easy_vqa:EasyVqaSource",
    "jsonl": "clmoe.data.sources.jsonl:JsonlSource",
}
"""Name of each source and the class behind it, imported only when it is asked for."""

HUB = "hf:"


@dataclass(frozen=True)
class LoadedSource:
    """What a source found.

    Attributes:
        examples: Questions by (task, split), in the order of the source.
        image_root: The folder that every `Example.image` is relative to.
        order: Every task of the source, in its default order.
        has_validation: Whether the source has a validation split of its own; where it has none,
            one is cut from train.
        statistics: Facts worth keeping that only the source knows, such as questions that belong
            to no task.
    """

    examples: Mapping[tuple[str, str], list[Example]]
    image_root: Path
    order: tuple[str, ...]
    has_validation: bool = True
    statistics: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """A place that questions come from."""

    @property
    def name(self) -> str:
        """The name that `data.source` uses."""
        ...

    @property
    def default_order(self) -> tuple[str, ...]:
        """The tasks in their default order; empty when only the data tells which there are."""
        ...

    @property
    def suffix(self) -> str:
        """The instruction that follows every question, or an empty string."""
        ...

    def required_files(self, config: Data) -> list[Path]:
        """Return the files that the result depends on, whether or not they exist."""
        ...

    def load(self, config: Data, *, workspace: Path, report: Problems) -> LoadedSource:
        """Read the questions; bad records go to `report` and are left out.

        Args:
            config: The `data` part of the recipe.
            workspace: A folder for files that the source makes, such as pictures in `images/`.
            report: Collects what is wrong.

        Raises:
            DataError: Files are missing, all of them named.
            UsageError: The recipe lacks what this source needs.
        """
        ...


def get_source(name: str) -> Source:
    """Return the source called `name`; `hf:NAME` is the data set NAME of the Hugging Face Hub.

    Raises:
        UsageError: There is no such source; the hint has the nearest name.
    """
    if name.startswith(HUB):
        from clmoe.data.sources.hub import HubSource

        return HubSource(name.removeprefix(HUB))
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, n=1)
        known = ", ".join([*SOURCES, f"{HUB}NAME"])
        raise UsageError(
            f"there is no data source '{name}'; there are: {known}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    module, attribute = SOURCES[name].split(":")
    source: Source = getattr(import_module(module), attribute)()
    return source

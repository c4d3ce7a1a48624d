"""What a stage is: a function from committed inputs to files in a workspace, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """What a stage wrote, and what people and later stages should know of it.

    Attributes:
        outputs: Name of each output and its path relative to the workspace.
        counts: Numbers of things (samples, steps, tensors).
        summary: Anything else worth keeping in the manifest, JSON-able.
        warnings: Sentences that a person should read.
        lines: Facts to print, one line each.
    """

    outputs: Mapping[str, str]
    counts: Mapping[str, int] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

"""Stands in for `clmoe.stages.pipeline`: remembers how it was called and hands back a result.

As a script (`python fake_pipeline.py ARGUMENTS`) it runs the command line on itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from clmoe import events
from clmoe.stages.result import Outcome, Result, Table

TASKS = (
    "recognition",
    "location",
    "judge",
    "commonsense",
    "count",
    "action",
    "color",
    "type",
    "subcategory",
    "causal",
)
NAMES = (
    "prepare",
    "train",
    "route",
    "merge",
    "index",
    "evaluate",
    "report",
    "compare",
    "run",
    "status",
    "study",
    "use",
    "clean",
    "recipes_list",
    "recipes_show",
    "recipes_explain",
    "export_bundle",
    "import_adapter",
    "audit",
    "doctor",
    "bench_layer",
    "bench_train",
    "bench_eval",
)


def matrix() -> Table:
    """Eleven rows, ten tasks, and no number shorter than 61.3 or longer than 100.0."""
    labels = ["zero-shot", *(f"after {i:02d} {task}" for i, task in enumerate(TASKS, 1))]
    rows = [
        [label, *(f"{61.3 + row + column / 10:.1f}" for column in range(10)), "100.0"]
        for row, label in enumerate(labels)
    ]
    return Table("accuracy, percent", ["", *TASKS, "AP"], rows)


class FakePipeline:
    """Every function of the pipeline; `calls` has name, positional and keyword arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.error: BaseException | None = None
        self.result = Result(
            command="eval",
            run="shapes",
            outcomes=(
                Outcome(
                    node_label="train/01-recognition",
                    status="done",
                    reason="missing: never run",
                    seconds=12.34,
                    fingerprint="0123456789ab",
                    path=Path("runs/.store/train/0123456789ab"),
                    summary={"loss": float("nan"), "steps": 100},
                    lines=("loss 2.1 -> 0.9",),
                ),
            ),
            tables=(matrix(),),
            data={"ap": 63.5, "folder": Path("runs/shapes")},
            next_command="clmoe merge",
            notes=("theta_1 = phi_1: nothing to merge",),
        )

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Result:
            self.calls.append((name, arguments, options))
            events.emit(events.StageStarted("train", "recognition", "missing: never run"))
            sys.stdout.write("a library that prints\n")
            for _ in events.track(range(3), label="train recognition", every=0.0):
                pass
            if self.error:
                raise self.error
            return self.result

        return call


def main() -> int:
    """Run the command line on a fake pipeline."""
    sys.modules["clmoe.stages.pipeline"] = FakePipeline()  # type: ignore[assignment]
    from clmoe_cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())

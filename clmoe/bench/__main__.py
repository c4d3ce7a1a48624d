"""`python -m clmoe.bench layer|train|eval`: the same as `clmoe bench`, with fewer packages.

It needs torch, transformers, peft and accelerate (with what these need), and nothing else that
`clmoe` depends on; so it runs on a borrowed machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from clmoe.errors import ClmoeError

COMMON = {"--rank": int, "--experts": int, "--dtype": str, "--device": str, "--repeats": int}
OPTIONS: dict[str, dict[str, Any]] = {
    "layer": {"--hidden": int, "--intermediate": int, "--tokens": int},
    "train": {"--model": str, "--layers": int, "--batch": int, "--tokens": int},
    "eval": {
        "--model": str, "--layers": int, "--batch-size": int, "--questions": int,
        "--new-tokens": int,
    },
}  # fmt: skip
NAMES = {"--batch-size": "batch"}


def parse(arguments: Sequence[str] | None) -> tuple[str, dict[str, Any], bool]:
    """What to measure, its options that were given, and whether as JSON."""
    parser = argparse.ArgumentParser(prog="python -m clmoe.bench", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, options in OPTIONS.items():
        one = kinds.add_parser(kind, argument_default=argparse.SUPPRESS)
        for flag, type_ in {**options, **COMMON, "--seconds": float}.items():
            one.add_argument(flag, type=type_, dest=NAMES.get(flag))
        if kind == "train":
            one.add_argument("--gradient-checkpointing", dest="checkpointing", action="store_true")
        one.add_argument("--json", action="store_true", default=False)
    given = vars(parser.parse_args(arguments))
    return given.pop("kind"), given, given.pop("json")


def measure(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """The measurement of one kind."""
    from clmoe.bench.answering import bench_eval
    from clmoe.bench.layer import bench_layer
    from clmoe.bench.training import bench_train

    kinds: dict[str, Callable[..., dict[str, Any]]] = {
        "layer": bench_layer,
        "train": bench_train,
        "eval": bench_eval,
    }
    return kinds[kind](**options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the tables or one JSON object, and return the exit code."""
    kind, options, as_json = parse(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = measure(kind, options)
    except ClmoeError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error}{hint}\n")
        return error.exit_code
    sys.stdout.write((json.dumps(data, indent=2) if as_json else _text(data)) + "\n")
    return 0


def _text(data: dict[str, Any]) -> str:
    from clmoe.bench.sheets import sentences, sheets

    lines = []
    for sheet in sheets(data):
        rows = [sheet.columns, *sheet.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(sheet.columns))]
        lines.append(sheet.title)
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells))
        lines.append("")
    return "\n".join([*lines, *sentences(data)])


if __name__ == "__main__":
    raise SystemExit(main())

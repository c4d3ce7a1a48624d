"""What this machine does in a second: the measurements of `clmoe.bench` as results."""

from __future__ import annotations

from typing import Any

from clmoe.stages.result import Result, Table


def bench_layer(**options: Any) -> Result:
    """Measure an adapted linear and an MLP; options as `clmoe.bench.layer` takes them."""
    from clmoe.bench.layer import bench_layer as measure

    return _result(measure(**options), following="clmoe bench train")


def bench_train(**options: Any) -> Result:
    """Measure a training step; options as `clmoe.bench.training` takes them."""
    from clmoe.bench.training import bench_train as measure

    return _result(measure(**options), following="clmoe bench eval")


def bench_eval(**options: Any) -> Result:
    """Measure answering questions; options as `clmoe.bench.answering` takes them."""
    from clmoe.bench.answering import bench_eval as measure

    return _result(measure(**options), following="clmoe run shapes")


def _result(data: dict[str, Any], *, following: str) -> Result:
    from clmoe.bench.sheets import sentences, sheets

    return Result(
        command=f"bench {data['bench']}",
        tables=tuple(Table(sheet.title, sheet.columns, sheet.rows) for sheet in sheets(data)),
        data=data,
        notes=tuple(sentences(data)),
        next_command=following,
    )

"""The figures of a measurement as tables of text, and what they mean in a sentence or two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clmoe.bench.contenders import OURS
from clmoe.bench.layer import BOTH, FORWARD
from clmoe.bench.training import STEP

# At most so many times a plain LoRA's time; at least so many times faster than one by one.
LORA_AIM = {"cuda": 1.05, "cpu": 1.10}
EVAL_AIM = {"cuda": 4.0, "cpu": 2.0}


@dataclass(frozen=True)
class Sheet:
    """A titled table of text cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def sheets(data: Mapping[str, Any]) -> list[Sheet]:
    """The tables of a measurement, from its plain data."""
    return {"layer": _layer, "train": _train, "eval": _eval}[data["bench"]](data)


def sentences(data: Mapping[str, Any]) -> list[str]:
    """The machine, what memory means, and whether the aim is reached."""
    machine, settings = data["environment"], data["settings"]
    told = [
        f"{machine['device_name']}, torch {machine['versions']['torch']}, {settings['dtype']}, "
        f"CPU threads: {machine['threads']}",
        f"peak MB: {data['memory_measure']}",
    ]
    kind = machine["device"].partition(":")[0]
    if data["bench"] == "eval":
        aim = EVAL_AIM[kind]
        reached = "reached" if data["speedup"] >= aim else "missed"
        return [
            *told,
            f"batches of {settings['batch']} answer {data['speedup']:.1f} times as fast as one "
            f"question at a time (aim: {aim:g}, {reached})",
        ]
    parts = data["blocks"] if data["bench"] == "layer" else {"training step": data}
    aim = LORA_AIM[kind]
    for name, part in parts.items():
        reached = "reached" if part["ratio"] <= aim else "missed"
        told.append(
            f"{name}: {OURS} takes {part['ratio']:.2f} times as long as {data['reference']} "
            f"(aim: at most {aim:.2f}, {reached}; median of {part['rounds']} rounds)"
        )
        told += [f"{name}: too little memory for {one}, left out" for one in part["left_out"]]
    return told


def _layer(data: Mapping[str, Any]) -> list[Sheet]:
    sizes = data["settings"]
    shape = f"{sizes['hidden']} x {sizes['intermediate']}"
    titles = {"linear": f"one linear, {shape}", "mlp": f"an MLP of three linears, {shape}"}
    columns = ["adapter", "forward ms", "with backward ms", *_SHARED, "tokens/s"]
    return [
        Sheet(
            f"{titles[name]}, {sizes['tokens']} tokens",
            columns,
            [
                [
                    row["name"],
                    _number(row[FORWARD]["ms"]["median"]),
                    _number(row[BOTH]["ms"]["median"]),
                    *_shared(row[BOTH]),
                    _number(row[BOTH]["per_second"]),
                ]
                for row in block["rows"]
            ],
        )
        for name, block in data["blocks"].items()
    ]


def _train(data: Mapping[str, Any]) -> list[Sheet]:
    sizes = data["settings"]
    tokens = sizes["tokens"] + sizes["image_tokens"]
    columns = [
        "adapter", "step ms", *_SHARED, "kept MB", "samples/s", "first loss", "last loss",
    ]  # fmt: skip
    rows = [
        [
            row["name"],
            _number(row[STEP]["ms"]["median"]),
            *_shared(row[STEP]),
            _megabytes(row["kept_bytes"]),
            _number(row[STEP]["per_second"]),
            f"{row['losses']['first']:.3f}",
            f"{row['losses']['last']:.3f}",
        ]
        for row in data["rows"]
    ]
    recomputed = ", gradient checkpointing" if sizes["checkpointing"] else ""
    title = (
        f"a training step, {sizes['model']} with {sizes['layers']} blocks, "
        f"{sizes['batch']} samples of {tokens} tokens{recomputed}"
    )
    return [Sheet(title, columns, rows)]


def _eval(data: Mapping[str, Any]) -> list[Sheet]:
    sizes = data["settings"]
    columns = [
        "gate", "at a time", "ms a question", "questions/s", "times faster", "quartiles",
        "peak MB", "other answers %",
    ]  # fmt: skip
    rows = [
        [
            row["name"],
            str(row["batch"]),
            _number(row["ms_a_question"]["median"]),
            _number(row["per_second"]),
            f"{row['speedup']['median']:.2f}",
            _quartiles(row["speedup"]),
            _megabytes(row["peak_bytes"]),
            f"{100 * row['differing']:.1f}",
        ]
        for row in data["rows"]
    ]
    return [Sheet(f"{sizes['questions']} questions to {sizes['model']}", columns, rows)]


_SHARED = ["x LoRA", "quartiles", "peak MB", "% of matmul"]


def _shared(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"{figures['ratio']['median']:.2f}",
        _quartiles(figures["ratio"]),
        _megabytes(figures["peak_bytes"]),
        f"{100 * figures['matmul_share']:.0f}",
    ]


def _quartiles(spread: Mapping[str, float]) -> str:
    return f"{spread['lower']:.2f} to {spread['upper']:.2f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

"""Each measurement through the pipeline, on shapes that take seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from clmoe.bench.answering import differing
from clmoe.bench.contenders import LOOP, LORA, OURS, PLAIN, Mixture, adapted
from clmoe.bench.machine import count_flops
from clmoe.bench.memory import peak_bytes
from clmoe.bench.models import build
from clmoe.bench.sheets import sentences, sheets
from clmoe.bench.training import TrainingStep, checked, step_inputs
from clmoe.errors import ClmoeError, UsageError
from clmoe.stages import pipeline
from clmoe_cli.console import result_as_json

SMALL = {"rank": 8, "experts": 4, "device": "cpu", "repeats": 3, "seconds": 0.0}
ONCE = {**SMALL, "repeats": 1}


def numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list | tuple):
        return [n for item in value for n in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def as_json(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(result_as_json(result, next_command=None)))
    assert all(math.isfinite(number) for number in numbers(found["data"]))
    machine = found["data"]["environment"]
    assert machine["device_name"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["versions"]["torch"] == torch.__version__
    return found


def test_layer() -> None:
    result = pipeline.bench_layer(hidden=32, intermediate=48, tokens=16, **SMALL)
    found = as_json(result)
    assert found["command"] == "bench layer"
    blocks = found["data"]["blocks"]
    assert list(blocks) == ["linear", "mlp"]
    products = {"linear": 32 * 48, "mlp": 3 * 32 * 48}
    adapters = {"linear": 8 * (32 + 48), "mlp": 3 * 8 * (32 + 48)}
    for name, block in blocks.items():
        assert [row["name"] for row in block["rows"]] == [PLAIN, LORA, LOOP, OURS]
        plain, lora, loop, ours = (row["forward"] for row in block["rows"])
        assert plain["flops"] == 2 * 16 * products[name]
        assert lora["flops"] == plain["flops"] + 2 * 16 * adapters[name]
        assert loop["flops"] == ours["flops"] == lora["flops"] + 2 * 16 * 4 * 32  # the router
        both = [row["forward and backward"] for row in block["rows"]]
        assert both[1]["ratio"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
        assert both[2]["peak_bytes"] > 1.5 * both[3]["peak_bytes"]
        assert block["rounds"] == 3
    assert [len(table.rows) for table in result.tables] == [4, 4]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_train(checkpointing: bool) -> None:
    result = pipeline.bench_train(
        model="tiny", layers=2, batch=2, tokens=8, checkpointing=checkpointing, **ONCE
    )
    found = as_json(result)["data"]
    lora, loop, ours = found["rows"]
    assert [row["name"] for row in found["rows"]] == [LORA, LOOP, OURS]
    first = lora["losses"]["first"]
    assert loop["losses"]["first"] == ours["losses"]["first"] == pytest.approx(first)  # B is zero
    assert ours["losses"]["last"] == pytest.approx(loop["losses"]["last"], rel=1e-3)
    assert ours["losses"]["last"] < first
    assert ours["trained"] - lora["trained"] == 2 * 4 * 128  # two routers
    # A, B and two moments of each, in float32, and a step count for each of the twelve
    assert lora["kept_bytes"] == 3 * 4 * lora["trained"] + 4 * 12
    assert result.tables[0].rows[2][0] == OURS


def test_checkpointing_takes_less_memory_and_more_operations() -> None:
    cpu = torch.device("cpu")
    tiny = build("tiny", layers=None, device=cpu, dtype=torch.float32)
    inputs, labels = step_inputs(tiny, batch=4, tokens=32)
    found = []
    for recompute in (False, True):
        ours = dict(adapted(tiny.model, Mixture(rank=8, experts=4)))[OURS]
        step = TrainingStep(ours, inputs=inputs, labels=labels, checkpointing=recompute)
        found.append((count_flops(step), peak_bytes(step, device=cpu), step.losses))
    (flops, peak, losses), (more, less, same) = found
    assert more > flops
    assert less < peak
    assert losses == pytest.approx(same)


def test_eval() -> None:
    result = pipeline.bench_eval(model="tiny", layers=2, batch=4, questions=6, new_tokens=2, **ONCE)
    found = as_json(result)["data"]
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [
        ("instance gate", 1),
        ("instance gate", 4),
        ("instance and task gate", 1),
        ("instance and task gate", 4),
    ]
    assert [row["speedup"]["median"] for row in found["rows"][::2]] == [1.0, 1.0]
    assert found["speedup"] == min(row["speedup"]["median"] for row in found["rows"][1::2])
    assert [row["differing"] for row in found["rows"]] == [0.0] * 4  # float32: the same answers


def test_eval_of_a_random_model_and_of_one_expert() -> None:
    options = {**ONCE, "experts": 1}
    found = pipeline.bench_eval(
        model="llava-small", layers=1, batch=2, questions=2, new_tokens=1, **options
    ).data
    assert [row["name"] for row in found["rows"]] == ["instance gate"] * 2


def test_the_aim_is_told() -> None:
    data = {
        "bench": "train",
        "settings": {"dtype": "bfloat16"},
        "environment": {
            "device": "cuda:1", "device_name": "X", "threads": 4, "versions": {"torch": "9"},
        },
        "memory_measure": "m",
        "reference": LORA,
        "rounds": 7,
        "ratio": 1.06,
        "left_out": [LOOP],
    }  # fmt: skip
    assert sentences(data) == [
        "X, torch 9, bfloat16, CPU threads: 4",
        "peak MB: m",
        "training step: clmoe takes 1.06 times as long as PEFT LoRA "
        "(aim: at most 1.05, missed; median of 7 rounds)",
        "training step: too little memory for loop over experts, left out",
    ]
    data["environment"]["device"] = "cpu"
    assert "at most 1.10, reached" in sentences(data)[2]


def test_a_row_of_a_table_by_hand() -> None:
    step = {
        "ms": {"median": 12.345}, "ratio": {"median": 1.024, "lower": 0.9, "upper": 1.1},
        "per_second": 1234.5, "matmul_share": 0.416, "peak_bytes": 2_500_000, "flops": 1,
    }  # fmt: skip
    row = {"name": OURS, "step": step, "kept_bytes": 1_000_000, "losses": {"first": 2, "last": 1}}
    settings = {
        "model": "tiny", "layers": 4, "batch": 2, "tokens": 8, "image_tokens": 9,
        "checkpointing": True,
    }  # fmt: skip
    (sheet,) = sheets({"bench": "train", "settings": settings, "rows": [row]})
    assert sheet.title == (
        "a training step, tiny with 4 blocks, 2 samples of 17 tokens, gradient checkpointing"
    )
    assert dict(zip(sheet.columns, sheet.rows[0], strict=True)) == {
        "adapter": "clmoe", "step ms": "12.3", "x LoRA": "1.02", "quartiles": "0.90 to 1.10",
        "peak MB": "2.5", "% of matmul": "42", "kept MB": "1.0", "samples/s": "1,234",
        "first loss": "2.000", "last loss": "1.000",
    }  # fmt: skip


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    assert checked("x", [2.0, 1.0]) == {"first": 2.0, "last": 1.0}
    with pytest.raises(ClmoeError, match="clmoe: the loss of step 2 is nan; its times mean nothi"):
        checked("clmoe", [2.0, math.nan, 1.0])


def test_differing_answers() -> None:
    assert differing(["a", "b", "c", "d"], ["a", "x", "c", "y"]) == 0.5


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("layer", {"device": "gpu"}, "'gpu' is no device"),
        ("layer", {"device": "meta"}, "measuring on meta is not supported"),
        ("train", {"dtype": "float16x"}, "'float16x' is no dtype to measure; did you mean"),
        ("layer", {"hidden": 33}, "--hidden 33 is not possible"),
        ("train", {"tokens": 5}, "a batch of 4 samples of 5 text tokens is not possible"),
        ("eval", {"batch": 4, "questions": 3}, "3 questions in batches of 4, 10 new tokens: not"),
    ],
)
def test_what_cannot_be_measured(command: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        getattr(pipeline, f"bench_{command}")(**{"device": "cpu", **options})
    assert raised.value.message.startswith(message)
    assert raised.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="cuda was asked for, but torch .* sees 0 GPUs"):
        pipeline.bench_layer(device="cuda")

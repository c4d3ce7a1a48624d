"""The estimate against what autograd keeps, tensor by tensor, and against measured trainings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from clmoe.model.checkpointing import enable_checkpointing
from clmoe.model.config import ClmoeConfig
from clmoe.model.tuner import attach
from clmoe.recipe.schema import Adapter
from clmoe.training.activations import block_kept
from clmoe.training.answer_loss import AnswerLoss
from clmoe.training.base_shape import BaseShape, base_shape, image_tokens
from clmoe.training.memory_estimate import (
    CPU_KERNELS,
    Load,
    adapter_bytes,
    base_bytes,
    checkpoint_bytes,
    estimate_evaluation,
    estimate_training,
)
from tests.training import measure_memory

TOKENS, BATCH, ANSWER = 50, 2, 4
SMALL: dict[str, Any] = measure_memory.TINY | {
    "wide": 160, "layers": 3, "heads": 4, "kv": 4, "vocabulary": 100, "experts": 4, "rank": 8,
}  # fmt: skip


def kept_by_autograd(
    spec: dict[str, Any], *, dropout: float = 0.0, routers: str = "per-block"
) -> int:
    """Bytes of the storages that one forward pass keeps, the model's own not counted."""
    base = measure_memory.backbone(spec)
    model = attach(
        base.model,
        ClmoeConfig(
            experts=spec["experts"], r=spec["rank"], targets=spec["targets"], routers=routers,
            dropout=dropout,
        ),
    )  # fmt: skip
    if spec["checkpointing"]:
        enable_checkpointing(base.model)
    model.train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    if spec["ragged"]:
        mask[0, -3:] = 0
    labels = torch.full((BATCH, TOKENS), -100)
    labels[:, -ANSWER:] = 5
    embeds = torch.randn(BATCH, TOKENS, spec["hidden"], dtype=base.dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        AnswerLoss(model)({"inputs_embeds": embeds, "attention_mask": mask}, labels)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("change", "adapter"),
    [
        ({}, {}),
        ({"dtype": "bfloat16"}, {}),
        ({"dtype": "bfloat16", "kv": 2}, {}),
        ({"dtype": "bfloat16", "kv": 2, "ragged": True}, {}),
        ({"targets": "all-linear"}, {}),
        ({"dtype": "bfloat16", "targets": "all-linear"}, {}),
        ({"targets": ["q_proj", "v_proj"]}, {}),
        ({"experts": 1}, {}),
        ({}, {"dropout": 0.1}),
        ({"dtype": "bfloat16"}, {"dropout": 0.1}),
        ({}, {"routers": "per-linear"}),
        ({"dtype": "bfloat16"}, {"routers": "per-linear"}),
    ],
    ids=str,
)
def test_what_is_kept_is_what_autograd_keeps(
    change: dict[str, Any], adapter: dict[str, Any]
) -> None:
    """To the byte but for the positions of supervised tokens and the labels themselves."""
    spec = SMALL | change
    shape = base_shape(
        measure_memory.configuration(spec),
        Adapter(experts=spec["experts"], rank=spec["rank"], targets=spec["targets"], **adapter),
    )
    load = Load(
        dtype=spec["dtype"], batch=BATCH, text_tokens=TOKENS, supervised=ANSWER,
        padded=spec["ragged"],
    )  # fmt: skip
    parts = estimate_training(shape, load).parts
    log_softmax = BATCH * ANSWER * spec["vocabulary"] * 4  # counted as working memory
    found = kept_by_autograd(spec, **adapter)
    assert 0 <= found - parts["kept for the backward pass"] - log_softmax < 300


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_trained_projector_keeps(dtype: Literal["float32", "bfloat16"]) -> None:
    """Both its linears' inputs and what its activation reads, in float32 on any base."""
    spec = SMALL | {"dtype": dtype}
    base = measure_memory.backbone(spec)
    path, pictures = str(base.projector), base.image_tokens or 0
    model = attach(base.model, ClmoeConfig(experts=4, r=8, modules_to_save=[path])).train()
    seen = torch.randn(BATCH, pictures, spec["tower"], dtype=base.dtype)
    kept: dict[int, torch.Tensor] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.get_base_model().get_submodule(path)(seen)
    assert out.dtype is base.dtype
    trained = [p for n, p in model.named_parameters() if p.requires_grad and path in n]
    out.float().sum().backward()
    shape = base_shape(measure_memory.configuration(spec), Adapter(experts=4, rank=8))
    load = Load(dtype=dtype, batch=BATCH, image_tokens=pictures, trains_projector=True)
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert gradients == adapter_bytes(shape, load) - 4 * shape.trainable == 4 * shape.projector
    part = "kept for the backward pass"
    frozen = replace(load, trains_projector=False)
    more = estimate_training(shape, load).parts[part] - estimate_training(shape, frozen).parts[part]
    # A decoder whose input needs a gradient keeps more in its first block, which is not counted.
    first, later = (
        block_kept(
            shape, batch=BATCH, tokens=load.tokens, size=load.size, padded=False, first=first
        )
        for first in (True, False)
    )
    assert sum(t.untyped_storage().nbytes() for t in kept.values()) == more - (later - first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_keeps_the_inputs_of_blocks(dtype: str) -> None:
    spec = SMALL | {"dtype": dtype, "checkpointing": True}
    adapter = Adapter(experts=4, rank=8)
    shape = base_shape(measure_memory.configuration(spec), adapter)
    load = Load(dtype=dtype, batch=BATCH, text_tokens=TOKENS, supervised=ANSWER, checkpointing=True)  # type: ignore[arg-type]
    one = block_kept(shape, batch=BATCH, tokens=TOKENS, size=load.size, padded=False, first=False)
    parts = estimate_training(shape, load).parts
    rotations = 2 * TOKENS * shape.head * load.size  # held by the recomputation, not by autograd
    log_softmax = BATCH * ANSWER * spec["vocabulary"] * 4
    wanted = parts["kept for the backward pass"] - one - rotations + log_softmax
    assert 0 <= kept_by_autograd(spec) - wanted < 300


def llava_7b() -> LlavaConfig:
    """The sizes of llava-hf/llava-1.5-7b-hf."""
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14,
    )  # fmt: skip
    return LlavaConfig(text_config=text, vision_config=vision, image_token_id=32000)


@pytest.fixture(scope="module")
def large() -> BaseShape:
    return base_shape(llava_7b(), Adapter())


def test_the_reference_base_is_counted_without_its_weights(large: BaseShape) -> None:
    assert image_tokens(llava_7b()) == 576
    # A [64, in] and B [out, 64] of gate, up and down, and a router [8, 4096], in 32 blocks.
    assert large.trainable == 32 * (3 * 64 * (4096 + 11008) + 8 * 4096)
    assert large.quantisable == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    decoder = large.quantisable + 2 * 32064 * 4096 + (2 * 32 + 1) * 4096
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert large.projector == projector
    assert 0.30e9 < large.parameters - decoder - projector < 0.31e9  # CLIP ViT-L/14 at 336


def test_bytes_of_weights_by_hand(large: BaseShape) -> None:
    half = Load(dtype="bfloat16")
    assert base_bytes(large, half) == 2 * large.parameters
    packed, rest = large.quantisable, large.parameters - large.quantisable
    by_hand = rest * 2 + packed * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert base_bytes(large, replace(half, quantization="nf4")) == pytest.approx(by_hand, rel=1e-6)
    assert adapter_bytes(large, half) == 4 * large.trainable
    assert checkpoint_bytes(large, half) == 12 * large.trainable
    trained = replace(half, trains_projector=True)
    assert adapter_bytes(large, trained) == 4 * (large.trainable + large.projector)
    assert checkpoint_bytes(large, trained) == 12 * (large.trainable + large.projector)


def test_nf4_bytes_are_those_of_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'clmoe[quant]'")
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(512, 1024)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    found = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    shape = base_shape(measure_memory.configuration(SMALL), Adapter(experts=4, rank=8))
    shape = replace(shape, parameters=weight.numel(), quantisable=weight.numel())
    assert base_bytes(shape, Load(dtype="float32", quantization="nf4")) == found


def test_more_of_anything_needs_more(large: BaseShape) -> None:
    load = Load(dtype="bfloat16", device="cuda", batch=4, image_tokens=576)
    needed = estimate_training(large, load).total
    for more in ({"batch": 5}, {"text_tokens": 80}, {"dtype": "float32"}, {"padded": True},
                 {"accumulates": True}, {"kept_features": 1}):  # fmt: skip
        assert estimate_training(large, replace(load, **more)).total > needed, more
    for less in ({"checkpointing": True}, {"quantization": "nf4"}, {"batch": 3}):
        assert estimate_training(large, replace(load, **less)).total < needed, less
    answering = estimate_evaluation(large, load)
    cache = 2 * 32 * 4 * (640 + 10) * 4096 * 2
    assert answering.parts["keys and values"] == cache
    assert answering.total < needed
    on_cpu = estimate_training(large, replace(load, device="cpu"))
    assert on_cpu.total == needed + CPU_KERNELS


MEASURED: dict[str, dict[str, Any]] = {
    "130M, float32, padded": {
        "hidden": 768, "wide": 2048, "layers": 12, "heads": 12, "kv": 4, "vocabulary": 32000,
        "side": 112, "text": 47, "ragged": True, "micro": 8, "batch": 8,
    },
    "140M, bfloat16, checkpointing": {
        "hidden": 768, "wide": 2048, "layers": 12, "heads": 12, "kv": 12, "vocabulary": 32000,
        "side": 160, "text": 60, "dtype": "bfloat16", "checkpointing": True, "micro": 8, "batch": 8,
    },
    "226M, float32, accumulating": {
        "hidden": 1024, "wide": 2816, "layers": 12, "heads": 16, "kv": 16, "vocabulary": 32000,
        "side": 112, "text": 47, "micro": 2, "batch": 4, "checkpointing": True,
    },
    "97M, bfloat16, all linears, a large vocabulary": {
        "hidden": 512, "wide": 1408, "layers": 8, "heads": 8, "kv": 8, "vocabulary": 128000,
        "tied": True, "side": 160, "text": 60, "targets": "all-linear", "dtype": "bfloat16",
        "micro": 4, "batch": 4,
    },
}  # fmt: skip
TOWER = {"tower": 256, "tower_wide": 1024, "tower_layers": 6, "patch": 16, "answer": 4, "steps": 2}


def measured(spec: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own found; its freed memory is returned at once, so that it counts."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", measure_memory.__file__, json.dumps(TOWER | spec)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc"
)
@pytest.mark.parametrize("name", MEASURED)
def test_measured_on_a_cpu(name: str) -> None:
    found = measured(MEASURED[name])
    assert 50e6 < found["parameters"] < 500e6
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15), found


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", MEASURED)
def test_measured_on_a_gpu(name: str) -> None:
    found = measured(MEASURED[name] | {"device": "cuda"})
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15), found

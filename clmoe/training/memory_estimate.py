"""How much memory a training and an evaluation take, from configurations alone.

The inputs are plain sizes; nothing is loaded and nothing runs. What is estimated is the largest sum
of live tensors: on a GPU what `torch.cuda.max_memory_allocated` measures, on a CPU the growth of
resident memory where freed memory is returned (tests compare both with measured trainings, to
15 %). Allocators keep some of what is freed: leave them a margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clmoe.training.activations import (
    FLOAT,
    backward_needs,
    block_kept,
    norm_kept,
    prefill_needs,
    tower_needs,
)
from clmoe.training.base_shape import BaseShape

SIZES = {"float32": 4, "bfloat16": 2}
CPU_KERNELS = 32 * 2**20
"""What oneDNN keeps of the kernels that it compiles for bfloat16 on a CPU: measured, 29 to 35 MiB
for bases of 39 to 137 million parameters; float32 goes through MKL, which compiles none."""
_SCALE_BLOCK, _SECOND_BLOCK = 64, 256  # weights a scale; scales a scale of scales


@dataclass(frozen=True)
class Load:
    """What runs on the base at once.

    Attributes:
        dtype: The base's: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        quantization: "none" or "nf4".
        batch: Samples at a time: the micro-batch of a training, the batch of an evaluation.
        image_tokens: Image tokens of a sample.
        text_tokens: All its other tokens.
        supervised: Tokens of a sample that carry loss (training).
        new_tokens: Tokens that are generated (evaluation).
        padded: Whether samples of a batch differ in length.
        checkpointing: Whether blocks are computed again in the backward pass.
        accumulates: Whether a step has several micro-batches.
        trains_projector: Whether the projector is trained, so that pictures go through the model.
        kept_features: Bytes of picture features that are kept between steps.
    """

    dtype: Literal["float32", "bfloat16"]
    device: Literal["cpu", "cuda"] = "cpu"
    quantization: Literal["none", "nf4"] = "none"
    batch: int = 1
    image_tokens: int = 0
    text_tokens: int = 64
    supervised: int = 4
    new_tokens: int = 10
    padded: bool = False
    checkpointing: bool = False
    accumulates: bool = False
    trains_projector: bool = False
    kept_features: int = 0

    @property
    def size(self) -> int:
        """Bytes of one value of the base."""
        return SIZES[self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens of a sample."""
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True)
class MemoryEstimate:
    """The parts of the moment that needs most, in bytes.

    Attributes:
        parts: What they are -> bytes, in the order in which they come to be.
        moment: Which moment it is.
    """

    parts: dict[str, int]
    moment: str

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def base_bytes(shape: BaseShape, load: Load) -> int:
    """Bytes of the base's parameters; NF4 has half a byte a weight, and doubly quantised scales."""
    if load.quantization == "none":
        return shape.parameters * load.size
    packed = shape.quantisable
    scales = packed // _SCALE_BLOCK + packed // (_SCALE_BLOCK * _SECOND_BLOCK) * FLOAT
    return (shape.parameters - packed) * load.size + packed // 2 + scales


def adapter_bytes(shape: BaseShape, load: Load) -> int:
    """Bytes of what is trained, in float32: the experts, and a projector that is trained."""
    return (shape.trainable + (shape.projector if load.trains_projector else 0)) * FLOAT


def checkpoint_bytes(shape: BaseShape, load: Load) -> int:
    """Bytes of a training checkpoint on disk: what is trained, and AdamW's two moments of it."""
    return 3 * adapter_bytes(shape, load)


def estimate_training(shape: BaseShape, load: Load) -> MemoryEstimate:
    """Estimate the largest moment of a training's later steps, when AdamW has its moments.

    Args:
        shape: The base and its adapter.
        load: Micro-batch, tokens, dtype and what else decides.
    """
    adapter = adapter_bytes(shape, load)
    loaded = {"base weights": base_bytes(shape, load), "adapter": adapter}
    later = {
        "AdamW moments": 2 * adapter,
        "kept picture features": load.kept_features,
        "compiled kernels": _kernels(load),
    }
    earlier = {"gradients": adapter if load.accumulates else 0}
    check = load.tokens * shape.vocabulary * load.size
    moments = {
        "the check of the loss before the first step": {"logits of a sample": check},
        "the pictures' forward pass": later | earlier | {"pictures": _pictures(shape, load)},
        "the optimizer's step": later | {"gradients": adapter, "working memory": _step(shape)},
        **_backward_moments(shape, load, before=later, earlier=earlier, adapter=adapter),
    }
    return _largest(loaded, moments)


def estimate_evaluation(shape: BaseShape, load: Load) -> MemoryEstimate:
    """Estimate the largest moment of answering a batch of questions: prompts, then new tokens."""
    size, tokens = load.size, load.tokens
    resident = {
        "base weights": base_bytes(shape, load),
        "adapter": adapter_bytes(shape, load),
        "kept picture features": load.kept_features,
        "compiled kernels": _kernels(load),
    }
    row = shape.kv_heads * shape.head * size
    cache = 2 * shape.layers * load.batch * (tokens + load.new_tokens) * row
    scores = load.batch * shape.vocabulary * (size + FLOAT)
    reading = prefill_needs(shape, batch=load.batch, tokens=tokens, size=size)
    moments = {
        "the pictures' forward pass": {"pictures": _pictures(shape, load)},
        "reading the prompts": {
            "keys and values": cache,
            "working memory": reading + _unpacked(shape, load),
        },
        "the first answer token": {
            "keys and values": cache,
            "working memory": scores + _output_layer_copies(shape, load),
        },
    }
    return _largest(resident, moments)


def _largest(always: dict[str, int], moments: dict[str, dict[str, int]]) -> MemoryEstimate:
    name = max(moments, key=lambda moment: sum(moments[moment].values()))
    parts = always | moments[name]
    return MemoryEstimate({part: size for part, size in parts.items() if size}, name)


def _backward_moments(
    shape: BaseShape,
    load: Load,
    *,
    before: dict[str, int],
    earlier: dict[str, int],
    adapter: int,
) -> dict[str, dict[str, int]]:
    """The start of a backward pass, when all is kept, and its end, when all gradients are there."""
    size, tokens = load.size, load.batch * load.tokens

    def block_bytes(*, first: bool) -> int:
        return block_kept(
            shape, batch=load.batch, tokens=load.tokens, size=size, padded=load.padded, first=first
        )

    block, first = block_bytes(first=False), block_bytes(first=not load.trains_projector)
    # Rotations [tokens, head] twice, the final norm, and the log-softmax of the supervised tokens.
    rest = norm_kept(shape, tokens=tokens) + 2 * load.tokens * shape.head * size
    supervised = load.batch * load.supervised
    needs = backward_needs(shape, tokens=tokens, supervised=supervised, size=size)
    needs += _unpacked(shape, load)
    if load.trains_projector:
        tower = shape.tower.hidden if shape.tower else shape.hidden
        rest += load.batch * load.image_tokens * (tower + 2 * shape.hidden) * FLOAT
    inputs = tokens * shape.hidden * size
    if load.checkpointing:
        kept, last = shape.layers * inputs + rest, block
        end = inputs + first
    else:
        kept, last = first + (shape.layers - 1) * block + rest, 0
        end = first
    kept_part = "kept for the backward pass"
    return {
        "the start of the backward pass": before
        | earlier
        | {kept_part: kept + last, "working memory": needs},
        "the end of the backward pass": before
        | {"gradients": adapter, kept_part: end, "working memory": needs},
    }


def _pictures(shape: BaseShape, load: Load) -> int:
    """Bytes of the pictures' features and embeddings, and of the vision tower before them."""
    projected = FLOAT if load.trains_projector else load.size
    features = load.batch * load.image_tokens * shape.hidden * projected
    embeddings = 2 * load.batch * load.tokens * shape.hidden * load.size
    if shape.tower is None:
        return 2 * features + embeddings
    tower = tower_needs(shape.tower, pictures=load.batch, size=load.size)
    return max(tower + 2 * features, 2 * features + embeddings)


def _kernels(load: Load) -> int:
    return CPU_KERNELS if load.device == "cpu" and load.dtype == "bfloat16" else 0


def _output_layer_copies(shape: BaseShape, load: Load) -> int:
    """Bytes that torch copies of the output layer for the first token: a quirk of bfloat16 on CPUs.

    The last position of each prompt is a slice, whose product torch computes as one a sample, each
    with a copy of the weight.
    """
    if load.device != "cpu" or load.dtype != "bfloat16":
        return 0
    return load.batch * shape.vocabulary * shape.hidden * load.size


def _step(shape: BaseShape) -> int:
    """Bytes of AdamW's working memory, for the largest single parameter twice."""
    return 2 * FLOAT * shape.rank * max(sum(([*size] for size in shape.adapted.values()), [0]))


def _unpacked(shape: BaseShape, load: Load) -> int:
    """Bytes of a quantised weight while it is multiplied by."""
    return shape.largest * load.size if load.quantization == "nf4" else 0

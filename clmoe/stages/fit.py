"""Whether a recipe fits into the memory of a machine, and what to change where it does not.

Only the base's configuration is read; no weight is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import AutoConfig

from clmoe.model.backbone import choose_kernels
from clmoe.model.fetching import Source, quiet_loading
from clmoe.recipe.schema import Recipe
from clmoe.training.base_shape import BaseShape, base_shape, image_tokens
from clmoe.training.memory_estimate import (
    SIZES,
    Load,
    MemoryEstimate,
    estimate_evaluation,
    estimate_training,
)

ERROR = 0.15
"""How far measured trainings were from their estimates at most (tests hold it to that)."""
ASSUMED_IMAGE_TOKENS = 576
FEATURES_KEPT = 512 * 2**20  # at most: the budget of `Context.pictures`


@dataclass(frozen=True)
class Sample:
    """The longest sample of a data set.

    Attributes:
        text: Tokens beside the picture's.
        answer: Those of them that are supervised.
        pictures: Different pictures of the data set, None where they were not counted.
    """

    text: int = 64
    answer: int = 8
    pictures: int | None = None


@dataclass(frozen=True)
class Remedy:
    """Overrides to try, and what they would lead to."""

    overrides: tuple[str, ...]
    total: int


@dataclass(frozen=True)
class Fit:
    """One thing that a recipe does, and whether it fits.

    Attributes:
        what: "training" or "evaluation".
        estimate: What it needs.
        room: Bytes there are.
        remedies: What would fit, where it does not, in the order in which to try it.
    """

    what: str
    estimate: MemoryEstimate
    room: int
    remedies: tuple[Remedy, ...]

    @property
    def fits(self) -> bool:
        """Whether the estimate is no more than what is there."""
        return self.estimate.total <= self.room

    @property
    def verdict(self) -> str:
        """`fits` or `does not fit`, and whether that is within the estimate's error."""
        if not self.fits:
            return "does not fit"
        close = self.estimate.total * (1 + ERROR) > self.room
        return f"fits, by less than the estimate's error of {ERROR:.0%}" if close else "fits"


@dataclass(frozen=True)
class Study:
    """What a recipe needs on one device.

    Attributes:
        shape: Sizes of base and adapter.
        loads: What runs at once in training and in evaluation.
        fits: Training and evaluation.
        why: Dtype and attention kernel, each with its reason, and what was assumed.
    """

    shape: BaseShape
    loads: dict[str, Load]
    fits: tuple[Fit, ...]
    why: tuple[str, ...]


def study(recipe: Recipe, *, device: torch.device, room: int, sample: Sample | None) -> Study:
    """Estimate a recipe's training and evaluation.

    Args:
        recipe: The recipe.
        device: Where it would run.
        room: Bytes that are free there.
        sample: The longest sample, where the data are prepared; else it is assumed.

    Raises:
        ClmoeError: The base's configuration is not there and cannot be fetched, or experts cannot
            be attached to such a model.
    """
    with quiet_loading():
        model_config: Any = Source(recipe.base).fetch(AutoConfig)
    shape = base_shape(model_config, recipe.adapter)
    dtype, attention, why_dtype, why_attention = choose_kernels(recipe.base, device=device)
    why = [f"dtype {why_dtype}", f"attention {why_attention}"]
    pictures = image_tokens(model_config)
    if pictures is None:
        pictures = ASSUMED_IMAGE_TOKENS
        why.append(f"image tokens depend on the picture; assumed {pictures}")
    if sample is None:
        sample = Sample()
        why.append(
            f"no data prepared: {pictures} image and {sample.text} other tokens a sample assumed"
        )
    if shape.tower is None:
        why.append("the vision tower's working memory is not in the estimate: unknown shape")
    if attention == "eager":
        why.append("eager attention needs more than is estimated here, for sdpa")
    frozen = recipe.base.projector == "frozen"
    micro = recipe.train.micro_batch
    count = recipe.train.batch_size if micro is None or micro == "auto" else micro
    size = SIZES[_dtype(dtype)]
    kept = FEATURES_KEPT if frozen and image_tokens(model_config) else 0
    if sample.pictures is not None:
        kept = min(kept, sample.pictures * pictures * shape.hidden * size)
    training = Load(
        dtype=_dtype(dtype),
        device="cuda" if device.type == "cuda" else "cpu",
        quantization=recipe.base.quantization,
        batch=count,
        image_tokens=pictures,
        text_tokens=sample.text,
        supervised=sample.answer,
        padded=True,
        checkpointing=recipe.train.gradient_checkpointing,
        accumulates=count < recipe.train.batch_size,
        trains_projector=not frozen,
        kept_features=kept,
    )
    if micro == "auto":
        training = _largest(shape, training, room) or replace(training, batch=1)
        why.append(f"train.micro_batch=auto would begin near {training.batch}")
    answering = replace(
        training, batch=recipe.eval.batch_size, new_tokens=recipe.eval.max_new_tokens
    )
    fits = (
        _fit("training", estimate_training(shape, training), room, _remedies(shape, training)),
        _fit("evaluation", estimate_evaluation(shape, answering), room, _smaller(shape, answering)),
    )
    return Study(shape, {"training": training, "evaluation": answering}, fits, tuple(why))


def _fit(what: str, estimate: MemoryEstimate, room: int, candidates: Sequence[Remedy]) -> Fit:
    """Keep the candidates that fit, and none that does more than another one that fits."""
    chosen: list[tuple[set[str], Remedy]] = []
    for candidate in candidates if estimate.total > room else ():
        keys = {override.partition("=")[0] for override in candidate.overrides}
        if candidate.total <= room and not any(fewer <= keys for fewer, _ in chosen):
            chosen.append((keys, candidate))
    return Fit(what, estimate, room, tuple(remedy for _, remedy in chosen))


def _remedies(shape: BaseShape, load: Load) -> list[Remedy]:
    """Changes that need less memory, alone and then together; those of a result come last."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if not load.checkpointing:
        steps.append(("train.gradient_checkpointing=true", {"checkpointing": True}))
    if load.batch > 1:
        halves = [load.batch >> n for n in range(1, load.batch.bit_length())]
        steps += [
            (f"train.micro_batch={half}", {"batch": half, "accumulates": True}) for half in halves
        ]
    if load.dtype == "float32" and load.quantization == "none":
        steps.append(("base.dtype=bfloat16", {"dtype": "bfloat16"}))
    if load.quantization == "none":
        steps.append(("base.quantization=nf4", {"quantization": "nf4"}))
    found = [_remedy(shape, load, [step]) for step in steps]
    smallest = [s for s in steps if not s[0].startswith("train.micro_batch")]
    smallest += [s for s in steps if s[0] == "train.micro_batch=1"]
    found += [_remedy(shape, load, smallest[:n]) for n in range(2, len(smallest) + 1)]
    found.append(_remedy(shape, load, smallest))
    return list({remedy.overrides: remedy for remedy in found if remedy.overrides}.values())


def _remedy(shape: BaseShape, load: Load, steps: Sequence[tuple[str, dict[str, Any]]]) -> Remedy:
    for _, change in steps:
        load = replace(load, **change)
    return Remedy(tuple(text for text, _ in steps), estimate_training(shape, load).total)


def _smaller(shape: BaseShape, load: Load) -> list[Remedy]:
    halves = [load.batch >> n for n in range(1, load.batch.bit_length())]
    return [
        Remedy(
            (f"eval.batch_size={half}",),
            estimate_evaluation(shape, replace(load, batch=half)).total,
        )
        for half in halves
    ]


def _largest(shape: BaseShape, load: Load, room: int) -> Load | None:
    """The load with the largest micro-batch that fits, halving as `train.micro_batch=auto` does."""
    whole = load.batch
    while estimate_training(shape, load).total > room:
        if load.batch == 1:
            return None
        half = -(-load.batch // 2)
        load = replace(load, batch=half, accumulates=half < whole)
    return load


def _dtype(dtype: torch.dtype) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if dtype == torch.bfloat16 else "float32"

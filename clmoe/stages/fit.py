"""Whether a recipe fits into the memory of a machine, and what to change where it does not.

Only the base's configuration is read; no weight is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import AutoConfig

from clmoe.errors import ClmoeError
from clmoe.model.backbone import choose_kernels
from clmoe.model.choices import choose_dtype
from clmoe.model.fetching import Source, quiet_loading
from clmoe.model.quantization import loading_options
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
_ESTIMATES = {"training": estimate_training, "evaluation": estimate_evaluation}


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
    """Overrides to try, and the bytes that are needed with them."""

    overrides: tuple[str, ...]
    total: int


@dataclass(frozen=True)
class Fit:
    """One thing that a recipe does, and whether it fits.

    Attributes:
        what: "training" or "evaluation".
        estimate: What it needs.
        room: Bytes there are.
        remedies: What would fit, where it does not: the least sets of overrides, those first that
            change no result.
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
        close = is_close(self.estimate.total, room=self.room)
        return f"fits, by less than the estimate's error of {ERROR:.0%}" if close else "fits"


@dataclass(frozen=True)
class Study:
    """What a recipe needs on one device.

    Attributes:
        shape: Sizes of base and adapter.
        loads: What runs at once in training and in evaluation.
        fits: Training and evaluation.
        why: Dtype and attention kernel, each with its reason, and what was assumed.
        together: The first overrides with which training and evaluation both fit, where they do
            not; it needs the larger of the two.
    """

    shape: BaseShape
    loads: dict[str, Load]
    fits: tuple[Fit, ...]
    why: tuple[str, ...]
    together: Remedy | None


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
    pictures = image_tokens(model_config)
    case = _Case(shape, model_config, device, room, pictures, sample or Sample())
    loads = case.loads(recipe)
    why = _why(recipe, case, loads, assumed=sample is None)
    needs = {what: case.estimate(recipe, what) for what in loads}
    shared: tuple[Change, ...] = ()
    if any(estimate.total > room for estimate in needs.values()):
        shared, refused = _changes_of_the_base(recipe, case)
        why += [refused] * bool(refused)
    fits = tuple(
        Fit(what, needs[what], room, tuple(_remedies(recipe, case, what, shared))) for what in loads
    )
    together = _together(recipe, case, shared) if shared else None
    return Study(shape, loads, fits, tuple(why), together)


def is_close(total: int, *, room: int) -> bool:
    """Whether what fits does so by less than the estimate's error."""
    return total * (1 + ERROR) > room


Change = Mapping[str, Any]
"""Keys of a recipe and their new values."""


@dataclass(frozen=True)
class _Case:
    """What loads depend on beside the recipe; `pictures` is None where tokens depend on them."""

    shape: BaseShape
    model_config: Any
    device: torch.device
    room: int
    pictures: int | None
    sample: Sample

    def estimate(self, recipe: Recipe, what: str) -> MemoryEstimate:
        return _ESTIMATES[what](self.shape, self.loads(recipe)[what])

    def loads(self, recipe: Recipe) -> dict[str, Load]:
        """What runs at once in training and in evaluation."""
        frozen, micro = recipe.base.projector == "frozen", recipe.train.micro_batch
        count = recipe.train.batch_size if micro is None or micro == "auto" else micro
        dtype = _dtype(choose_dtype(recipe.base.dtype, device=self.device)[0])
        tokens = self.pictures or ASSUMED_IMAGE_TOKENS
        kept = FEATURES_KEPT if frozen and self.pictures else 0
        if self.sample.pictures is not None:
            features = self.sample.pictures * tokens * self.shape.hidden * SIZES[dtype]
            kept = min(kept, features)
        training = Load(
            dtype=dtype,
            device="cuda" if self.device.type == "cuda" else "cpu",
            quantization=recipe.base.quantization,
            batch=count,
            image_tokens=tokens,
            text_tokens=self.sample.text,
            supervised=self.sample.answer,
            padded=True,
            checkpointing=recipe.train.gradient_checkpointing,
            accumulates=count < recipe.train.batch_size,
            trains_projector=not frozen,
            kept_features=kept,
        )
        if micro == "auto":
            training = _largest(self.shape, training, self.room) or replace(training, batch=1)
        batch, new = recipe.eval.batch_size, recipe.eval.max_new_tokens
        return {
            "training": training, "evaluation": replace(training, batch=batch, new_tokens=new)
        }  # fmt: skip


def _why(recipe: Recipe, case: _Case, loads: Mapping[str, Load], *, assumed: bool) -> list[str]:
    """Dtype and attention kernel with their reasons, and what was assumed."""
    _, attention, why_dtype, why_attention = choose_kernels(
        recipe.base, device=case.device, model_config=case.model_config
    )
    why = [f"dtype {why_dtype}", f"attention {why_attention}"]
    tokens = loads["training"].image_tokens
    if case.pictures is None:
        why.append(f"image tokens depend on the picture; assumed {tokens}")
    if assumed:
        why.append(
            f"no data prepared: {tokens} image and {case.sample.text} other tokens a sample assumed"
        )
    if case.shape.tower is None:
        why.append("the vision tower's working memory is not in the estimate: unknown shape")
    if attention == "eager":
        why.append("eager attention needs more than is estimated here, for sdpa")
    if recipe.train.micro_batch == "auto":
        why.append(f"train.micro_batch=auto would begin near {loads['training'].batch}")
    return why


def _changes_of_the_base(recipe: Recipe, case: _Case) -> tuple[tuple[Change, ...], str]:
    """Changes of dtype and quantization that this machine can run, none first; what it cannot.

    They change results, which the keys of `_own_changes` do not.
    """
    steps: list[Change] = []
    dtype, _ = choose_dtype(recipe.base.dtype, device=case.device)
    if dtype == torch.float32 and _runs_bfloat16(case.device):
        steps.append({"base.dtype": "bfloat16"})
    refused = ""
    if recipe.base.quantization == "none":
        change = {"base.quantization": "nf4"}
        base = _changed(recipe, change).base
        try:
            loading_options(base, model_config=case.model_config, device=case.device, dtype=dtype)
            steps.append(change)
        except ClmoeError as error:
            refused = f"base.quantization=nf4 was not tried: {error}"
    both: list[Change] = [{**steps[0], **steps[1]}] if len(steps) == 2 else []
    return ({}, *steps, *both), refused


def _runs_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _own_changes(recipe: Recipe, what: str, load: Load) -> Iterator[Change]:
    """Changes of memory alone for training or evaluation, none first, larger batches earlier."""
    batches = [load.batch >> n for n in range(1, load.batch.bit_length())]
    yield {}
    if what == "evaluation":
        yield from ({"eval.batch_size": batch} for batch in batches)
        return
    checkpointing = {"train.gradient_checkpointing": True}
    smaller = [] if recipe.train.micro_batch == "auto" else batches
    if not load.checkpointing:
        yield checkpointing
    yield from ({"train.micro_batch": batch} for batch in smaller)
    if not load.checkpointing:
        yield from ({**checkpointing, "train.micro_batch": batch} for batch in smaller)


def _remedies(recipe: Recipe, case: _Case, what: str, shared: Sequence[Change]) -> Iterator[Remedy]:
    """The changes that fit, and none that does more than another one that fits."""
    tried: list[set[str]] = []
    load = case.loads(recipe)[what]
    for change in (
        {**own, **outer} for outer in shared for own in _own_changes(recipe, what, load)
    ):
        if any(fewer <= change.keys() for fewer in tried):
            continue
        total = case.estimate(_changed(recipe, change), what).total
        if total <= case.room:
            tried.append({*change})
            if change:
                yield Remedy(_overrides(change), total)


def _together(recipe: Recipe, case: _Case, shared: Sequence[Change]) -> Remedy | None:
    """The first change with which training and evaluation both fit."""
    loads = case.loads(recipe)
    for outer in shared:
        found, largest = dict(outer), 0
        for what, load in loads.items():
            for own in _own_changes(recipe, what, load):
                total = case.estimate(_changed(recipe, {**own, **outer}), what).total
                if total <= case.room:
                    found, largest = {**own, **found}, max(largest, total)
                    break
            else:
                break
        else:
            return Remedy(_overrides(found), largest)
    return None


def _changed(recipe: Recipe, change: Change) -> Recipe:
    """A recipe with other values of some keys."""
    for key, value in change.items():
        section, _, name = key.partition(".")
        inner = getattr(recipe, section).model_copy(update={name: value})
        recipe = recipe.model_copy(update={section: inner})
    return recipe


def _overrides(change: Change) -> tuple[str, ...]:
    return tuple(f"{key}={'true' if value is True else value}" for key, value in change.items())


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

"""One folder with everything an answer needs beside the base model, and answering from it.

Layout: PEFT's `adapter_config.json` and `adapter_model.safetensors`, then `clmoe.json` (how to
prompt, mix and index), `task_router/NN-TASK/`, `index/NN-TASK/` and the card `README.md`.
`PeftModel.from_pretrained` reads the first two, which gives experts and instance routers only;
`load` applies Eq 8 and 9 too.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import ValidationError

from clmoe.data.batches import Batch
from clmoe.errors import ClmoeError
from clmoe.evaluation.answerer import Answerer, Finder, TaskMixing
from clmoe.evaluation.features import question_features
from clmoe.interop.new_folder import new_folder
from clmoe.method.task_index import combine, load_task_index
from clmoe.method.task_router import load_task_router
from clmoe.model.adapter_file import load_adapter
from clmoe.model.backbone import Backbone, load_backbone
from clmoe.model.pictures import make_prompter, picture_inputs
from clmoe.recipe.schema import Base

SETTINGS = "clmoe.json"
CARD = "README.md"
FORMAT = 2
"""2 since dtype, quantization and device of the base are stored: a reader of 1 ignores them."""


@dataclass(frozen=True)
class BundleSettings:
    """What `clmoe.json` says.

    Attributes:
        format: Version of this layout.
        base: Name of the base model that the adapter belongs to.
        revision: Its revision, or None.
        prompt: The recipe's ``base.prompt``.
        suffix: Instruction suffix of the source.
        tasks: The learned tasks, in order.
        mixes: Whether the task router takes part (beta < 1 and more than one expert).
        beta: Share of the instance router (Eq 9).
        feature: Which F(x) the index is made of (Eq 7).
        shrinkage: Of the index of kind lda.
        max_new_tokens: Longest answer.
        suffixes: Suffixes of single tasks, where questions show their task.
        soft: Temperature of soft shares of tasks; 0: the nearest task alone.
        dtype: What the base was stored in when the run answered; "auto" where it is not known.
        quantization: The recipe's ``base.quantization``.
        device: The kind of device that answered, such as "cuda"; None where it is not known.
    """

    format: int
    base: str
    revision: str | None
    prompt: str
    suffix: str
    tasks: tuple[str, ...]
    mixes: bool
    beta: float
    feature: str
    shrinkage: float
    max_new_tokens: int
    suffixes: tuple[str, ...] = ()
    soft: float = 0.0
    dtype: str = "auto"
    quantization: str = "none"
    device: str | None = None

    @property
    def base_is(self) -> str:
        """How the base was loaded when the run answered, in words."""
        dtype = "" if self.dtype == "auto" else self.dtype
        packed = "" if self.quantization == "none" else f"quantised to {self.quantization}"
        device = "" if self.device is None else f"on {self.device}"
        return ", ".join(part for part in (packed, dtype, device) if part) or "not said"


@dataclass(frozen=True)
class Reply:
    """An answer, and the task that Eq 8 took the question for (None where no index is used)."""

    text: str
    task: str | None


class Learned:
    """A base model with everything a bundle adds to it.

    Attributes:
        backbone: The base model.
        model: The base with the adapter, a PEFT model.
        differences: How the base is loaded otherwise than when the run answered, a sentence each;
            where there are any, answers may differ from the run's.
    """

    def __init__(
        self,
        backbone: Backbone,
        answerer: Answerer,
        finder: Finder | None,
        *,
        differences: tuple[str, ...] = (),
    ) -> None:
        """Use `load`."""
        self._finder = finder
        self.differences = differences
        self.backbone = backbone
        self.model = answerer.model
        self._answerer = answerer

    @torch.no_grad()
    def answer(
        self, images: Sequence[Image.Image | str | Path], questions: Sequence[str]
    ) -> list[Reply]:
        """Answer question ``i`` about picture ``i``, as ``clmoe eval`` does.

        Args:
            images: Pictures, or paths of them.
            questions: As many questions, with the source's suffix where it has one.
        """
        if len(images) != len(questions):
            raise ClmoeError(f"{len(images)} pictures for {len(questions)} questions")
        pictures = [_picture(image) for image in images]
        shown = self.backbone.pictures
        prompts = [
            self._answerer.prompter.prompt(
                question, picture=None if shown is None else shown.text(picture.size)
            )
            for question, picture in zip(questions, pictures, strict=True)
        ]
        gates = None
        if self._answerer.mixing is not None and self._finder is not None:
            with self.model.disable_adapter():
                features = question_features(
                    self.model.get_base_model(),
                    questions=[self._answerer.prompter.text_only(q) for q in questions],
                    special=set(self.backbone.tokenizer.all_special_ids),
                    kind=self._finder.feature,
                    batch_size=self._answerer.batch_size,
                )
            gates = self._answerer.mixing.gates(self._finder.shares(features))

        def inputs(batch: Batch) -> dict[str, torch.Tensor]:
            images = [pictures[row] for row in batch.rows]
            return picture_inputs(self.backbone, batch, images=images)

        replies: dict[int, Reply] = {}
        for batch in self._answerer.answers(
            prompts, rows=range(len(prompts)), inputs=inputs, gates=gates
        ):
            for answer in batch:
                task = None if gates is None else gates.tasks[answer.row]
                replies[answer.row] = Reply(answer.text, task)
        return [replies[row] for row in range(len(prompts))]


def write_bundle(
    folder: Path,
    *,
    adapter: Path,
    routers: Sequence[Path],
    indexes: Sequence[Path],
    settings: BundleSettings,
    card: str,
) -> None:
    """Write a bundle.

    Args:
        folder: Where to; it must not exist.
        adapter: Folder of the adapter.
        routers: Folder of the task router of every learned task, in order; empty without mixing.
        indexes: Folder of the index of every learned task, in order; empty without mixing.
        settings: What `load` needs to know.
        card: Text of `README.md`.
    """
    with new_folder(folder) as partial:
        shutil.copytree(adapter, partial, dirs_exist_ok=True)
        for kind, folders in (("task_router", routers), ("index", indexes)):
            for number, (task, source) in enumerate(zip(settings.tasks, folders, strict=False), 1):
                shutil.copytree(source, partial / kind / f"{number:02d}-{task}")
        text = json.dumps(asdict(settings), indent=1) + "\n"
        (partial / SETTINGS).write_text(text, encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")


def read_settings(folder: Path) -> BundleSettings:
    """Read `clmoe.json`.

    Raises:
        ClmoeError: It is missing, damaged, or of a newer version.
    """
    try:
        found: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if found["format"] > FORMAT:
            raise ClmoeError(
                f"{folder} was written by a newer version of clmoe",
                hint="pip install --upgrade clmoe",
            )
        lists = {key: tuple(found.get(key, ())) for key in ("tasks", "suffixes")}
        return BundleSettings(**{**found, **lists})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClmoeError(
            f"{folder} is not a bundle: {error!r}", hint="clmoe export --out FOLDER makes one"
        ) from error


def load(
    folder: str | Path,
    base: str | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 32,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    quantization: Literal["none", "nf4"] | None = None,
) -> Learned:
    """Load a bundle onto its base model, as the run had it that the bundle was exported from.

    Where the base is loaded otherwise, `Learned.differences` and a `UserWarning` say so.

    Args:
        folder: Written by `clmoe.export`.
        base: The base model: ``tiny``, a folder or a hub name; None: the one it was made with.
        device: Where to.
        batch_size: Questions at a time.
        dtype: What the base is stored in; None: as it was when the run answered.
        quantization: Of the base; None: as it was when the run answered.

    Raises:
        ClmoeError: The folder is no bundle, or does not fit the base; or the base is quantised and
            this machine cannot do that.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    config = _base_config(settings, folder, base=base, dtype=dtype, quantization=quantization)
    backbone = _backbone(config, settings, device=device)
    differences = _differences(settings, backbone, quantization=config.quantization)
    for difference in differences:
        warnings.warn(f"{difference}: answers may differ", stacklevel=2)
    model = load_adapter(backbone.model, folder).eval()
    mixing, finder = None, None
    if settings.mixes:
        names = [f"{number:02d}-{task}" for number, task in enumerate(settings.tasks, 1)]
        mixing = TaskMixing(
            tasks=settings.tasks,
            routers=[load_task_router(folder / "task_router" / name) for name in names],
            beta=settings.beta,
        )
        index = combine(
            [load_task_index(folder / "index" / name) for name in names],
            shrinkage=settings.shrinkage,
        )
        finder = Finder(index, settings.feature, settings.soft)
    answerer = Answerer(
        model=model,
        prompter=make_prompter(backbone, suffix=settings.suffix, suffixes=settings.suffixes),
        mixing=mixing,
        max_new_tokens=settings.max_new_tokens,
        batch_size=batch_size,
    )
    return Learned(backbone, answerer, finder, differences=differences)


def _base_config(
    settings: BundleSettings,
    folder: Path,
    *,
    base: str | None,
    dtype: str | None,
    quantization: str | None,
) -> Base:
    """The section `base` of the recipe that answered, with what the caller wants otherwise."""
    tiny = settings.base == "tiny" and settings.prompt == "auto"
    try:
        return Base.model_validate(
            {
                "model": base or settings.base,
                "revision": settings.revision if base in (None, settings.base) else None,
                # By name, `auto` would take another prompt for a copy of the built-in base.
                "prompt": "short" if tiny else settings.prompt,
                "dtype": dtype or settings.dtype,
                "quantization": quantization or settings.quantization,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ClmoeError(
            f"{folder} cannot be loaded so: {'.'.join(map(str, first['loc']))} is "
            f"{first['input']!r}, which is unknown: {first['msg']}"
        ) from error


def _backbone(config: Base, settings: BundleSettings, *, device: str) -> Backbone:
    try:
        return load_backbone(config, device=device)
    except ClmoeError as error:
        unquantised = "base.quantization=none"
        if settings.quantization == "none" or unquantised not in (error.hint or ""):
            raise
        instead = "clmoe.load(..., quantization='none'), whose answers may differ"
        hint = str(error.hint).replace(unquantised, instead)
        raise ClmoeError(str(error), hint=hint) from error


def _differences(
    settings: BundleSettings, backbone: Backbone, *, quantization: str
) -> tuple[str, ...]:
    """How the base is loaded otherwise than when the run answered."""
    pairs = (
        ("dtype", settings.dtype, str(backbone.dtype).removeprefix("torch.")),
        ("quantization", settings.quantization, quantization),
        ("device", settings.device, backbone.device.type),
    )
    return tuple(
        f"the run answered with the base's {name} {then}, here it is {now}"
        for name, then, now in pairs
        if then not in (None, "auto", now)
    )


def _picture(image: Image.Image | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise ClmoeError(f"{image} cannot be read as a picture: {error}") from error

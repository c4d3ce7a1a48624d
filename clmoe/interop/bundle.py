"""One folder with everything an answer needs beside the base model, and answering from it.

Layout: PEFT's `adapter_config.json` and `adapter_model.safetensors`, then `clmoe.json` (how to
prompt, mix and index), `task_router/NN-TASK/`, `index/NN-TASK/` and the card `README.md`.
`PeftModel.from_pretrained` reads the first two, which gives experts and instance routers only;
`load` applies Eq 8 and 9 too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

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
FORMAT = 1


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


@dataclass(frozen=True)
class Reply:
    """An answer, and the task that Eq 8 took the question for (None where no index is used)."""

    text: str
    task: str | None


class Learned:
    """A base model with everything a bundle adds to it."""

    def __init__(self, backbone: Backbone, answerer: Answerer, finder: Finder | None) -> None:
        """Use `load`."""
        self._finder = finder
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
    folder: str | Path, base: str | None = None, *, device: str = "cpu", batch_size: int = 32
) -> Learned:
    """Load a bundle onto its base model.

    Args:
        folder: Written by `clmoe.export`.
        base: The base model: ``tiny``, a folder or a hub name; None: the one it was made with.
        device: Where to.
        batch_size: Questions at a time.

    Raises:
        ClmoeError: The folder is no bundle, or does not fit the base.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    revision = settings.revision if base in (None, settings.base) else None
    config = Base.model_validate(
        {"model": base or settings.base, "revision": revision, "prompt": settings.prompt}
    )
    backbone = load_backbone(config, device=device)
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
    return Learned(backbone, answerer, finder)


def _picture(image: Image.Image | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise ClmoeError(f"{image} cannot be read as a picture: {error}") from error

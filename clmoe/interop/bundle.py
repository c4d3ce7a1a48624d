"""One folder with everything an answer needs beside the base model, and answering from it.

Layout: PEFT's `adapter_config.json` and `adapter_model.safetensors`, then `clmoe.json` (how to
prompt, mix and index), `task_router/NN-TASK/` and `index/NN-TASK/`. `PeftModel.from_pretrained`
reads the first two, which gives experts and instance routers only; `load` applies Eq 8 and 9 too.
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
from clmoe.data.prompts import Prompter, find_template
from clmoe.errors import ClmoeError
from clmoe.evaluation.answerer import Answerer, TaskMixing
from clmoe.method.task_index import combine, load_task_index
from clmoe.method.task_router import load_task_router
from clmoe.model.adapter_file import load_adapter
from clmoe.model.backbone import Backbone, embed, load_backbone, project_images
from clmoe.model.pictures import preprocess
from clmoe.recipe.schema import Base

SETTINGS = "clmoe.json"
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


@dataclass(frozen=True)
class Reply:
    """An answer, and the task that Eq 8 took the question for (None where no index is used)."""

    text: str
    task: str | None


class Learned:
    """A base model with everything a bundle adds to it."""

    def __init__(self, backbone: Backbone, answerer: Answerer) -> None:
        """Use `load`."""
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
        prompts = [self._answerer.prompter.prompt(question) for question in questions]
        gates = None
        if self._answerer.mixing is not None:
            with self.model.disable_adapter():
                features = self._answerer.features(self.model.get_base_model(), questions)
            gates = self._answerer.mixing.gates(features)

        def inputs(batch: Batch) -> dict[str, torch.Tensor]:
            pixels = preprocess(self.backbone, [pictures[row] for row in batch.rows])
            ids = batch.input_ids.to(self.backbone.device)
            embeddings = embed(self.backbone, ids, project_images(self.backbone, pixels))
            mask = batch.attention_mask.to(self.backbone.device)
            return {"inputs_embeds": embeddings, "attention_mask": mask}

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
) -> None:
    """Write a bundle.

    Args:
        folder: Where to; it must not exist.
        adapter: Folder of the adapter.
        routers: Folder of the task router of every learned task, in order; empty without mixing.
        indexes: Folder of the index of every learned task, in order; empty without mixing.
        settings: What `load` needs to know.
    """
    if folder.exists():
        raise ClmoeError(f"{folder} exists", hint="name another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(adapter, partial)
    for kind, folders in (("task_router", routers), ("index", indexes)):
        for number, (task, source) in enumerate(zip(settings.tasks, folders, strict=False), 1):
            shutil.copytree(source, partial / kind / f"{number:02d}-{task}")
    text = json.dumps(asdict(settings), indent=1) + "\n"
    (partial / SETTINGS).write_text(text, encoding="utf-8")
    partial.rename(folder)


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
        return BundleSettings(**{**found, "tasks": tuple(found["tasks"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClmoeError(
            f"{folder} is not a bundle: {error!r}", hint="make one with clmoe.export"
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
    template = find_template(
        backbone.prompt, tokenizer=backbone.tokenizer, image_token=backbone.image_token
    )
    mixing = None
    if settings.mixes:
        names = [f"{number:02d}-{task}" for number, task in enumerate(settings.tasks, 1)]
        mixing = TaskMixing(
            tasks=settings.tasks,
            routers=[load_task_router(folder / "task_router" / name) for name in names],
            index=combine(
                [load_task_index(folder / "index" / name) for name in names],
                shrinkage=settings.shrinkage,
            ),
            beta=settings.beta,
            feature=settings.feature,
        )
    answerer = Answerer(
        model=model,
        prompter=Prompter(
            tokenizer=backbone.tokenizer,
            template=template,
            image_token=backbone.image_token,
            image_tokens=backbone.image_tokens or 0,
            suffix=settings.suffix,
        ),
        mixing=mixing,
        max_new_tokens=settings.max_new_tokens,
        batch_size=batch_size,
    )
    return Learned(backbone, answerer)


def _picture(image: Image.Image | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise ClmoeError(f"{image} cannot be read as a picture: {error}") from error

"""Pictures as a base model sees them, and a batch with its pictures put in.

LLaVA's vision tower and projector are frozen during continual tuning, so a picture's features never
change: they are computed once and kept while they fit in a budget, by default 512 MiB. That holds
all pictures of the built-in base, and about the first 113 of a 7B model in bfloat16, whose 576
features a picture take 4.7 MB; those of later pictures are computed each time. Other models get
what their own processor makes of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clmoe.data.batches import Batch
from clmoe.data.images import find_image, load_rgb
from clmoe.data.prompts import Prompter, find_template
from clmoe.model.adapter_file import is_sharded
from clmoe.model.backbone import Backbone, embed, project_images


class Pictures:
    """Loads pictures below one root and turns them into inputs of the base model."""

    def __init__(self, backbone: Backbone, *, root: Path, budget: int = 512 * 2**20) -> None:
        """Serve pictures below ``root``, keeping at most ``budget`` bytes of features."""
        self._backbone, self._root, self._budget = backbone, root, budget
        self._kept: dict[str, Tensor] = {}
        self._texts: dict[str, str] = {}
        self._bytes = 0

    def text(self, name: str) -> str | None:
        """What stands for a picture in a prompt; None where it is the same for every picture."""
        if self._backbone.pictures is None:
            return None
        if name not in self._texts:
            with Image.open(find_image(self._root, name)) as image:  # reads no pixels
                self._texts[name] = self._backbone.pictures.text(image.size)
        return self._texts[name]

    def pixel_values(self, names: Sequence[str]) -> Tensor:
        """Preprocessed pictures, [batch, channels, height, width]."""
        return preprocess(self._backbone, [load_rgb(self._root, name) for name in names])

    def features(self, names: Sequence[str]) -> Tensor:
        """Projected features of pictures, [batch, image tokens, hidden]."""
        new = sorted({name for name in names if name not in self._kept})
        fresh: dict[str, Tensor] = {}
        if new:
            with torch.no_grad():
                features = project_images(self._backbone, self.pixel_values(new))
            fresh = dict(zip(new, features, strict=True))
            if self._bytes + features.nbytes <= self._budget:
                self._kept |= fresh
                self._bytes += features.nbytes
        return torch.stack([self._kept[n] if n in self._kept else fresh[n] for n in names])

    def inputs(
        self, batch: Batch, *, names: Sequence[str], train_projector: bool = False
    ) -> dict[str, Tensor]:
        """Inputs of the base for a batch whose sample ``i`` shows picture ``names[i]``.

        With ``train_projector`` the pixels go in, so that the projector gets its gradient. They do
        too where the base's parameters are sharded, which are whole within its own forward alone.
        """
        base = self._backbone
        if base.pictures is not None or train_projector or is_sharded(base.model):
            images = [load_rgb(self._root, name) for name in names]
            return picture_inputs(base, batch, images=images)
        ids, mask = batch.input_ids.to(base.device), batch.attention_mask.to(base.device)
        embeddings = embed(base, ids, self.features(names))
        return {"inputs_embeds": embeddings, "attention_mask": mask}


def make_prompter(backbone: Backbone, *, suffix: str, suffixes: Sequence[str] = ()) -> Prompter:
    """Return what renders and encodes conversations for a base model.

    Args:
        backbone: The base model.
        suffix: The source's instruction suffix.
        suffixes: Suffixes of single tasks.
    """
    pictures = backbone.pictures
    return Prompter(
        tokenizer=backbone.tokenizer,
        template=find_template(
            backbone.prompt,
            tokenizer=backbone.tokenizer,
            image_token=backbone.image_token if pictures is None else pictures.marker,
            chat_template=backbone.chat_template,
        ),
        image_token=backbone.image_token,
        image_tokens=backbone.image_tokens,
        suffix=suffix,
        suffixes=tuple(suffixes),
    )


def picture_inputs(
    backbone: Backbone, batch: Batch, *, images: Sequence[Image.Image]
) -> dict[str, Tensor]:
    """Inputs of the base for a batch whose sample ``i`` shows ``images[i]``, from the pixels.

    What they are depends on the model: `input_ids` and `attention_mask` [batch, tokens], and what
    its processor makes of the pictures.
    """
    tensors = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if backbone.pictures is None:
        tensors["pixel_values"] = preprocess(backbone, images)
    else:
        tensors |= backbone.pictures.tensors(images) | backbone.pictures.types(batch)
    return {
        key: tensor.to(
            device=backbone.device, dtype=backbone.dtype if tensor.is_floating_point() else None
        )
        for key, tensor in tensors.items()
    }


def preprocess(backbone: Backbone, images: Sequence[Image.Image]) -> Tensor:
    """Pictures as pixels for the vision tower, [batch, channels, height, width].

    They are first padded to a square with the processor's mean colour, as LLaVA-1.5 trains (Liu
    et al. 2023), in training and evaluation alike.
    """
    mean = getattr(backbone.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    color = tuple(int(255 * value) for value in mean)
    squares = [pad_to_square(image, color=color) for image in images]
    return torch.as_tensor(
        backbone.image_processor(images=squares, return_tensors="pt")["pixel_values"]
    )


def pad_to_square(image: Image.Image, *, color: tuple[int, ...]) -> Image.Image:
    """Put a picture in the middle of a square of one colour; a square one is returned as it is."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square

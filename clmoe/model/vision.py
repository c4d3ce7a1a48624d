"""How a base model is shown a picture: the text that stands for it, and the tensors beside it.

LLaVA-1.5 gives every picture the same number of image tokens. In other models that text depends on
the picture's size and has tokens of its own around it (LLaVA-NeXT, Qwen-VL, Idefics3, Gemma 3).
The model's own processor of transformers knows all of it, so it is asked, and nothing is known
here of any one model: what it makes of the marker alone is the picture's text, and what does not
change with the text around the marker belongs to the picture.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE
from clmoe.errors import ClmoeError

_OF_THE_TEXT = {"input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids"}
_TYPES = ("token_type_ids", "mm_token_type_ids")


class PictureProcessor:
    """A model's processor, reduced to pictures.

    Attributes:
        marker: What stands for a whole picture in the text that the processor is given.
        prefix_text: Whether prompts are read in both directions and answers from left to right
            (PaliGemma), so that the model must be told which tokens are which.
    """

    def __init__(self, processor: Any, *, model: Any, name: str) -> None:
        """Find out which of the processor's outputs belong to the picture.

        Args:
            processor: From `AutoProcessor`.
            model: The base model it is for.
            name: The base model's name, for errors.

        Raises:
            ClmoeError: The processor's outputs are not understood.
        """
        self._processor, self._name = processor, name
        self._texts: dict[tuple[int, int], str] = {}
        self._image_token_id = int(model.config.image_token_id)
        self.marker = str(processor.image_token)
        picture = Image.new("RGB", (96, 64))
        alone = self._run([picture], text=self.marker)
        longer = self._run([picture], text=f"{self.marker} which")
        self._of_the_text = {
            key for key, value in alone.items() if not _same(value, longer.get(key))
        } | (_OF_THE_TEXT & alone.keys())
        unknown = self._of_the_text - _OF_THE_TEXT
        if unknown:
            raise ClmoeError(
                f"{name} needs {', '.join(sorted(unknown))}, which depend on picture and text "
                f"together ({type(model).__name__}); such models are not supported",
                hint="use a model whose decoder reads pictures as tokens among the text",
            )
        self.prefix_text = "labels" in alone
        taken = inspect.signature(model.forward).parameters
        self._types = [key for key in _TYPES if key in alone and key in taken]
        for key in self._types if not self.prefix_text else ():
            if not torch.equal(alone[key].bool(), alone["input_ids"] == self._image_token_id):
                raise ClmoeError(f"{name}: {key} marks other tokens than those of the picture")

    def text(self, size: tuple[int, int]) -> str:
        """Return what stands for a picture of this size in a prompt.

        Args:
            size: Width and height in pixels.

        Raises:
            ClmoeError: The tokenizer does not read that text as the processor does.
        """
        if size not in self._texts:
            ids = self._run([Image.new("RGB", size)], text=self.marker)["input_ids"][0].tolist()
            tokenizer = self._processor.tokenizer
            text = tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
                raise ClmoeError(f"{self._name}: its tokenizer does not give back {text!r}")
            # PaliGemma's processor ends the prompt by itself; its template does that here.
            self._texts[size] = text.removesuffix("\n") if self.prefix_text else text
        return self._texts[size]

    def tensors(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return everything the model takes for these pictures but the text, in their order."""
        made = self._run(images, text=self.marker)
        return {key: made[key] for key in made if key not in self._of_the_text}

    def types(self, batch: Batch) -> dict[str, Tensor]:
        """Return what says which tokens are of which kind, [batch, tokens], where the model asks.

        The kinds are picture and text, or with ``prefix_text`` answer and prompt.
        """
        if self.prefix_text:
            kinds = batch.labels != IGNORE
        else:
            kinds = (batch.input_ids == self._image_token_id) & batch.attention_mask.bool()
        return {key: kinds.long() for key in self._types}

    def _run(self, images: Sequence[Image.Image], *, text: str) -> dict[str, Tensor]:
        with warnings.catch_warnings():
            # transformers hands PaliGemma's tokens to NumPy in a way that NumPy 2 warns about.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            made = self._processor(
                images=[[image] for image in images],
                text=[text] * len(images),
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            )
        return {key: torch.as_tensor(value) for key, value in made.items()}


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)

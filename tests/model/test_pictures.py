"""Pictures as single families are shown them: dtype, padding, and what a prompt needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clmoe.data.batches import collate
from clmoe.errors import ClmoeError
from clmoe.model.backbone import embed, load_backbone, project_images
from clmoe.model.pictures import Pictures, make_prompter, picture_inputs
from clmoe.recipe.schema import Base

from .families import QUESTIONS


def test_bfloat16_goes_to_the_pictures_too(folders: Callable[[str], Path]) -> None:
    folder = folders("llava_next")
    base = load_backbone(Base(model=str(folder), dtype="bfloat16"))
    assert base.pictures is not None
    prompt = make_prompter(base, suffix="").prompt("Is it red?", picture=base.pictures.text((9, 9)))
    batch = collate([prompt], rows=[0], pad=0, left=False)
    fed = picture_inputs(base, batch, images=[Image.new("RGB", (9, 9))])
    assert fed["pixel_values"].dtype is torch.bfloat16
    assert fed["image_sizes"].dtype is torch.int64
    assert base.model(**fed).logits.dtype is torch.bfloat16


def test_llavas_pictures_are_padded_to_a_square_in_training_and_evaluation(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """With the processor's mean colour (Liu et al. 2023), by hand with NumPy."""
    base = load_backbone(Base(model=str(folders("llava"))))
    picture = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    square = np.empty((40, 40, 3), dtype=np.uint8)
    square[:] = [int(255 * value) for value in base.image_processor.image_mean]
    square[10:30] = picture
    wanted = torch.as_tensor(base.image_processor([Image.fromarray(square)]).pixel_values[0])
    pictures = Pictures(base, root=tmp_path)
    assert pictures.text("wide.png") is None
    prompt = make_prompter(base, suffix="").prompt("Is it red?")
    batch = collate([prompt], rows=[0], pad=0, left=True)
    trained = pictures.inputs(batch, names=["wide.png"], train_projector=True)
    shown = picture_inputs(base, batch, images=[Image.fromarray(picture)])
    assert torch.equal(pictures.pixel_values(["wide.png"])[0], wanted)
    assert torch.equal(trained["pixel_values"][0], wanted)
    assert torch.equal(shown["pixel_values"][0], wanted)
    features = project_images(base, wanted[None])
    assert torch.equal(pictures.features(["wide.png"]), features)
    fast = pictures.inputs(batch, names=["wide.png"])
    assert torch.equal(fast["inputs_embeds"], embed(base, batch.input_ids, features))


def test_other_models_get_their_pictures_unpadded(folders: Callable[[str], Path]) -> None:
    base = load_backbone(Base(model=str(folders("gemma3"))))
    picture = Image.new("RGB", (40, 20), (10, 90, 200))
    assert base.pictures is not None
    wanted = torch.as_tensor(base.image_processor([picture]).pixel_values[0])
    assert torch.equal(base.pictures.tensors([picture])["pixel_values"][0], wanted)


def test_a_prompt_without_its_picture_is_a_mistake_in_the_code(
    folders: Callable[[str], Path],
) -> None:
    base = load_backbone(Base(model=str(folders("llava_next"))))
    with pytest.raises(AssertionError, match="no text for pictures of all sizes"):
        make_prompter(base, suffix="").prompt("Is it red?")


def test_paligemma_has_one_question_a_picture(folders: Callable[[str], Path]) -> None:
    prompter = make_prompter(load_backbone(Base(model=str(folders("paligemma")))), suffix="")
    with pytest.raises(ClmoeError, match="has one question a picture") as caught:
        prompter.encode(QUESTIONS, name="q", picture="<image><bos>")
    assert caught.value.hint == "set data.turns=question"

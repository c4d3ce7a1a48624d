"""The built-in base: what is shipped is what its record says, and it loads as any base does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
)

from clmoe.data.scenes import COLORS, SHAPES, split_of
from clmoe.data.sources.shapes import split_questions
from clmoe.model.tiny import IMAGE_TOKENS, build_image_processor, tiny_folder
from clmoe.training.pretrain_tiny import Plan, encode
from clmoe.training.tiny_corpus import pretraining_scenes, stream_digest
from clmoe.training.tiny_zero_shot import zero_shot

EASY_VQA_ANSWERS = (
    "circle", "green", "red", "gray", "yes", "teal", "black", "rectangle", "yellow", "triangle",
    "brown", "blue", "no",
)  # fmt: skip


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((tiny_folder() / "record.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder())


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(tiny_folder()).eval()


def test_the_shipped_file_is_the_recorded_one(record: dict[str, Any]) -> None:
    weights = (tiny_folder() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == record["sha256"]
    assert len(weights) == record["bytes"] <= 8_000_000
    assert record["plan"] == plan_dict()
    assert sum(record["seconds"].values()) < 40 * 60


def plan_dict() -> dict[str, Any]:
    return {name: getattr(Plan(), name) for name in Plan.__dataclass_fields__}


def test_it_is_small(model: LlavaForConditionalGeneration, record: dict[str, Any]) -> None:
    size = sum(p.numel() for p in model.parameters())
    assert size == record["parameters"] <= 2_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_it_says_as_much_as_its_record_states(
    model: LlavaForConditionalGeneration, tokenizer: Any, record: dict[str, Any]
) -> None:
    measured = zero_shot(model, tokenizer, split="val")
    assert 20 <= measured["AP"] <= 45
    assert measured["AP"] == pytest.approx(record["zero_shot"]["val"]["AP"], abs=1.0)
    for task, stated in record["zero_shot"]["val"].items():
        assert measured[task] == pytest.approx(stated, abs=3.0), task


def test_it_never_saw_a_scene_of_another_split(record: dict[str, Any]) -> None:
    plan = record["plan"]
    scenes = pretraining_scenes(plan["seed"], grid=plan["grid_scenes"], free=plan["free_scenes"])
    assert stream_digest(scenes) == record["scenes_sha256"]
    seen = {scene.sha() for scene in scenes}
    assert {split_of(sha) for sha in seen} == {"pretrain"}
    for split in ("train", "val", "test"):
        asked, _ = split_questions(0, split=split, per_task=100)
        assert seen.isdisjoint(scene.sha() for scene in asked)


def test_its_words(record: dict[str, Any], tokenizer: Any) -> None:
    words = set(record["words"])
    assert len(words & {*SHAPES, *COLORS}) >= 20
    assert words >= {*EASY_VQA_ANSWERS, "not"}
    for word in " ".join(record["words"]).split():
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word


@pytest.mark.parametrize("text", ["zebra", "naïve café", "日本 42%", "Hello, World\n"])
def test_it_can_say_any_word(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_special_tokens(tokenizer: Any) -> None:
    ids = tokenizer(["USER: <image>\nhi</s>", "x"], padding=True)["input_ids"]
    assert ids[0][0] == tokenizer.bos_token_id
    assert ids[0].count(tokenizer.convert_tokens_to_ids("<image>")) == 1
    assert ids[0][-1] == tokenizer.eos_token_id
    assert ids[1][0] == tokenizer.pad_token_id
    assert tokenizer.padding_side == "left"


def test_the_processor_makes_nine_image_tokens_and_generates(
    model: LlavaForConditionalGeneration,
) -> None:
    processor = AutoProcessor.from_pretrained(tiny_folder())
    talk = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "what color is the star?"}],
        }
    ]
    text = processor.apply_chat_template(talk)
    assert text == "USER: <image>\nwhat color is the star? ASSISTANT:"
    inputs = processor(images=[Image.new("RGB", (64, 64))], text=[text], return_tensors="pt")
    image_id = model.config.image_token_index
    assert (inputs["input_ids"] == image_id).sum() == IMAGE_TOKENS
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]


def test_the_image_processor_is_the_one_it_was_trained_with() -> None:
    loaded = AutoImageProcessor.from_pretrained(tiny_folder())
    image = Image.linear_gradient("L").convert("RGB").resize((48, 48))
    ours = build_image_processor()(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(loaded(image, return_tensors="pt")["pixel_values"], ours)
    assert ours.min() >= -1
    assert ours.max() <= 1


def test_training_encodes_as_one_text(tokenizer: Any) -> None:
    encoded = encode(tokenizer, [(0, [("what is it?", "red"), ("any star?", "no")])])
    joint = tokenizer(
        "USER: <image>\nwhat is it? ASSISTANT: red</s>USER: any star? ASSISTANT: no</s>"
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids = [image if t < 0 else int(t) for t in encoded.tokens[0]]
    at = ids.index(image)
    assert ids[:at] + [image] + ids[at + IMAGE_TOKENS :] == joint["input_ids"]
    said = tokenizer.convert_ids_to_tokens(encoded.tokens[0][encoded.supervised[0]].tolist())
    assert said == ["Ġred", "</s>", "Ġno", "</s>"]


def test_loading_is_silent_and_needs_no_torchvision() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer\n"
        f"folder = {str(tiny_folder())!r}\n"
        "for auto in (AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer):\n"
        "    auto.from_pretrained(folder)\n"
    )
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "warning"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [x for x in done.stderr.splitlines() if "Loading weights" not in x]
    assert (done.stdout, lines) == ("", [])

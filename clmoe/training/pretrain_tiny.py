"""Train the built-in base model: `python -m clmoe.training.pretrain_tiny --out FOLDER`.

Three stages, all on scenes of the pretraining split: (1) the vision tower and the projector learn
to point along the decoder's embeddings of the words for what each cell shows; (2) the decoder and
the projector learn captions and general questions, from patches that no longer change; (3) a short
stage mixes in questions in the words of the ten tasks, most of them answered by naming what is
seen. The folder gets the model, its processor and `record.json`, which says how it was made and
what it can do. With the same number of CPU threads the same seed
gives the same numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from clmoe.data.scenes import COLORS, DIRECTIONS, PATTERNS, SHAPES, SIZES, Scene, draw
from clmoe.model.tiny import IMAGE_TOKENS, build_model, build_processor, build_tokenizer
from clmoe.training.tiny_corpus import (
    WORDS,
    general_turns,
    pretraining_scenes,
    stream_digest,
    task_turns,
    tokenizer_texts,
)
from clmoe.training.tiny_steps import log, optimize, shuffled
from clmoe.training.tiny_zero_shot import pixels, zero_shot

_IGNORED = -100
PROPERTIES = {
    "shape": (*SHAPES, "nothing"),
    "color": tuple(COLORS),
    "pattern": PATTERNS,
    "size": SIZES,
    "direction": DIRECTIONS,
}
"""What the vision tower learns to tell of a cell: the values of each property."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides the result."""

    seed: int = 0
    grid_scenes: int = 60_000
    free_scenes: int = 12_000
    vision_steps: int = 2_500
    vision_batch: int = 96
    vision_lr: float = 2e-3
    text_steps: int = 1_600
    text_batch: int = 48
    text_lr: float = 2e-3
    turns: int = 6
    texts: int = 106_000
    task_steps: int = 300
    task_lr: float = 1e-3
    task_share: float = 1.0
    per_task: int = 400
    naming_per_task: int = 600


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Token sequences without their image tokens, padded to one length: each [N, L] (int16)."""

    scene: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray


def by_length(encoded: Encoded, *, batch: int, seed: str) -> Iterator[np.ndarray]:
    """Endless batches of rows of similar length, in random order, so that little is padding."""
    order = np.argsort((encoded.tokens != 0).sum(1), kind="stable")
    for start in shuffled(len(order) // batch, batch=1, seed=seed):
        yield order[int(start[0]) * batch :][:batch]


def property_targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Classes of each property in `PROPERTIES`, per cell and for the whole of a free scene.

    Returns:
        For each property [N, 9], and as `whole_*` [N]; -100 where there is nothing to tell.
    """
    cells = {k: np.full((len(scenes), IMAGE_TOKENS), _IGNORED) for k in PROPERTIES}
    whole = {f"whole_{k}": np.full(len(scenes), _IGNORED) for k in PROPERTIES}
    for row, scene in enumerate(scenes):
        if scene.things[0].cell >= 0:
            cells["shape"][row] = PROPERTIES["shape"].index("nothing")
        for thing in scene.things:
            for key, values in PROPERTIES.items():
                if not getattr(thing, key):
                    continue
                value = values.index(getattr(thing, key))
                if thing.cell >= 0:
                    cells[key][row, thing.cell] = value
                else:
                    whole[f"whole_{key}"][row] = value
    return {k: torch.from_numpy(v).long() for k, v in (cells | whole).items()}


def patch_features(model: LlavaForConditionalGeneration, pictures: np.ndarray) -> Tensor:
    """The vision tower's patches [B, 9, 96] for pictures [B, 48, 48, 3] (uint8)."""
    tower = model.model.vision_tower(pixel_values=pixels(pictures))
    patches: Tensor = tower.last_hidden_state[:, 1:]
    return patches


def train_vision(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: np.ndarray,
    scenes: Sequence[Scene],
    plan: Plan,
) -> list[float]:
    """Stage 1: the vision tower and the projector; the classes are the decoder's own words.

    An image token learns to point along the embeddings of the words for what its cell shows, so
    that the decoder finds pictures and words in one space. Where a cell is, is told by a linear
    head that is thrown away.
    """
    targets = property_targets(scenes)
    words = {
        key: [tokenizer(f" {v}", add_special_tokens=False)["input_ids"][0] for v in values]
        for key, values in PROPERTIES.items()
    }
    vectors = {k: model.get_input_embeddings().weight.detach()[ids] for k, ids in words.items()}
    place = nn.Linear(model.config.text_config.hidden_size, IMAGE_TOKENS)
    places = torch.arange(IMAGE_TOKENS).repeat(plan.vision_batch)
    batches = shuffled(len(scenes), batch=plan.vision_batch, seed=f"{plan.seed}/vision")

    def loss_of(step: int) -> Tensor:
        rows = next(batches)
        tokens = model.model.multi_modal_projector(patch_features(model, pictures[rows]))
        loss = nn.functional.cross_entropy(place(tokens).flatten(0, 1), places)
        for name, classes in targets.items():
            seen = tokens.mean(1) if name.startswith("whole_") else tokens
            logits = seen @ vectors[name.removeprefix("whole_")].T
            loss = (
                loss
                + nn.functional.cross_entropy(
                    logits.flatten(0, -2), classes[rows].flatten(), ignore_index=_IGNORED
                ).nan_to_num()
            )
        return loss

    inner = model.model
    parameters = [
        *inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters(),
        *place.parameters(),
    ]  # fmt: skip
    return optimize(parameters, loss_of, steps=plan.vision_steps, lr=plan.vision_lr, label="vision")


def encode(
    tokenizer: PreTrainedTokenizerFast, talks: Sequence[tuple[int, Sequence[tuple[str, str]]]]
) -> Encoded:
    """Encode talks, each a scene's position and its turns; only the answers are supervised."""
    first = tokenizer("USER: <image>", add_special_tokens=True)["input_ids"][:-1]
    pieces = [
        piece
        for _, turns in talks
        for i, (question, answer) in enumerate(turns)
        for piece in (f"{'' if i else chr(10)}{'USER: ' if i else ''}{question} ASSISTANT:",
                      f" {answer}</s>")
    ]  # fmt: skip
    ids = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
    rows = []
    for _, turns in talks:
        tokens, flags = [*first, *[_IMAGE] * IMAGE_TOKENS], [False] * (len(first) + IMAGE_TOKENS)
        for _ in turns:
            for supervised in (False, True):
                piece = next(ids)
                tokens += piece
                flags += [supervised] * len(piece)
        rows.append((tokens, flags))
    length = max(len(tokens) for tokens, _ in rows)
    encoded = np.full((len(rows), length), tokenizer.pad_token_id, dtype=np.int16)
    supervised_at = np.zeros((len(rows), length), dtype=bool)
    for row, (tokens, flags) in enumerate(rows):
        encoded[row, : len(tokens)] = tokens
        supervised_at[row, : len(tokens)] = flags
    return Encoded(np.array([scene for scene, _ in talks]), encoded, supervised_at)


_IMAGE = -1  # stands for an image token in encoded talks


def answer_loss(
    model: LlavaForConditionalGeneration, features: Tensor, encoded: Encoded, rows: np.ndarray
) -> Tensor:
    """Mean negative log-likelihood of the supervised tokens (Eq 4) of some encoded talks."""
    used = int((encoded.tokens[rows] != 0).any(0).nonzero()[0][-1]) + 1
    tokens = torch.from_numpy(encoded.tokens[rows, :used].astype(np.int64))
    supervised = torch.from_numpy(encoded.supervised[rows, :used])
    embedded = model.get_input_embeddings()(tokens.clamp_min(0))
    is_image = (tokens == _IMAGE).unsqueeze(-1)
    projected = model.model.multi_modal_projector(features[encoded.scene[rows]])
    embedded = embedded.masked_scatter(is_image, projected)
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][supervised[:, 1:]])
    return nn.functional.cross_entropy(logits, tokens[:, 1:][supervised[:, 1:]])


def speaking_parameters(model: LlavaForConditionalGeneration) -> list[nn.Parameter]:
    """The parameters of the decoder and the projector."""
    inner = model.model
    return [*inner.language_model.parameters(), *inner.multi_modal_projector.parameters()]


def train_text(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: Tensor,
    scenes: Sequence[Scene],
    plan: Plan,
) -> list[float]:
    """Stage 2: the decoder and the projector, on captions and general questions."""
    rng = random.Random(f"{plan.seed}/text")
    positions = [i % len(scenes) for i in range(plan.texts)]
    talks = [(i, general_turns(scenes[i], rng, count=plan.turns)) for i in positions]
    encoded = encode(tokenizer, talks)
    batches = by_length(encoded, batch=plan.text_batch, seed=f"{plan.seed}/text")

    def loss_of(step: int) -> Tensor:
        return answer_loss(model, features, encoded, next(batches))

    parameters = speaking_parameters(model)
    return optimize(parameters, loss_of, steps=plan.text_steps, lr=plan.text_lr, label="text")


def train_tasks(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: Tensor,
    scenes: Sequence[Scene],
    plan: Plan,
) -> list[float]:
    """Stage 3: general questions, with questions in the words of the tasks among them."""
    rng = random.Random(f"{plan.seed}/tasks")
    grid = scenes[: plan.grid_scenes]
    picked = [rng.randrange(len(grid)) for _ in range(20 * plan.naming_per_task)]
    asked = task_turns(
        [grid[i] for i in picked],
        per_task=plan.per_task,
        naming_per_task=plan.naming_per_task,
        rng=rng,
    )
    few = encode(tokenizer, [(picked[i], [turn]) for i, turn in asked])
    general = encode(
        tokenizer,
        [
            (i, general_turns(scenes[i], rng, count=plan.turns))
            for i in (rng.randrange(len(scenes)) for _ in range(plan.task_steps * plan.text_batch))
        ],
    )
    many = by_length(general, batch=plan.text_batch, seed=f"{plan.seed}/general")
    some = shuffled(len(few.scene), batch=plan.text_batch, seed=f"{plan.seed}/few")

    def loss_of(step: int) -> Tensor:
        loss = answer_loss(model, features, general, next(many))
        return loss + plan.task_share * answer_loss(model, features, few, next(some))

    parameters = speaking_parameters(model)
    return optimize(parameters, loss_of, steps=plan.task_steps, lr=plan.task_lr, label="tasks")


def pretrain(out: Path, *, plan: Plan, states: Path | None = None) -> dict[str, Any]:
    """Train the base, write it to `out`, and return its record.

    Args:
        out: The folder to write.
        plan: What decides the result.
        states: A folder that keeps the weights after each stage; a stage that is there is not
            repeated. Every stage seeds torch anew, so this changes nothing but the time.
    """
    began = time.monotonic()
    scenes = pretraining_scenes(plan.seed, grid=plan.grid_scenes, free=plan.free_scenes)
    tokenizer = build_tokenizer(tokenizer_texts(scenes[:6000], seed=plan.seed))
    torch.manual_seed(plan.seed)
    model = build_model(tokenizer)
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    log.info("%d scenes, %d words", len(scenes), len(tokenizer))
    losses: dict[str, list[float]] = {}
    seconds: dict[str, int] = {"scenes": round(time.monotonic() - began)}

    def stage(name: str, train: Callable[[], list[float]]) -> None:
        kept = states / f"{name}.pt" if states else None
        if kept and kept.exists():
            saved = torch.load(kept, weights_only=True)
            model.load_state_dict(saved["model"])
            losses[name], seconds[name] = saved["losses"], saved["seconds"]
            return
        torch.manual_seed(plan.seed + 1 + len(losses))
        started = time.monotonic()
        losses[name] = train()
        seconds[name] = round(time.monotonic() - started)
        log.info("%s: %d s", name, seconds[name])
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(
                {"model": model.state_dict(), "losses": losses[name], "seconds": seconds[name]},
                kept,
            )

    stage("vision", lambda: train_vision(model, tokenizer, pictures, scenes, plan))
    with torch.no_grad():
        parts = [patch_features(model, part) for part in np.array_split(pictures, 200)]
    features = torch.cat(parts)
    stage("text", lambda: train_text(model, tokenizer, features, scenes, plan))
    stage("tasks", lambda: train_tasks(model, tokenizer, features, scenes, plan))
    model.save_pretrained(out)
    build_processor(tokenizer).save_pretrained(out)
    weights = (out / "model.safetensors").read_bytes()
    record = {
        "command": "python -m clmoe.training.pretrain_tiny --out clmoe/assets/tiny_llava",
        "plan": dataclasses.asdict(plan),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
        "scenes_sha256": stream_digest(scenes),
        "losses": losses,
        "words": list(WORDS),
        "zero_shot": {split: zero_shot(model, tokenizer, split=split) for split in ("val", "test")},
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
        },
    }
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pretraining from the command line."""
    parser = argparse.ArgumentParser(description="Train the built-in base model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--states", type=Path, help="folder that keeps each stage's weights")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    record = pretrain(given.out, plan=Plan(seed=given.seed), states=given.states)
    log.info("zero-shot %s, seconds %s", record["zero_shot"], record["seconds"])


if __name__ == "__main__":
    main()

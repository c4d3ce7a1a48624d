"""Train the built-in base model: `python -m clmoe.training.pretrain_tiny --out FOLDER`.

Three stages, all on scenes of the pretraining split: (1) the vision tower and the projector learn
to name each cell's properties through temporary linear heads; (2) the decoder and the projector
learn captions and general questions, from patches that no longer change; (3) a short stage mixes
in a few questions of each of the ten tasks. The folder gets the model, its processor and
`record.json`, which says how it was made and what it can do. On one CPU thread the same seed gives
the same numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import math
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
from clmoe.training.tiny_zero_shot import pixels, zero_shot

log = logging.getLogger("clmoe.pretrain_tiny")
_IGNORED = -100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides the result."""

    seed: int = 0
    grid_scenes: int = 60_000
    free_scenes: int = 12_000
    vision_steps: int = 3_000
    vision_batch: int = 96
    vision_lr: float = 2e-3
    text_steps: int = 2_200
    text_batch: int = 48
    text_lr: float = 1.5e-3
    turns: int = 6
    texts: int = 106_000
    task_steps: int = 500
    task_lr: float = 5e-4
    task_share: float = 0.25
    per_task: int = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Token sequences without their image tokens, padded to one length: each [N, L] (int16)."""

    scene: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray


def one_cycle(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over 5 percent, then a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def optimize(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    label: str,
) -> list[float]:
    """AdamW with one cycle of the learning rate; returns the mean loss of each tenth of it."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * one_cycle(step, steps)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            log.info("%s %d/%d: loss %.4f", label, step + 1, steps, float(np.mean(losses[-100:])))
    return [round(float(np.mean(part)), 4) for part in np.array_split(losses, 10)]


def shuffled(total: int, *, batch: int, seed: str) -> Iterator[np.ndarray]:
    """Endless batches of indices, every index once per pass."""
    rng = np.random.default_rng(list(seed.encode()))
    while True:
        order = rng.permutation(total)
        yield from (order[i : i + batch] for i in range(0, total - batch + 1, batch))


def by_length(encoded: Encoded, *, batch: int, seed: str) -> Iterator[np.ndarray]:
    """Endless batches of rows of similar length, in random order, so that little is padding."""
    order = np.argsort((encoded.tokens != 0).sum(1), kind="stable")
    for start in shuffled(len(order) // batch, batch=1, seed=seed):
        yield order[int(start[0]) * batch :][:batch]


def property_targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Classes per cell [N, 9] and property; -100 where a cell has none.

    A free scene's object is asked of every cell, as `whole_*` [N].
    """
    vocabularies = {
        "shape": SHAPES, "color": tuple(COLORS), "pattern": PATTERNS, "size": SIZES,
        "direction": DIRECTIONS,
    }  # fmt: skip
    cells = {k: np.full((len(scenes), IMAGE_TOKENS), _IGNORED) for k in (*vocabularies, "filled")}
    whole = {f"whole_{k}": np.full(len(scenes), _IGNORED) for k in vocabularies}
    for row, scene in enumerate(scenes):
        if scene.things[0].cell >= 0:
            cells["filled"][row] = 0
        for thing in scene.things:
            for key, values in vocabularies.items():
                value = getattr(thing, key)
                if not value:
                    continue
                if thing.cell >= 0:
                    cells[key][row, thing.cell] = values.index(value)
                else:
                    whole[f"whole_{key}"][row] = values.index(value)
            if thing.cell >= 0:
                cells["filled"][row, thing.cell] = 1
    return {k: torch.from_numpy(v).long() for k, v in (cells | whole).items()}


def patch_features(model: LlavaForConditionalGeneration, pictures: np.ndarray) -> Tensor:
    """The vision tower's patches [B, 9, 96] for pictures [B, 48, 48, 3] (uint8)."""
    tower = model.model.vision_tower(pixel_values=pixels(pictures))
    patches: Tensor = tower.last_hidden_state[:, 1:]
    return patches


def train_vision(
    model: LlavaForConditionalGeneration, pictures: np.ndarray, scenes: Sequence[Scene], plan: Plan
) -> list[float]:
    """Stage 1: the vision tower and the projector, with linear heads that are thrown away."""
    targets = property_targets(scenes)
    sizes = {"shape": 10, "color": 11, "pattern": 4, "size": 2, "direction": 4}
    width = model.config.text_config.hidden_size
    heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in (sizes | {"filled": 2}).items()})
    heads["place"] = nn.Linear(width, IMAGE_TOKENS)
    wholes = nn.ModuleDict({f"whole_{k}": nn.Linear(width, n) for k, n in sizes.items()})
    batches = shuffled(len(scenes), batch=plan.vision_batch, seed=f"{plan.seed}/vision")
    places = torch.arange(IMAGE_TOKENS).expand(plan.vision_batch, -1)

    def loss_of(step: int) -> Tensor:
        rows = next(batches)
        tokens = model.model.multi_modal_projector(patch_features(model, pictures[rows]))
        wanted = {k: v[rows] for k, v in targets.items()} | {"place": places}
        loss = torch.zeros(())
        for name, head in [*heads.items(), *wholes.items()]:
            logits = head(tokens.mean(1) if name in wholes else tokens)
            loss = (
                loss
                + nn.functional.cross_entropy(
                    logits.flatten(0, -2), wanted[name].flatten(), ignore_index=_IGNORED
                ).nan_to_num()
            )
        return loss

    parameters = [
        *model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters(),
        *heads.parameters(), *wholes.parameters(),
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
    """Stage 3: general questions with a small number of questions of each task among them."""
    rng = random.Random(f"{plan.seed}/tasks")
    grid = scenes[: plan.grid_scenes]
    picked = [rng.randrange(len(grid)) for _ in range(20 * plan.per_task)]
    asked = task_turns([grid[i] for i in picked], per_task=plan.per_task, rng=rng)
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

    stage("vision", lambda: train_vision(model, pictures, scenes, plan))
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--states", type=Path, help="folder that keeps each stage's weights")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    record = pretrain(given.out, plan=Plan(seed=given.seed), states=given.states)
    log.info("zero-shot %s, seconds %s", record["zero_shot"], record["seconds"])


if __name__ == "__main__":
    main()

"""Batched greedy answers: left padding, longest prompts first, short outputs.

A base's own `generation_config.json` may ask for sampling or for penalties (Qwen2.5-VL's has a
repetition penalty). Evaluation is plain greedy decoding of every base, so none of it is used but
the tokens that end an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from clmoe.data.batches import Batch, by_length, collate
from clmoe.data.prompts import Encoded


@dataclass(frozen=True)
class Answer:
    """One generated answer: the sample's position, and the text without special tokens."""

    row: int
    text: str


@torch.no_grad()
def generate_answers(
    model: Any,
    *,
    prompts: Sequence[Encoded],
    rows: Sequence[int],
    inputs: Callable[[Batch], dict[str, Tensor]],
    tokenizer: Any,
    max_new_tokens: int,
    batch_size: int,
    stops: Sequence[int] | None = None,
    gates: Callable[[list[int]], AbstractContextManager[None]] = lambda rows: nullcontext(),
) -> Iterator[list[Answer]]:
    """Yield answers batch by batch, the longest prompts first.

    Args:
        model: The adapted (or bare) model in evaluation mode.
        prompts: Encoded prompts of the whole data set.
        rows: Which of them to answer.
        inputs: Turns a left-padded batch into what ``generate`` takes.
        tokenizer: Gives padding and end tokens, and decodes.
        max_new_tokens: At most so many tokens an answer.
        batch_size: Prompts a batch; it changes speed and memory, not answers.
        stops: Ids that end an answer (`Prompter.stops`), beside those that the model itself stops
            at; None: the tokenizer's end of text.
        gates: Puts the task router weights of these rows in place while they are answered.
    """
    ends = sorted({*(stops or [tokenizer.eos_token_id]), *_own_stops(model)})
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
    )
    for group in by_length([len(prompts[r].input_ids) for r in rows], batch_size=batch_size):
        chosen = [rows[position] for position in group]
        batch = collate(
            [prompts[r] for r in chosen], rows=chosen, pad=tokenizer.pad_token_id, left=True
        )
        fed = inputs(batch)
        with gates(chosen), _only(settings, model=model):
            output = model.generate(**fed, generation_config=settings)
        if "input_ids" in fed:  # what generate returns then begins with the prompt
            output = output[:, fed["input_ids"].shape[1] :]
        answers = [_until(ids, ends) for ids in output.tolist()]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        yield [Answer(row, text.strip()) for row, text in zip(chosen, texts, strict=True)]


def _own_stops(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


@contextmanager
def _only(settings: GenerationConfig, *, model: Any) -> Iterator[None]:
    """Put the model's own settings aside: `generate` takes from them what it is not given."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = base.generation_config
    base.generation_config = settings
    try:
        yield
    finally:
        base.generation_config = kept


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Cut where an answer ends: its end need not be a token that the tokenizer calls special."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]

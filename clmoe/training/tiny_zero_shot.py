"""What the built-in base answers before any tuning, on the questions of `shapes`."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from clmoe.data.scenes import draw
from clmoe.data.sources.shapes import split_questions
from clmoe.model.tiny import IMAGE_TOKENS

SIZES = {"val": 200, "test": 400}


def pixels(pictures: np.ndarray) -> Tensor:
    """Pictures [B, 48, 48, 3] (uint8) as the image processor gives them: [B, 3, 48, 48]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@torch.no_grad()
def zero_shot(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    split: str,
    batch: int = 200,
) -> dict[str, float]:
    """Exact match per task in percent, and their mean as `AP`, for the default questions (seed 0).

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        split: "val" (200 questions a task) or "test" (400).
        batch: Questions answered at once.
    """
    scenes, questions = split_questions(0, split=split, per_task=SIZES[split])
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    rows = [(task, *pair) for task, pairs in questions.items() for pair in pairs]
    rows.sort(key=lambda row: len(row[2].question))
    hits: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        texts = [
            f"USER: {'<image>' * IMAGE_TOKENS}\n{asked.question} ASSISTANT:" for _, _, asked in part
        ]
        encoded = tokenizer(texts, return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            pixel_values=pixels(pictures[[position for _, position, _ in part]]),
            max_new_tokens=5,
            do_sample=False,
        )
        said = tokenizer.batch_decode(
            output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for (task, _, asked), words in zip(part, said, strict=True):
            hits[task].append(words.strip() == asked.answer)
    accuracy = {task: round(100.0 * float(np.mean(hits[task])), 2) for task in questions}
    return {"AP": round(float(np.mean(list(accuracy.values()))), 2), **accuracy}

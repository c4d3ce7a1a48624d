"""Trains a random LLaVA for a few steps in a process of its own and prints what memory it took.

`python measure_memory.py '{"hidden": 512, ...}'` prints one JSON object, in bytes: the peak of the
training above what the process held before the model was made, and what was estimated for it.
On a CPU that is resident memory (freed memory has to be returned: MALLOC_MMAP_THRESHOLD_=65536 in
the environment), on a GPU what its allocator gave out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.model.backbone import Backbone, embed, project_images
from clmoe.model.checkpointing import enable_checkpointing
from clmoe.model.config import ClmoeConfig
from clmoe.model.tuner import attach
from clmoe.recipe.schema import Adapter, Train
from clmoe.training.base_shape import base_shape
from clmoe.training.loop import train_adapter
from clmoe.training.memory_estimate import Load, estimate_evaluation, estimate_training

TINY: dict[str, Any] = {
    "hidden": 64, "wide": 128, "layers": 1, "heads": 2, "kv": 2, "vocabulary": 128, "tied": False,
    "tower": 64, "tower_wide": 64, "tower_layers": 2, "side": 32, "patch": 16,
    "dtype": "float32", "device": "cpu", "checkpointing": False, "micro": 1, "batch": 1, "text": 8,
    "answer": 2, "experts": 8, "rank": 64, "targets": "ffn", "ragged": False, "steps": 3,
    "evaluate": False,
}  # fmt: skip


def configuration(spec: dict[str, Any]) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=spec["vocabulary"], hidden_size=spec["hidden"], intermediate_size=spec["wide"],
        num_hidden_layers=spec["layers"], num_attention_heads=spec["heads"],
        num_key_value_heads=spec["kv"], max_position_embeddings=4096, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, tie_word_embeddings=spec["tied"],
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=spec["tower"], intermediate_size=spec["tower_wide"],
        num_hidden_layers=spec["tower_layers"], num_attention_heads=4, image_size=spec["side"],
        patch_size=spec["patch"],
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=spec["vocabulary"] - 1,
        vision_feature_layer=-2, tie_word_embeddings=spec["tied"],
    )  # fmt: skip


def backbone(spec: dict[str, Any]) -> Backbone:
    dtype = getattr(torch, spec["dtype"])
    torch.manual_seed(0)
    with torch.device(spec["device"]):
        model = LlavaForConditionalGeneration._from_config(
            configuration(spec), dtype=dtype, attn_implementation="sdpa"
        )
    return Backbone(
        model=model.eval().requires_grad_(False), tokenizer=None, image_processor=None,
        pictures=None, name="random", prompt="short", chat_template=None, image_token="<image>",
        image_token_id=spec["vocabulary"] - 1, image_tokens=(spec["side"] // spec["patch"]) ** 2,
        projector="model.multi_modal_projector", dtype=dtype, choices=(),
    )  # fmt: skip


def conversations(spec: dict[str, Any], *, images: int) -> list[Encoded]:
    """Conversations of one length, or where they are ragged, every second one shorter by a word."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for row in range(spec["batch"]):
        length = spec["text"] - 1 - (row % 2 if spec["ragged"] else 0)
        words = torch.randint(3, spec["vocabulary"] - 2, (length,), generator=generator).tolist()
        ids = [1, *[spec["vocabulary"] - 1] * images, *words]
        labels = [IGNORE] * (len(ids) - spec["answer"]) + ids[-spec["answer"] :]
        samples.append(Encoded(input_ids=ids, labels=labels, question=[False] * len(ids)))
    return samples


def inputs_of(base: Backbone, batch: Batch, *, side: int) -> dict[str, Tensor]:
    with torch.no_grad():
        features = project_images(base, torch.randn(len(batch.rows), 3, side, side))
    ids, mask = batch.input_ids.to(base.device), batch.attention_mask.to(base.device)
    return {"inputs_embeds": embed(base, ids, features), "attention_mask": mask}


def work(spec: dict[str, Any]) -> None:
    """Make the model, and train it or answer one batch with it."""
    base = backbone(spec)
    samples = conversations(spec, images=base.image_tokens or 0)
    config = ClmoeConfig(
        experts=spec["experts"], r=spec["rank"], alpha=2.0 * spec["rank"], targets=spec["targets"]
    )
    model = attach(base.model, config)
    if spec["evaluate"]:
        rows = range(spec["batch"])
        ids = torch.tensor([samples[row].input_ids for row in rows])
        batch = Batch(ids, torch.ones_like(ids), ids, ids.bool(), list(rows))
        inputs = inputs_of(base, batch, side=spec["side"])
        with torch.no_grad():
            model.eval().generate(
                **inputs, do_sample=False, max_new_tokens=10, min_new_tokens=10, pad_token_id=0
            )
        return
    if spec["checkpointing"]:
        enable_checkpointing(base.model)
    train_adapter(
        model, samples=samples, pad=0, label="measured",
        inputs=lambda batch: inputs_of(base, batch, side=spec["side"]),
        settings=Train(
            batch_size=spec["batch"], micro_batch=spec["micro"], epochs=spec["steps"],
            checkpoint_every=0,
        ),
    )  # fmt: skip


def estimated(spec: dict[str, Any]) -> Any:
    shape = base_shape(
        configuration(spec),
        Adapter(experts=spec["experts"], rank=spec["rank"], targets=spec["targets"]),
    )
    load = Load(
        dtype=spec["dtype"], device=spec["device"],
        batch=spec["batch" if spec["evaluate"] else "micro"],
        image_tokens=(spec["side"] // spec["patch"]) ** 2, text_tokens=spec["text"],
        supervised=spec["answer"], padded=spec["ragged"], checkpointing=spec["checkpointing"],
        accumulates=spec["micro"] < spec["batch"],
    )  # fmt: skip
    return shape, (estimate_evaluation if spec["evaluate"] else estimate_training)(shape, load)


def memory(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main() -> None:
    spec = TINY | json.loads(sys.argv[1])
    on_gpu = spec["device"] == "cuda"
    for evaluate in (False, True):  # everything is imported now, and every library set up
        work(TINY | {"dtype": spec["dtype"], "device": spec["device"], "evaluate": evaluate})
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    work(spec)
    peak = torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM")
    shape, estimate = estimated(spec)
    found = {
        "parameters": shape.parameters, "measured": peak - before, "estimated": estimate.total,
        "moment": estimate.moment, "parts": estimate.parts,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""Train phi_t on one task, starting from theta_{t-1} (paper, section 4.2); Eq 4 is the loss."""

from __future__ import annotations

import json
from pathlib import Path

from clmoe.data.example import Example
from clmoe.data.prompts import Encoded
from clmoe.model.adapter_file import save_adapter
from clmoe.model.control import reset_routers
from clmoe.runs.plan import ALL_TASKS, Node
from clmoe.stages.context import Context
from clmoe.stages.stage import StageResult
from clmoe.training.loop import train_adapter
from clmoe.training.seeds import stream


def perform(context: Context, node: Node, folder: Path) -> StageResult:
    """Train one task (or all at once where ``protocol.joint`` is on) into ``folder/adapter``."""
    recipe, plan = context.recipe, context.run.plan
    joint = node.task == ALL_TASKS
    label = "all tasks" if joint else str(node.task)
    tasks = plan.tasks if joint else (label,)
    encoded: list[Encoded] = []
    shown: list[Example] = []
    for task in tasks:
        conversations, pictures = context.encode_training(context.examples(task, "train"))
        encoded += conversations
        shown += pictures
    before = None if joint else plan.theta((node.position or 1) - 1)
    if before is None:
        model = context.fresh()
    else:
        model = context.load(context.run.output(before, "adapter"), trainable=True)
    if before is not None and recipe.adapter.router_start == "fresh":
        reset_routers(
            model,
            std=recipe.adapter.router_std,
            seed=stream(recipe.train.seed, "router", label),
        )
    context.changed()
    checkpoint = folder / "checkpoint.pt"
    log = train_adapter(
        model,
        samples=encoded,
        inputs=context.inputs(shown, train=True),
        settings=recipe.train,
        pad=context.backbone.tokenizer.pad_token_id,
        label=label,
        checkpoint=checkpoint,
    )
    save_adapter(model, folder / "adapter")
    (folder / "losses.json").write_text(json.dumps(log.losses), encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    tail = log.losses[-max(1, len(log.losses) // 10) :]
    final = sum(tail) / len(tail)
    return StageResult(
        outputs={"adapter": "adapter", "losses": "losses.json"},
        counts={
            "conversations": len(encoded),
            "steps": log.steps,
            "supervised_tokens": log.supervised,
            "trainable_parameters": log.trainable,
        },
        summary={
            "first_loss": log.losses[0],
            "final_loss": final,
            "resumed_at": log.resumed_at,
            "samples_per_second": log.samples_per_second,
        },
        lines=(
            f"{label}: {len(encoded)} conversations, {log.steps} steps, "
            f"{log.trainable:,} parameters, loss {log.losses[0]:.3f} -> {final:.3f} "
            "(mean of the last tenth)",
        ),
    )

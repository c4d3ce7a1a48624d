"""Train phi_t on one task, starting from theta_{t-1} (paper, section 4.2); Eq 4 is the loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clmoe.baselines.base import Task
from clmoe.baselines.registry import make_strategy
from clmoe.data.example import Example
from clmoe.data.prompts import Encoded
from clmoe.model.adapter_file import adapter_tensors, is_sharded, save_adapter
from clmoe.model.control import reset_routers
from clmoe.parallel.world import world
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
    examples = [e for name in tasks for e in context.examples(name, "train")]
    before = None if joint or plan.per_task else plan.theta((node.position or 1) - 1)
    previous = None if before is None else context.run.output(before, "adapter")
    if previous is None:
        model = context.fresh()
    else:
        model = context.load(previous, trainable=True)
    if previous is not None and recipe.adapter.router_start == "fresh":
        reset_routers(
            model,
            std=recipe.adapter.router_std,
            seed=stream(recipe.train.seed, "router", label),
        )
    context.changed()
    strategy = make_strategy(recipe.strategy, kept=_kept(context, node, previous))
    task = method_task(context, label, model, examples=examples, previous=previous)
    strategy.before_task(task)
    encoded, shown = context.encode_training(examples)
    conversations = len(encoded)
    encoded += task.encode(strategy.memory)
    shown += strategy.memory
    checkpoint = folder / "checkpoint.pt"
    log = train_adapter(
        model,
        samples=encoded,
        inputs=context.inputs(shown, train=True),
        settings=recipe.train,
        pad=task.pad,
        label=label,
        strategy=strategy,
        checkpoint=checkpoint,
    )
    extra = strategy.extra_bytes()
    if plan.per_task:  # this one is one of as many
        held = sum(tensor.nbytes for tensor in adapter_tensors(model).values())
        extra["adapters of other tasks"] = held * ((node.position or 1) - 1)
    strategy.after_task(task)
    extra |= {name: max(held, extra.get(name, 0)) for name, held in strategy.extra_bytes().items()}
    save_adapter(model, folder / "adapter", write=world().leads)
    if is_sharded(model):
        context.release()
    if not world().leads:
        return StageResult(outputs={})
    outputs = {"adapter": "adapter", "losses": "losses.json"}
    if recipe.strategy.kind != "none":
        strategy.save(folder / "strategy")
        outputs["strategy"] = "strategy"
    (folder / "losses.json").write_text(json.dumps(log.losses), encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    tail = log.losses[-max(1, len(log.losses) // 10) :]
    final = sum(tail) / len(tail)
    return StageResult(
        outputs=outputs,
        counts={
            "conversations": conversations,
            "replayed": len(encoded) - conversations,
            "steps": log.steps,
            "supervised_tokens": log.supervised,
            "trainable_parameters": log.trainable,
            "micro_batch": log.micro_batch,
            "processes": world().size,
        },
        summary={
            "first_loss": log.losses[0],
            "final_loss": final,
            "resumed_at": log.resumed_at,
            "samples_per_second": log.samples_per_second,
            "extra_bytes": sum(extra.values()),
            "extra": extra,
        },
        lines=(
            f"{label}: {conversations} conversations, {log.steps} steps, "
            f"{log.trainable:,} parameters, loss {log.losses[0]:.3f} -> {final:.3f} "
            "(mean of the last tenth)",
        ),
    )


def _kept(context: Context, node: Node, previous: Path | None) -> Path | None:
    """What the method kept after the task before."""
    if previous is None or context.recipe.strategy.kind == "none":
        return None
    return context.run.output(context.run.plan.train((node.position or 1) - 1), "strategy")


def method_task(
    context: Context, name: str, model: Any, *, examples: list[Example], previous: Path | None
) -> Task:
    """A task as a continual-learning method sees it."""

    def encode(some: Sequence[Example], *, answers: bool = True) -> list[Encoded]:
        prompter, text = context.prompter, context.pictures.text
        return [
            prompter.encode([(e.question, e.answer)], name=e.question_id, picture=text(e.image))
            if answers
            else prompter.prompt(e.question, name=e.question_id, picture=text(e.image))
            for e in some
        ]

    return Task(
        name=name,
        model=model,
        examples=examples,
        previous=previous,
        encode=encode,
        prompts=partial(encode, answers=False),
        inputs_of=lambda some: context.inputs(some, train=True),
        pad=context.backbone.tokenizer.pad_token_id,
        image_token_id=context.backbone.image_token_id,
        batch_size=context.recipe.train.batch_size,
        seed=stream(context.recipe.train.seed, "strategy"),
    )

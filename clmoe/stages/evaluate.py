"""One cell of the accuracy matrix: the questions of a task, answered after some task.

The gate of Eq 9 mixes the instance router with the task router of the task that Eq 8 finds for
each question. Row 0 is the bare base model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmoe.baselines.vqacl import Prototypes
from clmoe.data.batches import Batch
from clmoe.data.example import Example
from clmoe.evaluation.answerer import Answerer, Finder, TaskMixing
from clmoe.evaluation.samples import Sample, SampleFile
from clmoe.events import Progress, emit
from clmoe.method.task_index import combine, load_task_index
from clmoe.method.task_router import load_task_router
from clmoe.method.task_shares import hard_shares, with_noise
from clmoe.metrics.answer_accuracy import SCORERS, score_all
from clmoe.parallel.world import world
from clmoe.runs.plan import Node
from clmoe.stages.context import Context
from clmoe.stages.stage import StageResult
from clmoe.training.seeds import generator


def task_shares(context: Context, node: Node, *, questions: int) -> Tensor | None:
    """How much each question is taken to be of each learned task, [questions, tasks].

    From Eq 8, or from the true task with ``eval.oracle_task``; None where no task is needed.
    """
    run, recipe, task = context.run, context.recipe, str(node.task)
    learned = run.plan.learned(node)
    if not run.plan.indexes or not learned:
        return None
    if recipe.eval.oracle_task and task in learned:
        chosen = torch.full((questions,), learned.index(task))
        return hard_shares(chosen, tasks=len(learned))
    summaries = [load_task_index(run.output(Node("index", t), "index")) for t in learned]
    finder = Finder(
        combine(summaries, shrinkage=recipe.index.shrinkage),
        recipe.index.feature,
        recipe.index.soft,
    )
    shares = finder.shares(context.features(task, recipe.eval.split))
    stream = generator(recipe.eval.seed, "noise", node.label)
    return with_noise(shares, share=recipe.index.noise, generator=stream)


def task_mixing(context: Context, node: Node) -> TaskMixing | None:
    """The task routers learned by a row; None where only w_I gates (beta = 1)."""
    run = context.run
    learned = run.plan.learned(node)
    if not run.plan.soft_gates or not learned:
        return None
    routers = [load_task_router(run.output(Node("route", t), "router")) for t in learned]
    return TaskMixing(learned, routers, context.recipe.eval.beta)


def perform(context: Context, node: Node, folder: Path) -> StageResult:
    """Answer every question of one task and score the answers."""
    settings, task = context.recipe.eval, str(node.task)
    examples = context.examples(task, settings.split)
    prompts = [
        context.prompter.prompt(
            e.question, name=e.question_id, picture=context.pictures.text(e.image)
        )
        for e in examples
    ]
    file = SampleFile(folder / "samples.jsonl") if world().leads else None
    answered = world().tell(None if file is None else file.done)
    assert answered is not None
    learned = context.run.plan.learned(node)
    shares, mixing = task_shares(context, node, questions=len(examples)), task_mixing(context, node)
    gates = None if mixing is None or shares is None else mixing.gates(shares)
    taken_for: list[str | None] = [None] * len(examples)
    if shares is not None:
        taken_for = [learned[int(place)] for place in shares.argmax(dim=1)]
    left = sorted(
        (row for row, e in enumerate(examples) if e.question_id not in answered),
        key=lambda row: -len(prompts[row].input_ids),
    )
    for newest, rows in _adapters(context, node, left, taken_for):
        with _model(context, newest) as model:
            answerer = Answerer(
                model=model,
                prompter=context.prompter,
                mixing=mixing,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
            )
            batches = answerer.answers(
                prompts, rows=world().share(rows), inputs=_inputs(context, node), gates=gates
            )
            for _ in range(math.ceil(math.ceil(len(rows) / world().size) / settings.batch_size)):
                parts = world().gather(next(batches, []))
                if file is None:
                    continue
                file.append(
                    _sample(examples[a.row], a.text, prompts[a.row].input_ids, taken_for[a.row])
                    for answers in parts
                    for a in answers
                )
                emit(Progress(label=f"eval {node.label}", done=len(file.done), total=len(examples)))
    if file is None:
        return StageResult(outputs={})
    samples = file.finish([e.question_id for e in examples])
    scores = score_all(
        [(s.prediction, s.answer, s.answers) for s in samples], scorers=tuple(SCORERS)
    )
    identified = None
    if shares is not None:
        identified = sum(s.predicted_task == task for s in samples)
    exact = scores["exact"]
    text = f"{node.label}: {exact.correct:g}/{exact.total} exact"
    if identified is not None and task in learned:
        text += f", task identified {identified}/{len(samples)}"
    return StageResult(
        outputs={"samples": "samples.jsonl"},
        counts={"questions": len(samples)},
        summary={
            "scores": {name: asdict(tally) for name, tally in scores.items()},
            "identified": identified,
            "oracle_task": settings.oracle_task,
        },
        lines=(text,),
    )


def _adapters(
    context: Context, node: Node, rows: list[int], taken_for: Sequence[str | None]
) -> Iterator[tuple[Node | None, list[int]]]:
    """The node of each adapter that answers, and the questions it answers, in order.

    One adapter answers all, unless each task has its own: then that of the task found.
    """
    plan = context.run.plan
    if not plan.per_task or not node.position:
        yield plan.theta(node.position or 0), rows
        return
    for task in plan.learned(node):
        own = [row for row in rows if taken_for[row] == task]
        if own:
            yield plan.locate(Node("train", task)), own


@contextmanager
def _model(context: Context, adapter: Node | None) -> Iterator[Any]:
    if adapter is None:
        with context.bare() as base:
            yield base
    else:
        yield context.load(context.run.output(adapter, "adapter"))


def _inputs(context: Context, node: Node) -> Callable[[Batch], dict[str, Tensor]]:
    """What the model is shown; with the prototypes of the training for methods that have them."""
    build = context.inputs(context.examples(str(node.task), context.recipe.eval.split))
    if context.recipe.strategy.kind != "vqacl" or not node.position:
        return build
    training = context.run.plan.train(node.position)
    prototypes = Prototypes.load(context.run.output(training, "strategy"))
    image_token_id = context.backbone.image_token_id

    def extended(batch: Batch) -> dict[str, Tensor]:
        return prototypes.extend(build(batch), batch, image_token_id=image_token_id)

    return extended


def _sample(example: Example, text: str, ids: list[int], taken_for: str | None) -> Sample:
    return Sample(
        question_id=example.question_id,
        task=example.task,
        kind=example.kind,
        question=example.question,
        prediction=text,
        answer=example.answer,
        answers=example.answers,
        predicted_task=taken_for,
        prompt=hashlib.sha256(repr(ids).encode()).hexdigest()[:12],
    )

"""One cell of the accuracy matrix: the questions of a task, answered after some task.

The gate of Eq 9 mixes the instance router with the task router of the task that Eq 8 finds for
each question. Row 0 is the bare base model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clmoe.data.example import Example
from clmoe.evaluation.answerer import Answerer, TaskGates, TaskMixing
from clmoe.evaluation.samples import Sample, SampleFile
from clmoe.events import Progress, emit
from clmoe.method.task_index import combine, load_task_index
from clmoe.method.task_router import load_task_router
from clmoe.metrics.answer_accuracy import SCORERS, score_all
from clmoe.runs.plan import Node
from clmoe.stages.context import Context
from clmoe.stages.stage import StageResult


def task_mixing(context: Context, node: Node, *, oracle: bool) -> TaskMixing | None:
    """Routers and index of the tasks learned by a row; None where only w_I gates (beta = 1).

    With ``oracle`` the true task is used, and there is no index.
    """
    run, recipe = context.run, context.recipe
    learned = run.plan.learned(node)
    if not run.plan.soft_gates or not learned:
        return None
    index = None
    if not oracle:
        index = combine(
            [load_task_index(run.output(Node("index", t), "index")) for t in learned],
            shrinkage=recipe.index.shrinkage,
        )
    return TaskMixing(
        tasks=learned,
        routers=[load_task_router(run.output(Node("route", t), "router")) for t in learned],
        index=index,
        beta=recipe.eval.beta,
        feature=recipe.index.feature,
    )


def perform(context: Context, node: Node, folder: Path) -> StageResult:
    """Answer every question of one task and score the answers."""
    settings, task = context.recipe.eval, str(node.task)
    examples = context.examples(task, settings.split)
    prompts = [context.prompter.prompt(e.question, name=e.question_id) for e in examples]
    file = SampleFile(folder / "samples.jsonl")
    learned = task in context.run.plan.learned(node)
    oracle = settings.oracle_task and learned
    mixing = task_mixing(context, node, oracle=oracle)
    gates = None
    if mixing is not None and oracle:
        gates = mixing.gates_of(task, questions=len(examples))
    elif mixing is not None:
        gates = mixing.gates(context.features(task, settings.split))
    rows = [row for row, e in enumerate(examples) if e.question_id not in file.done]
    with _model(context, node) as model:
        answerer = Answerer(
            model=model,
            prompter=context.prompter,
            mixing=mixing,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        )
        inputs = context.inputs(examples)
        for answers in answerer.answers(prompts, rows=rows, inputs=inputs, gates=gates):
            file.append(
                _sample(examples[a.row], a.text, prompts[a.row].input_ids, gates, a.row)
                for a in answers
            )
            emit(Progress(label=f"eval {node.label}", done=len(file.done), total=len(examples)))
    samples = file.finish([e.question_id for e in examples])
    scores = score_all(
        [(s.prediction, s.answer, s.answers) for s in samples], scorers=tuple(SCORERS)
    )
    identified = None
    if gates is not None:
        identified = sum(s.predicted_task == task for s in samples)
    exact = scores["exact"]
    text = f"{node.label}: {exact.correct:g}/{exact.total} exact"
    if identified is not None and learned:
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


@contextmanager
def _model(context: Context, node: Node) -> Iterator[Any]:
    theta = context.run.plan.theta(node.position or 0)
    if theta is None:
        with context.bare() as base:
            yield base
    else:
        yield context.load(context.run.output(theta, "adapter"))


def _sample(
    example: Example, text: str, ids: list[int], gates: TaskGates | None, row: int
) -> Sample:
    return Sample(
        question_id=example.question_id,
        task=example.task,
        kind=example.kind,
        question=example.question,
        prediction=text,
        answer=example.answer,
        answers=example.answers,
        predicted_task=None if gates is None else gates.tasks[row],
        prompt=hashlib.sha256(repr(ids).encode()).hexdigest()[:12],
    )

"""The task router w_T and the experts E_t of a task: Eq 6 over D_t with the trained phi_t."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clmoe.data.batches import Batch, by_length, collate
from clmoe.data.prompts import IGNORE
from clmoe.events import Progress, emit
from clmoe.method.task_router import TaskRouterAccumulator, build_task_router, save_task_router
from clmoe.model.control import record_gates
from clmoe.parallel.world import world
from clmoe.runs.plan import Node
from clmoe.stages.context import Context
from clmoe.stages.stage import StageResult


def selected_tokens(batch: Batch, *, tokens: str) -> Tensor:
    """Which tokens Eq 6 averages over, [batch, tokens] bool: ``route.tokens``."""
    real, answer = batch.attention_mask.bool(), batch.labels != IGNORE
    return {
        "prompt": real & ~answer,
        "question": batch.question & ~answer,
        "answer": answer,
        "all": real,
    }[tokens]


@torch.no_grad()
def perform(context: Context, node: Node, folder: Path) -> StageResult:
    """Average the instance router over the task's training questions, deterministically."""
    task, settings = str(node.task), context.recipe.route
    examples = context.examples(task, "train")
    if settings.tokens in ("answer", "all"):
        samples = [
            context.prompter.encode(
                [(e.question, e.answer)],
                name=f"question {e.question_id}",
                picture=context.pictures.text(e.image),
            )
            for e in examples
        ]
    else:
        samples = [
            context.prompter.prompt(
                e.question, name=e.question_id, picture=context.pictures.text(e.image)
            )
            for e in examples
        ]
    model = context.load(context.run.output(Node("train", task), "adapter"))
    inputs = context.inputs(examples)
    accumulator = TaskRouterAccumulator()
    inner = model.get_base_model().model
    pad = context.backbone.tokenizer.pad_token_id
    done = 0
    batches = by_length(
        [len(s.input_ids) for s in samples], batch_size=context.recipe.eval.batch_size
    )
    for rows in world().share(list(batches)):
        batch = collate([samples[r] for r in rows], rows=rows, pad=pad, left=False)
        mask = selected_tokens(batch, tokens=settings.tokens)
        names = [examples[r].question_id for r in rows]

        def add(router: str, gates: Tensor, mask: Tensor = mask, names: list[str] = names) -> None:
            accumulator.add(router, gates=gates, mask=mask, samples=names)

        with record_gates(model, add):
            inner(**inputs(batch), use_cache=False)
        done += len(rows) * world().size
        emit(Progress(label=f"route {task}", done=min(done, len(samples)), total=len(samples)))
    accumulator = TaskRouterAccumulator.of_all(world().gather(accumulator))
    if not world().leads:
        return StageResult(outputs={})
    router = build_task_router(
        accumulator, top_k=settings.top_k, scope=settings.scope, tokens=settings.tokens
    )
    save_task_router(router, folder=folder / "router")
    gaps = [gap for gap in router.gaps.values() if gap is not None]
    told = f"; smallest gap between the K-th and the next expert {min(gaps):.4f}" if gaps else ""
    return StageResult(
        outputs={"router": "router"},
        counts={"samples": len(samples), "routers": len(router.weights)},
        summary={"experts": {k: list(v) for k, v in router.experts.items()}, "gap": router.gaps},
        lines=(
            f"{task}: w_T of {len(router.weights)} routers over {len(samples)} questions{told}",
        ),
    )

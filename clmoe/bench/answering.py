"""`clmoe bench eval`: answering questions in batches, against one question at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from clmoe.bench.contenders import Mixture, wake
from clmoe.bench.machine import describe_machine, dtype_name, find_device, find_dtype
from clmoe.bench.memory import memory_measure, peak_bytes
from clmoe.bench.models import BOS, Model, build, seeded, tokenizer_of
from clmoe.bench.timing import Work, clock_of, interleave, ratios, spread
from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.errors import MemoryExhaustedError, UsageError
from clmoe.evaluation.generate import generate_answers
from clmoe.model.control import inference_gates, routers
from clmoe.model.tuner import attach

INSTANCE, MIXED = "instance gate", "instance and task gate"
BETA = 0.5  # of Eq 9, the paper's
QUESTIONS = (
    "what color is it?",
    "where is the red star?",
    "how many objects are there?",
    "is there a blue circle in the picture?",
    "what shape is at the top left?",
    "which object is left of the green square?",
)


def bench_eval(
    *,
    model: str | None = None,
    layers: int | None = None,
    batch: int = 16,
    questions: int | None = None,
    new_tokens: int = 10,
    rank: int = 64,
    experts: int = 8,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int = 10,
    seconds: float = 30.0,
) -> dict[str, Any]:
    """Measure answering with an adapter, by the instance gate alone and by the gate of Eq 9.

    Args:
        model: One of `clmoe.bench.models.MODELS`; None: llava-7b on a GPU, tiny on a CPU.
        layers: Decoder blocks; None: all.
        batch: Questions at a time.
        questions: Questions of a run; None: one batch.
        new_tokens: At most so many tokens an answer; a random model never says less.
        rank: r.
        experts: n; with 1 there is no gate to mix.
        dtype: Of the base; None: bfloat16 on a GPU, float32 on a CPU.
        device: None: a GPU where there is one.
        repeats: At most so many rounds.
        seconds: What all rounds may take together.

    Returns:
        Settings, machine and figures as plain data.

    Raises:
        MemoryExhaustedError: The device has too little memory.
    """
    where = find_device(device)
    kind = find_dtype(dtype, device=where)
    questions = batch if questions is None else questions
    if batch < 2 or questions < batch or new_tokens < 1:
        raise UsageError(
            f"{questions} questions in batches of {batch}, {new_tokens} new tokens: not possible",
            hint="--batch-size is at least 2, --questions no less, --new-tokens at least 1",
        )
    name = model or ("llava-7b" if where.type == "cuda" else "tiny")
    base = build(name, layers=layers, device=where, dtype=kind)
    asked = Asked(base, Mixture(rank, experts), questions=questions, new_tokens=new_tokens)
    ways = {
        (gate, size): asked.answering(gate, size) for gate in asked.gates for size in (1, batch)
    }
    try:
        answers = {way: run() for way, run in ways.items()}
        peaks = {way: peak_bytes(run, device=where) for way, run in ways.items()}
        timed = interleave(
            {f"{gate}\0{size}": Work(run) for (gate, size), run in ways.items()},
            repeats=repeats, seconds=seconds, clock=clock_of(where), label="bench eval", warmups=0,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise MemoryExhaustedError(
            "the device ran out of memory", hint="a smaller --batch-size, or fewer --layers"
        ) from error
    rows: list[dict[str, Any]] = []
    for gate, size in ways:
        times, single = timed[f"{gate}\0{size}"], timed[f"{gate}\0{1}"]
        one_by_one = answers[gate, 1]
        rows.append(
            {
                "name": gate,
                "batch": size,
                "ms_a_question": spread(times).scaled(1e3 / questions),
                "per_second": questions / spread(times).median,
                "speedup": ratios(single, reference=times).scaled(1.0),
                "differing": differing(answers[gate, size], one_by_one),
                "peak_bytes": peaks[gate, size],
            }
        )
    return {
        "bench": "eval",
        "settings": {
            "model": name,
            "layers": len(base.model.get_decoder().layers),
            "batch": batch,
            "questions": questions,
            "image_tokens": base.image_tokens,
            "new_tokens": new_tokens,
            "rank": rank,
            "experts": experts,
            "beta": BETA,
            "dtype": dtype_name(kind),
        },
        "environment": describe_machine(where),
        "memory_measure": memory_measure(where),
        "rounds": len(next(iter(timed.values()))),
        "speedup": min(row["speedup"]["median"] for row in rows if row["batch"] == batch),
        "rows": rows,
    }


class Asked:
    """Questions about random pictures, and a model with an adapter to answer them.

    Attributes:
        gates: The gates there are to answer with.
    """

    def __init__(self, base: Model, mixture: Mixture, *, questions: int, new_tokens: int) -> None:
        """Attach an adapter with random experts, and encode the questions."""
        self._base = base
        self._model: Any = attach(base.model, mixture.config()).eval()
        wake(self._model)
        self._tokenizer = tokenizer_of(base)
        self._prompts = prompts(base, self._tokenizer, count=questions)
        self._pictures = base.pictures(questions)
        self._new_tokens = new_tokens
        self._task_weights = {
            router: torch.randn(questions, mixture.experts, generator=seeded(3)).softmax(dim=-1)
            for router in routers(self._model)
        }
        self.gates = (INSTANCE, MIXED) if mixture.experts > 1 else (INSTANCE,)

    def answering(self, gate: str, size: int) -> Callable[[], list[str]]:
        """A function that answers every question, so many at a time, in the questions' order."""

        def mixed(chosen: list[int]) -> AbstractContextManager[None]:
            if gate == INSTANCE:
                return nullcontext()
            weights = {router: all_[chosen] for router, all_ in self._task_weights.items()}
            return inference_gates(self._model, weights, beta=BETA)

        def run() -> list[str]:
            texts = [""] * len(self._prompts)
            for answers in generate_answers(
                self._model,
                prompts=self._prompts,
                rows=range(len(self._prompts)),
                inputs=self._inputs,
                tokenizer=self._tokenizer,
                max_new_tokens=self._new_tokens,
                batch_size=size,
                gates=mixed,
            ):
                for answer in answers:
                    texts[answer.row] = answer.text
            return texts

        return run

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        model = self._base.model
        ids = batch.input_ids.to(model.device)
        embeds = model.get_input_embeddings()(ids)
        seen = model.get_image_features(pixel_values=self._pictures[batch.rows])
        features = seen.pooler_output
        flat = features if isinstance(features, Tensor) else torch.cat(list(features))
        image = (ids == self._base.image_token).unsqueeze(-1)
        return {
            "inputs_embeds": embeds.masked_scatter(image, flat.to(embeds.dtype)),
            "attention_mask": batch.attention_mask.to(model.device),
        }


def prompts(base: Model, tokenizer: Any, *, count: int) -> list[Encoded]:
    """Encoded prompts with their image tokens: questions for the built-in base, else random ids.

    Their lengths differ, as those of real questions do.
    """
    encoded = []
    for number in range(count):
        if base.name == "tiny":
            marks = tokenizer.convert_ids_to_tokens(base.image_token) * base.image_tokens
            question = QUESTIONS[number % len(QUESTIONS)]
            ids = list(tokenizer(f"USER: {marks}\n{question} ASSISTANT:")["input_ids"])
        else:
            text = torch.randint(
                4, base.vocabulary, (40 + 5 * (number % 6),), generator=seeded(number)
            )
            text[text == base.image_token] = BOS
            ids = [BOS, *[base.image_token] * base.image_tokens, *text.tolist()]
        encoded.append(Encoded(ids, [IGNORE] * len(ids), [False] * len(ids)))
    return encoded


def differing(answers: Sequence[str], others: Sequence[str]) -> float:
    """The share of questions that two runs answer differently."""
    pairs = list(zip(answers, others, strict=True))
    return sum(one != other for one, other in pairs) / len(pairs)

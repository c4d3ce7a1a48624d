"""`clmoe bench train`: the whole training step of a vision-language model, adapter by adapter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clmoe.bench.contenders import LORA, OURS, Mixture, adapted
from clmoe.bench.machine import describe_machine, dtype_name, find_device, find_dtype
from clmoe.bench.measure import measure
from clmoe.bench.memory import memory_measure
from clmoe.bench.models import BOS, Model, build, seeded
from clmoe.bench.timing import Work
from clmoe.data.prompts import IGNORE
from clmoe.errors import ClmoeError, UsageError
from clmoe.model.checkpointing import enable_checkpointing
from clmoe.training.answer_loss import AnswerLoss

STEP = "step"
ANSWER_TOKENS = 4  # supervised tokens of a sample
BATCH = 4
TOKENS = {"cuda": 64, "cpu": 32}
RATE, CLIP = 2e-4, 1.0


def bench_train(
    *,
    model: str | None = None,
    layers: int | None = None,
    batch: int | None = None,
    tokens: int | None = None,
    checkpointing: bool = False,
    rank: int = 64,
    experts: int = 8,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int = 20,
    seconds: float = 30.0,
) -> dict[str, Any]:
    """Measure a training step: vision tower, forward, backward, clip and AdamW.

    Args:
        model: One of `clmoe.bench.models.MODELS`; None: llava-7b on a GPU, tiny on a CPU.
        layers: Decoder blocks; None: all.
        batch: Samples of a step; None: 4.
        tokens: Text tokens of a sample beside its image tokens, its answer included; None: 64 on a
            GPU, 32 on a CPU.
        checkpointing: Recompute the decoder blocks in the backward pass.
        rank: r, the same for all adapters.
        experts: n.
        dtype: Of the base; None: bfloat16 on a GPU, float32 on a CPU.
        device: None: a GPU where there is one.
        repeats: At most so many rounds.
        seconds: What all rounds may take together.

    Returns:
        Settings, machine and figures as plain data.

    Raises:
        ClmoeError: A loss is not finite.
    """
    where = find_device(device)
    kind = find_dtype(dtype, device=where)
    batch = BATCH if batch is None else batch
    tokens = TOKENS[where.type] if tokens is None else tokens
    if batch < 1 or tokens <= ANSWER_TOKENS + 1:
        raise UsageError(
            f"a batch of {batch} samples of {tokens} text tokens is not possible",
            hint=f"--batch is at least 1, --tokens at least {ANSWER_TOKENS + 2}",
        )
    name = model or ("llava-7b" if where.type == "cuda" else "tiny")
    base = build(name, layers=layers, device=where, dtype=kind)
    inputs, labels = step_inputs(base, batch=batch, tokens=tokens)
    runs = {
        contender: TrainingStep(one, inputs=inputs, labels=labels, checkpointing=checkpointing)
        for contender, one in adapted(base.model, Mixture(rank, experts))
    }
    measured = measure(
        {contender: {STEP: Work(step, step.reset)} for contender, step in runs.items()},
        reference=LORA, needed=OURS, samples=batch, device=where, dtype=kind,
        repeats=repeats, seconds=seconds, label="bench train",
    )  # fmt: skip
    return {
        "bench": "train",
        "settings": {
            "model": name,
            "layers": len(base.model.get_decoder().layers),
            "parameters": sum(p.numel() for p in base.model.parameters() if not p.requires_grad),
            "batch": batch,
            "tokens": tokens,
            "image_tokens": base.image_tokens,
            "checkpointing": checkpointing,
            "rank": rank,
            "experts": experts,
            "dtype": dtype_name(kind),
        },
        "environment": describe_machine(where),
        "memory_measure": memory_measure(where),
        "reference": LORA,
        "rounds": measured.rounds,
        "left_out": list(measured.left_out),
        "matmul_flops_per_second": measured.matmul,
        "ratio": measured.figures[OURS][STEP].ratio.median,
        "rows": [
            {
                "name": contender,
                STEP: measured.figures[contender][STEP].data(),
                "trained": run.trained,
                "kept_bytes": run.kept_bytes,
                "losses": checked(contender, run.losses),
            }
            for contender, run in runs.items()
            if contender in measured.figures
        ],
    }


def step_inputs(base: Model, *, batch: int, tokens: int) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of random pictures and texts, as the model takes it, and its labels [batch, all].

    Every sample is BOS, its image tokens and text; the loss is on the last few tokens.
    """
    start = torch.tensor([BOS, *[base.image_token] * base.image_tokens]).expand(batch, -1)
    text = torch.randint(4, base.vocabulary, (batch, tokens - 1), generator=seeded(1))
    text[text == base.image_token] = BOS
    ids = torch.cat([start, text], dim=1)
    labels = ids.clone()
    labels[:, :-ANSWER_TOKENS] = IGNORE
    device = base.model.device
    inputs = {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "pixel_values": base.pictures(batch),
    }
    return inputs, labels.to(device)


class TrainingStep:
    """One step of training a PEFT model on one and the same batch; calling it does the step.

    Attributes:
        losses: Mean loss of a supervised token, one a step.
        trained: Trained parameters.
    """

    def __init__(
        self, model: Any, *, inputs: dict[str, Tensor], labels: Tensor, checkpointing: bool
    ) -> None:
        """Make the optimizer; the model is put in training mode."""
        if checkpointing:
            enable_checkpointing(model)
        self._loss = AnswerLoss(model.train())
        self._inputs, self._labels = inputs, labels
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=RATE)
        self._supervised = int((labels[:, 1:] != IGNORE).sum())
        self._losses: list[Tensor] = []
        self.trained = sum(p.numel() for p in self._parameters)

    def __call__(self) -> None:
        """Forward, backward, clip, AdamW."""
        loss = self._loss(self._inputs, self._labels) / self._supervised
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._losses.append(loss.detach())

    def reset(self) -> None:
        """Drop the gradients of a step that was broken off."""
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def losses(self) -> list[float]:
        """Mean loss of a supervised token, one a step."""
        return [float(loss) for loss in self._losses]

    @property
    def kept_bytes(self) -> int:
        """Bytes of adapter and optimizer states, which a step finds and leaves."""
        states = [
            value
            for state in self._optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return sum(tensor.nbytes for tensor in (*self._parameters, *states))


def checked(name: str, losses: list[float]) -> dict[str, float]:
    """First and last loss.

    Raises:
        ClmoeError: One of them, or one between, is not finite.
    """
    for number, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            raise ClmoeError(f"{name}: the loss of step {number} is {loss}; its times mean nothing")
    return {"first": losses[0], "last": losses[-1]}

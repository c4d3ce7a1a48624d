"""Methods that show examples of earlier tasks again: ER, DER and DER++.

A step's batch is joint: the current task's samples and as many from memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from clmoe.baselines.base import WITHOUT_GRADIENTS, Part, Strategy, Task
from clmoe.data.example import Example
from clmoe.data.memory import Memory, load_memory, remember, save_memory
from clmoe.errors import ClmoeError
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.answer_loss import Answered, AnswerLoss

MEMORY_FILE = "memory.jsonl"
LOGITS_FILE = "logits.safetensors"


class ER(Strategy):
    """Experience replay (Chaudhry et al. 2019): the loss of Eq 4 over the joint batch."""

    def __init__(self, settings: Settings, *, kept: Path | None = None) -> None:
        """Read the memory of the tasks before."""
        super().__init__(settings, kept=kept)
        self._memory = Memory() if kept is None else load_memory(kept / MEMORY_FILE)

    @property
    def memory(self) -> Sequence[Example]:
        """The examples kept of earlier tasks."""
        return self._memory.examples

    def after_task(self, task: Task) -> None:
        """Take examples of this task into the memory; older ones make room."""
        self._memory = remember(
            self._memory,
            task.examples,
            task=task.name,
            size=self.settings.memory,
            policy=self.settings.policy,
            seed=task.seed,
        )

    def save(self, folder: Path) -> None:
        """Write the memory: text and paths of pictures."""
        folder.mkdir()
        save_memory(self._memory, folder / MEMORY_FILE)

    def extra_bytes(self) -> dict[str, int]:
        """The memory's text."""
        text = [e.question + e.answer + e.image for e in self.memory]
        return {"memory": sum(len(line.encode()) for line in text)}


class DER(ER):
    """Dark experience replay (Buzzega et al. 2020): memory is answered with its old logits.

    ``CE(current) + alpha * mean (z - z_m)^2``: the mean is over the answer positions of the
    replayed samples and the ``top_logits`` largest stored logits of each, so that the vocabulary's
    size does not dilute it. z_m are the logits of the model at the end of the task that the sample
    was stored after.
    """

    def __init__(self, settings: Settings, *, kept: Path | None = None) -> None:
        """Read memory and logits."""
        super().__init__(settings, kept=kept)
        self.stored = StoredLogits()
        if kept is not None:
            self.stored = StoredLogits.load(kept / LOGITS_FILE)
            if len(self.stored.counts) != len(self.memory):
                raise ClmoeError(
                    f"{kept} has logits for {len(self.stored.counts)} of {len(self.memory)} "
                    "examples in memory"
                )

    def loss(self, answered: Answered, part: Part) -> Tensor:
        """Cross-entropy of the current samples, and the distance from the stored logits."""
        replayed = part.replayed.to(answered.logits.device)[answered.rows]
        losses = answered.token_losses()
        total = losses[~replayed].sum() / max(1, part.tokens - part.replayed_tokens)
        if part.replayed_tokens:
            total = total + self.settings.alpha * self._distance(answered, part)
            total = total + self.weight_of_labels * losses[replayed].sum() / part.replayed_tokens
        return total

    @property
    def weight_of_labels(self) -> float:
        """Weight of the replayed samples' own answers; DER has none."""
        return 0.0

    def _distance(self, answered: Answered, part: Part) -> Tensor:
        """The part of the step's mean squared distance that lies in this micro-batch."""
        now = answered.logits[part.replayed.to(answered.logits.device)[answered.rows]].float()
        if not len(now):  # shown again without labels, to keep processes in step
            return now.sum()
        rows = [row - part.first_replayed for row in part.batch.rows]
        values, ids = self.stored.of([row for row in rows if row >= 0])
        found = now.gather(1, ids.to(now.device, torch.int64))
        old = values.to(now.device, torch.float32)
        return F.mse_loss(found, old, reduction="sum") / old.shape[1] / part.replayed_tokens

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Store logits with the examples that came into the memory."""
        before = {_name(example): place for place, example in enumerate(self.memory)}
        super().after_task(task)
        new = [e for e in self.memory if e.task == task.name]
        found: dict[str, tuple[Tensor, Tensor]] = {}
        loss = AnswerLoss(task.model)
        for inputs, batch in task.batches(
            new, task.encode(new), size=WITHOUT_GRADIENTS * task.batch_size
        ):
            labels = batch.labels.to(next(loss.parameters()).device)
            answered = loss.answered(inputs, labels)
            top = min(self.settings.top_logits, answered.logits.shape[1])
            values, ids = answered.logits.float().topk(top, dim=1)
            for place, row in enumerate(batch.rows):
                here = answered.rows == place
                found[_name(new[row])] = (
                    values[here].to("cpu", torch.float16),
                    ids[here].to("cpu", torch.int32),
                )
        self.stored = StoredLogits.join(
            found[name] if name in found else self.stored.of([before[name]])
            for name in map(_name, self.memory)
        )

    def save(self, folder: Path) -> None:
        """Write memory and logits."""
        super().save(folder)
        self.stored.save(folder / LOGITS_FILE)

    def extra_bytes(self) -> dict[str, int]:
        """Memory and logits."""
        held = self.stored.values.nbytes + self.stored.ids.nbytes
        return {**super().extra_bytes(), "logits": held}


@dataclass(frozen=True)
class StoredLogits:
    """The largest logits at the answer positions of the examples in memory, in its order.

    Attributes:
        values: Logits, [positions, top], fp16.
        ids: Which tokens they are of, [positions, top], int32.
        counts: Positions of each example, [examples].
    """

    values: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.float16))
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.int32))
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *self.counts.cumsum(0).tolist()]

    def of(self, examples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Values and ids of examples, by their places in memory, one after another."""
        places = [p for e in examples for p in range(self._starts[e], self._starts[e + 1])]
        return self.values[places], self.ids[places]

    @classmethod
    def join(cls, parts: Iterable[tuple[Tensor, Tensor]]) -> StoredLogits:
        """The logits of examples in order, from values and ids of each."""
        every = list(parts)
        return cls(
            torch.cat([values for values, _ in every]),
            torch.cat([ids for _, ids in every]),
            torch.tensor([len(values) for values, _ in every]),
        )

    def save(self, path: Path) -> None:
        """Write the three tensors."""
        save_file({"values": self.values, "ids": self.ids, "counts": self.counts}, path)

    @classmethod
    def load(cls, path: Path) -> StoredLogits:
        """Read what `save` wrote."""
        return cls(**load_file(path))


class DERPP(DER):
    """DER++: DER, and the cross-entropy of the replayed samples' own answers, times beta.

    Both terms are of the one replayed half of the batch; the authors' code draws a second one for
    the answers.
    """

    @property
    def weight_of_labels(self) -> float:
        """Beta."""
        return self.settings.beta


def _name(example: Example) -> str:
    return f"{example.task}/{example.question_id}"

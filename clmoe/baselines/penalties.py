"""Methods that hold important weights near where the last task left them: EWC and MAS.

Both add ``strength * sum_k I_k (theta_k - theta*_k)^2`` (EWC: half of it), over every trained
tensor; theta* is the adapter that the task starts from. They differ in the importance I.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmoe.baselines.base import Strategy, Task, bytes_of
from clmoe.data.example import Example
from clmoe.errors import ClmoeError
from clmoe.model.adapter_file import is_shard
from clmoe.parallel.world import world
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.answer_loss import AnswerLoss
from clmoe.training.checkpoint import trainable_tensors

FILE = "importance.safetensors"


class Penalty(Strategy):
    """Importances, the anchor, and the penalty over them."""

    factor: ClassVar[float] = 1.0

    def __init__(self, settings: Settings, *, kept: Path | None = None) -> None:
        """Read the importances of the tasks before."""
        super().__init__(settings, kept=kept)
        self.importance: dict[str, Tensor] = {} if kept is None else load_file(kept / FILE)
        self._anchors: dict[str, Tensor] = {}
        self._anchored: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def before_task(self, task: Task) -> None:
        """Anchor every trained tensor where it is.

        Raises:
            ClmoeError: The importances are of other tensors than are trained.
        """
        if not self.importance:
            return
        parameters = trainable_tensors(task.model)
        if parameters.keys() != self.importance.keys():
            raise ClmoeError("the importances kept after the last task are of other tensors")
        self._anchors = {name: p.detach().clone() for name, p in parameters.items()}

    def prepared(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take the parameters to hold: those that the optimizer moves, which are whole."""
        if not self._anchors:
            return
        assert parameters.keys() == self._anchors.keys(), "other parameters than were anchored"
        assert not any(map(is_shard, parameters.values())), "the anchors are whole parameters"
        self._anchored = [
            (p, self._anchors[name].to(p.device), self.importance[name].to(p.device))
            for name, p in parameters.items()
        ]

    def penalty(self) -> Tensor | None:
        """``factor * strength * sum_k I_k (theta_k - theta*_k)^2``; None before a second task."""
        if not self._anchors:
            return None
        assert self._anchored, "`prepared` gives the parameters that the optimizer moves"
        terms = [(weight * (p - anchor) ** 2).sum() for p, anchor, weight in self._anchored]
        return self.factor * self.settings.strength * torch.stack(terms).sum()

    def after_task(self, task: Task) -> None:
        """Add the importances of this task: ``I <- decay I + I_new``."""
        drawn = random.Random(f"{task.seed}/importance/{task.name}")
        count = min(self.settings.samples, len(task.examples))
        new = self.measure(task, drawn.sample(list(task.examples), count))
        self._anchors, self._anchored = {}, []
        for name, tensor in new.items():
            old = self.importance.get(name)
            self.importance[name] = tensor if old is None else self.settings.decay * old + tensor

    def measure(self, task: Task, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Mean over examples of what `contribution` makes of each one's gradient."""
        parameters = trainable_tensors(task.model)
        sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        mine = world().share(examples)
        for value in self.values(task, mine):
            gradients = torch.autograd.grad(value, list(parameters.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += self.contribution(gradient)
        parts = world().gather({name: total.cpu() for name, total in sums.items()})
        return {
            name: torch.stack([part[name] for part in parts]).sum(dim=0) / len(examples)
            for name in sums
        }

    def values(self, task: Task, examples: Sequence[Example]) -> Sequence[Tensor]:
        """A scalar for each example, whose gradient says what matters."""
        raise NotImplementedError

    def contribution(self, gradient: Tensor) -> Tensor:
        """An example's gradient as importance."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the importances."""
        folder.mkdir()
        save_file({name: t.contiguous() for name, t in self.importance.items()}, folder / FILE)

    def extra_bytes(self) -> dict[str, int]:
        """Importances, and as much again for the anchor while training."""
        held = bytes_of(self.importance)
        return {"importance": held, "anchor": held}


class EWC(Penalty):
    """Elastic weight consolidation (Kirkpatrick et al. 2017), online (Schwarz et al. 2018).

    Importance is the diagonal of the empirical Fisher: per-sample squared gradients of the
    log-likelihood of the whole answer. The penalty is ``strength / 2 * ...``.
    """

    factor = 0.5

    def values(self, task: Task, examples: Sequence[Example]):  # type: ignore[no-untyped-def]
        """The negative log-likelihood of each answer, summed over its tokens."""
        loss = AnswerLoss(task.model)
        for inputs, batch in task.batches(examples, task.encode(examples), size=1):
            device = next(loss.parameters()).device
            yield loss(inputs, batch.labels.to(device))

    def contribution(self, gradient: Tensor) -> Tensor:
        """The square."""
        return gradient**2


class MAS(Penalty):
    """Memory aware synapses (Aljundi et al. 2018): importance without labels.

    Omega is the mean over samples of ``abs(d ||z||^2 / d theta)``, z the logits at the last token
    of the prompt.
    """

    def values(self, task: Task, examples: Sequence[Example]):  # type: ignore[no-untyped-def]
        """The squared norm of each prompt's last logits."""
        base = task.model.get_base_model()
        for inputs, _ in task.batches(examples, task.prompts(examples), size=1):
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
            logits = base.get_output_embeddings()(hidden[:, -1]).float()
            yield (logits**2).sum()

    def contribution(self, gradient: Tensor) -> Tensor:
        """The absolute value."""
        return gradient.abs()

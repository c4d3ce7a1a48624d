"""VS: backward-consistent features (Wan et al. 2022, CVS).

    CE + alpha * triplet(f(x), f_old(x), hardest old feature of another class, margin)
       + beta * mean over memory of ||c_y - f(x)||^2

f is the L2-normalised mean of the last hidden states over the prompt, a class is a task, f_old is
that of the adapter that the task starts from (adapters are swapped on the same base), and c_y the
mean of the old features of class y. The hardest feature is looked for among all samples of a step,
which therefore is never divided.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from clmoe.baselines.base import WITHOUT_GRADIENTS, Part, Task, bytes_of, prompt_tokens
from clmoe.baselines.replay import ER
from clmoe.model.adapter_file import adapter_tensors, load_adapter
from clmoe.model.control import active_adapter
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.answer_loss import Answered

TEACHER = "teacher"
CENTERS_FILE = "centers.safetensors"


class VS(ER):
    """Replay, and features that stay where they were."""

    whole_steps: ClassVar[bool] = True

    def __init__(self, settings: Settings, *, kept: Path | None = None) -> None:
        """Read memory and class centres."""
        super().__init__(settings, kept=kept)
        self.centers: dict[str, Tensor] = {} if kept is None else load_file(kept / CENTERS_FILE)
        self._task = ""
        self._teacher_bytes = 0
        self._old: Tensor | None = None

    def before_task(self, task: Task) -> None:
        """Put the adapter that the task starts from beside the one that is trained."""
        self._task = task.name
        if task.previous is None:
            return
        load_adapter(task.model, task.previous, adapter_name=TEACHER)
        task.model.set_adapter("default")
        self._teacher_bytes = bytes_of(adapter_tensors(task.model, adapter_name=TEACHER))

    @torch.no_grad()
    def before_batch(self, model: Any, inputs: dict[str, Tensor], part: Part) -> None:
        """Compute the old features of a step's samples."""
        self._old = None
        if self._teacher_bytes:
            with active_adapter(model, TEACHER):
                hidden = model.get_base_model().model(**inputs, use_cache=False).last_hidden_state
            self._old = features(hidden, part)

    def loss(self, answered: Answered, part: Part) -> Tensor:
        """Cross-entropy over the joint batch, triplet and centre terms."""
        total = super().loss(answered, part)
        if self._old is None or not answered.rows.numel():
            return total
        new = features(answered.hidden, part)
        classes = [self._class(row, part) for row in part.batch.rows]
        size = part.rows
        triplet = triplet_loss(new, self._old, classes=classes, margin=self.settings.margin)
        total = total + self.settings.alpha * triplet / size
        known = [(i, c) for i, c in enumerate(classes) if part.replayed[i] and c in self.centers]
        if known:
            centers = torch.stack([self.centers[c] for _, c in known]).to(new)
            distance = ((centers - new[[i for i, _ in known]]) ** 2).sum()
            total = total + self.settings.beta * distance / part.replayed_rows
        return total

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Update the memory, and compute every class's centre with the adapter just trained."""
        super().after_task(task)
        if self._teacher_bytes:
            task.model.delete_adapter(TEACHER)
        self._teacher_bytes, self._old = 0, None
        sums: dict[str, list[Tensor]] = {}
        examples = self.memory
        base = task.model.get_base_model()
        for inputs, batch in task.batches(
            examples, task.prompts(examples), size=WITHOUT_GRADIENTS * task.batch_size
        ):
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
            found = _pooled(hidden, prompt_tokens(batch))
            for row, feature in zip(batch.rows, found, strict=True):
                sums.setdefault(examples[row].task, []).append(feature.cpu())
        self.centers = {name: torch.stack(each).mean(dim=0) for name, each in sums.items()}

    def save(self, folder: Path) -> None:
        """Write memory and centres."""
        super().save(folder)
        save_file(self.centers, folder / CENTERS_FILE)

    def extra_bytes(self) -> dict[str, int]:
        """Memory, centres, and the old adapter while training."""
        held = {"centers": bytes_of(self.centers), "teacher": self._teacher_bytes}
        return {**super().extra_bytes(), **held}

    def _class(self, row: int, part: Part) -> str:
        old = row - part.first_replayed
        return self._task if old < 0 else self.memory[old].task


def features(hidden: Tensor, part: Part) -> Tensor:
    """L2-normalised mean of the last hidden states over each prompt, [batch, hidden] fp32."""
    return _pooled(hidden, prompt_tokens(part.batch))


def _pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(hidden.device)[..., None].float()
    mean = (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
    return F.normalize(mean, dim=1)


def triplet_loss(new: Tensor, old: Tensor, *, classes: list[str], margin: float) -> Tensor:
    """Sum over samples of ``max(0, |f - f_old| - min |f - f_old of another class| + margin)``.

    A sample whose batch has no other class adds nothing.

    Args:
        new: f, [batch, hidden].
        old: f_old, [batch, hidden].
        classes: Each sample's class.
        margin: The margin.
    """
    distances = torch.cdist(new[None], old[None])[0]  # [batch, batch]
    other = torch.tensor([[a != b for b in classes] for a in classes], device=new.device)
    hardest = distances.masked_fill(~other, float("inf")).amin(dim=1)
    each = F.relu(distances.diagonal() - hardest + margin)
    return each[other.any(dim=1)].sum()

"""VQACL (Zhang et al. 2023): replay, and prototypes of questions and pictures as extra inputs.

A question prototype for each task and a visual prototype for each task (the data have no other
categories) follow the mean embeddings of their samples as exponential moving averages. Each sample
is shown, before its own tokens, the nearest prototype of each kind; prototypes carry no gradient.
They are used at inference as they were when the task ended.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clmoe.baselines.base import Part, Task, bytes_of
from clmoe.baselines.replay import ER
from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE
from clmoe.errors import ClmoeError
from clmoe.parallel.world import world
from clmoe.recipe.schema import Strategy as Settings

FILE = "prototypes.safetensors"
KINDS = ("question", "picture")


class Prototypes:
    """Moving averages of question and picture embeddings, by task."""

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Begin with what was saved, by ``kind/task``."""
        self.tensors = dict(tensors or {})

    @classmethod
    def load(cls, folder: Path) -> Prototypes:
        """Read the prototypes that a training saved."""
        return cls(load_file(folder / FILE))

    def nearest(self, kind: str, features: Tensor) -> Tensor:
        """The nearest prototype of a kind to each feature, [batch, hidden]; itself if none is."""
        known = [tensor for name, tensor in self.tensors.items() if name.startswith(f"{kind}/")]
        if not known:
            return features
        stacked = torch.stack(known).to(features)
        return stacked[torch.cdist(features[None], stacked[None])[0].argmin(dim=1)]

    def follow(self, kind: str, task: str, mean: Tensor, *, momentum: float) -> None:
        """``p <- momentum p + (1 - momentum) mean``; the first mean as it is."""
        name = f"{kind}/{task}"
        old = self.tensors.get(name)
        new = mean if old is None else momentum * old.to(mean) + (1 - momentum) * mean
        self.tensors[name] = new.detach().cpu()

    def extend(
        self, inputs: dict[str, Tensor], batch: Batch, *, image_token_id: int
    ) -> dict[str, Tensor]:
        """Put the two nearest prototypes before every sample's tokens.

        Raises:
            ClmoeError: The base does not take embeddings (its pictures have no fixed tokens).
        """
        embeds = embeddings(inputs)
        found = sample_features(embeds, batch, image_token_id=image_token_id)
        extra = torch.stack([self.nearest(kind, found[kind]) for kind in KINDS], dim=1)
        mask = inputs["attention_mask"]
        return {
            **inputs,
            "inputs_embeds": torch.cat([extra.to(embeds.dtype).detach(), embeds], dim=1),
            "attention_mask": torch.cat([mask.new_ones(len(mask), len(KINDS)), mask], dim=1),
        }


def embeddings(inputs: dict[str, Tensor]) -> Tensor:
    """The embeddings that the model is shown.

    Raises:
        ClmoeError: It is shown token ids and pixels.
    """
    if "inputs_embeds" not in inputs:
        raise ClmoeError(
            "vqacl adds prototypes to a model's input embeddings, and this base takes pixels",
            hint="use a LLaVA-1.5-like base with base.projector=frozen",
        )
    return inputs["inputs_embeds"]


def sample_features(embeds: Tensor, batch: Batch, *, image_token_id: int) -> dict[str, Tensor]:
    """Mean embedding of each sample's question and picture, [batch, hidden] each, no gradient."""
    masks = {"question": batch.question, "picture": batch.input_ids == image_token_id}
    found = {}
    for kind, mask in masks.items():
        weights = mask.to(embeds.device)[..., None].float()
        total = (embeds.detach().float() * weights).sum(dim=1)
        found[kind] = total / weights.sum(dim=1).clamp_min(1)
    return found


class VQACL(ER):
    """Replay as ER, with prototypes shown to the model."""

    def __init__(self, settings: Settings, *, kept: Path | None = None) -> None:
        """Read memory and prototypes."""
        super().__init__(settings, kept=kept)
        self.prototypes = Prototypes() if kept is None else Prototypes.load(kept)
        self._task, self._image_token_id = "", -1
        self._seen: dict[str, list[Tensor]] = {}

    def before_task(self, task: Task) -> None:
        """Remember whose samples are not from memory."""
        self._task, self._image_token_id = task.name, task.image_token_id

    def extend(
        self, inputs: dict[str, Tensor], labels: Tensor, part: Part
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Show the prototypes of the steps before, and note the samples for the next."""
        embeds, batch = embeddings(inputs), part.batch
        for kind, found in sample_features(
            embeds, batch, image_token_id=self._image_token_id
        ).items():
            for row, feature in zip(batch.rows, found, strict=True):
                old = row - part.first_replayed
                task = self._task if old < 0 else self.memory[old].task
                self._seen.setdefault(f"{kind}/{task}", []).append(feature.cpu())
        longer = self.prototypes.extend(inputs, batch, image_token_id=self._image_token_id)
        nothing = labels.new_full((len(labels), len(KINDS)), IGNORE)
        return longer, torch.cat([nothing, labels], dim=1)

    def after_step(self) -> None:
        """Move each prototype towards the mean of its samples in the step, over all processes."""
        sums = {
            name: (torch.stack(each).sum(dim=0), len(each)) for name, each in self._seen.items()
        }
        self._seen = {}
        parts = world().gather(sums)
        for name in sorted({name for part in parts for name in part}):
            there = [part[name] for part in parts if name in part]
            mean = torch.stack([total for total, _ in there]).sum(dim=0) / sum(n for _, n in there)
            kind, task = name.split("/", 1)
            momentum = {
                "question": self.settings.question_momentum,
                "picture": self.settings.picture_momentum,
            }[kind]
            self.prototypes.follow(kind, task, mean, momentum=momentum)

    def moving(self) -> dict[str, Tensor]:
        """The prototypes."""
        return dict(self.prototypes.tensors)

    def restore(self, moving: dict[str, Tensor]) -> None:
        """Take the prototypes back."""
        self.prototypes, self._seen = Prototypes(moving), {}

    def after_task(self, task: Task) -> None:
        """Update the memory; forget samples that no step has used."""
        super().after_task(task)
        self._seen = {}

    def save(self, folder: Path) -> None:
        """Write memory and prototypes."""
        super().save(folder)
        save_file(
            {name: t.contiguous() for name, t in self.prototypes.tensors.items()}, folder / FILE
        )

    def extra_bytes(self) -> dict[str, int]:
        """Memory and prototypes."""
        return {**super().extra_bytes(), "prototypes": bytes_of(self.prototypes.tensors)}

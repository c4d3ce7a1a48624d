"""What the stages of one run share in a process: the base, the adapter, the data, the pictures.

Everything is loaded at first use and once, so `run` pays for the base model a single time and
`status` never does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmoe.data.batches import Batch
from clmoe.data.example import Example
from clmoe.data.prepared import PreparedSource, read_examples, read_source
from clmoe.data.prompts import Encoded, Prompter
from clmoe.errors import ClmoeError, UsageError
from clmoe.evaluation.features import question_features
from clmoe.events import Note, emit
from clmoe.model.adapter_file import load_adapter
from clmoe.model.backbone import Backbone, load_backbone
from clmoe.model.checkpointing import enable_checkpointing
from clmoe.model.config import ClmoeConfig
from clmoe.model.pictures import Pictures, make_prompter
from clmoe.model.tuner import attach
from clmoe.parallel.world import world
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.training.seeds import stream


class Context:
    """Lazily loaded things that belong to one open run."""

    def __init__(self, run: Run) -> None:
        """Hold the run; nothing is loaded yet."""
        self.run = run
        self.recipe = run.recipe
        self._model: Any = None
        self._loaded: tuple[Path, bool] | None = None
        self._features: dict[tuple[str, str], Tensor] = {}
        self._examples: dict[tuple[str, str], list[Example]] = {}
        if self.recipe.runtime.threads:
            torch.set_num_threads(self.recipe.runtime.threads)

    @cached_property
    def device(self) -> torch.device:
        """The device of the recipe, or the best one there is; one each of several processes.

        Raises:
            UsageError: Several processes run on another kind of device than the recipe names.
        """
        wanted, given = self.recipe.runtime.device, world().device
        if given is not None:
            if wanted not in ("auto", given.type):
                raise UsageError(
                    f"runtime.device is {wanted}, but {world().size} processes run on {given.type}",
                    hint="set runtime.device=auto, or ACCELERATE_USE_CPU=true for a CPU",
                )
            return given
        if wanted != "auto":
            return torch.device(wanted)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def used_device(self) -> str | None:
        """The device, once a model was loaded onto it."""
        return str(self.device) if "backbone" in self.__dict__ else None

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen base model; says once why dtype, attention kernel and prompt were chosen."""
        loaded = load_backbone(self.recipe.base, device=self.device)
        emit(Note(f"base {loaded.name} on {self.device}: {'; '.join(loaded.choices)}"))
        return loaded

    def _config(self) -> ClmoeConfig:
        projector = self.backbone.projector
        trained = self.recipe.base.projector != "frozen"
        if trained and projector is None:
            raise ClmoeError(
                f"{self.backbone.name} has no projector that could be trained",
                hint="set base.projector=frozen",
            )
        return ClmoeConfig.from_recipe(
            self.recipe.adapter,
            base=self.recipe.base.model,
            seed=stream(self.recipe.train.seed, "adapter"),
            modules_to_save=[str(projector)] if trained else (),
        )

    def fresh(self) -> Any:
        """The base with a newly initialised adapter (a PEFT model), to be trained."""
        base = self.backbone.model if self._model is None else self._model.unload()
        self._model = attach(base, self._config())
        if self.recipe.train.gradient_checkpointing:
            enable_checkpointing(base)
        self._loaded = None
        return self._model

    def load(self, folder: Path, *, trainable: bool = False) -> Any:
        """Put a committed adapter into the model, strictly, and return the model."""
        if self._loaded != (folder, trainable):
            model = self.fresh() if self._model is None else self._model
            self._model = load_adapter(model, folder, trainable=trainable)
            self._loaded = (folder, trainable)
        self._model.eval()
        return self._model

    def changed(self) -> None:
        """Say that the model's adapter is no longer what was loaded last."""
        self._loaded = None

    def release(self) -> None:
        """Let go of the model: after a sharded training no process holds a whole one."""
        self._model = self._loaded = None
        for name in ("backbone", "prompter", "pictures"):
            self.__dict__.pop(name, None)

    @cached_property
    def source(self) -> PreparedSource:
        """What prepare says of the data: image root, tasks, suffix."""
        return read_source(self.prepared)

    @property
    def prepared(self) -> Path:
        """Folder of the prepared data."""
        return self.run.output(Node("prepare"), "data")

    @cached_property
    def prompter(self) -> Prompter:
        """Renders and encodes conversations for this base."""
        source = self.source
        return make_prompter(
            self.backbone, suffix=source.suffix, suffixes=tuple(source.suffixes.values())
        )

    @cached_property
    def pictures(self) -> Pictures:
        """Pictures as the base sees them; features are kept while they are small."""
        frozen = self.recipe.base.projector == "frozen"
        return Pictures(
            self.backbone, root=self.source.image_root, budget=512 * 2**20 if frozen else 0
        )

    def examples(self, task: str, split: str) -> list[Example]:
        """The prepared questions of a task."""
        key = (task, split)
        if key not in self._examples:
            self._examples[key] = read_examples(self.prepared, task=task, split=split)
        return self._examples[key]

    def inputs(
        self, examples: Sequence[Example], *, train: bool = False
    ) -> Callable[[Batch], dict[str, Tensor]]:
        """Return a function from a batch over ``examples`` to the model's inputs."""
        train_projector = train and self.recipe.base.projector != "frozen"

        def build(batch: Batch) -> dict[str, Tensor]:
            names = [examples[row].image for row in batch.rows]
            return self.pictures.inputs(batch, names=names, train_projector=train_projector)

        return build

    @contextmanager
    def bare(self) -> Iterator[Any]:
        """The base model with its adapters off (they are injected once one was made)."""
        if self._model is None:
            yield self.backbone.model
        else:
            self._model.eval()
            with self._model.disable_adapter():
                yield self._model.get_base_model()

    def encode_training(self, examples: list[Example]) -> tuple[list[Encoded], list[Example]]:
        """Encode conversations for training; with ``data.turns=image`` one a picture.

        Returns:
            The encoded conversations, and for each the example whose picture it shows.
        """
        groups: dict[Hashable, list[Example]] = {}
        for example in examples:
            together = (example.image, example.group)
            key = together if self.recipe.data.turns == "image" else example.question_id
            groups.setdefault(key, []).append(example)
        encoded = [
            self.prompter.encode(
                [(e.question, e.answer) for e in group],
                name=f"question {group[0].question_id}",
                picture=self.pictures.text(group[0].image),
            )
            for group in groups.values()
        ]
        return encoded, [group[0] for group in groups.values()]

    def features(self, task: str, split: str) -> Tensor:
        """F(x) of Eq 7 for every question of a task, [N, d]; computed once, by all processes."""
        key = (task, split)
        if key not in self._features:
            questions = [self.prompter.text_only(e.question) for e in self.examples(task, split)]
            mine = world().share(questions)
            found = None
            if mine:
                with self.bare() as base:
                    found = question_features(
                        base,
                        questions=mine,
                        special=set(self.backbone.tokenizer.all_special_ids),
                        kind=self.recipe.index.feature,
                        batch_size=self.recipe.eval.batch_size,
                    )
            parts = [part for part in world().gather(found) if part is not None]
            features = parts[0].new_empty(len(questions), parts[0].shape[1])
            for rank, part in enumerate(parts):
                features[rank :: world().size] = part
            self._features[key] = features
        return self._features[key]

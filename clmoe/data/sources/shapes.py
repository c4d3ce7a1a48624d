"""The built-in source: ten tasks about scenes of shapes, drawn here, answers computed.

Nothing is read; pictures are drawn as PNG files named by their scene's sha256. The scenes of the
three splits are disjoint by that digest, for every seed. The share of each task's most frequent
answer is in the statistics; with the default sizes it is at most `MAJORITY_BOUND` percent.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

from clmoe.data.checks import Problems
from clmoe.data.example import SPLITS, Example, select_splits
from clmoe.data.scene_questions import Asked, choose, majority_rate
from clmoe.data.scene_tasks import TASKS
from clmoe.data.scenes import Scene, draw, scene_stream
from clmoe.data.sources.registry import LoadedSource
from clmoe.recipe.schema import Data

PER_TASK = {"train": 1600, "val": 200, "test": 400}
SCENES_PER_QUESTION = 1.5  # scenes in a split for each question of one task
MAJORITY_BOUND = 51.0

Questions = dict[str, list[tuple[int, Asked]]]


def split_questions(seed: int, *, split: str, per_task: int) -> tuple[list[Scene], Questions]:
    """The scenes of one split and, for each task, its questions as (position of scene, question).

    Args:
        seed: Of the choice of scenes and questions.
        split: "train", "val" or "test".
        per_task: Questions of each task.
    """
    count = max(40, math.ceil(per_task * SCENES_PER_QUESTION))
    scenes = list(itertools.islice(scene_stream(seed, split), count))
    questions = {
        task: choose(scenes, families, count=per_task, rng=random.Random(f"{seed}/{split}/{task}"))
        for task, families in TASKS.items()
    }
    return scenes, questions


class ShapesSource:
    """Scenes of shapes with questions for the ten tasks."""

    name = "shapes"
    default_order = tuple(TASKS)
    suffix = ""

    def required_files(self, config: Data) -> list[Path]:
        """No file: everything follows from the seed and the sizes."""
        return []

    def load(self, config: Data, *, workspace: Path, report: Problems) -> LoadedSource:
        """Draw the pictures into `workspace/images` and ask the questions."""
        images = workspace / "images"
        images.mkdir(parents=True, exist_ok=True)
        wanted = config.tasks or self.default_order
        given = {
            "train": config.train_per_task,
            "val": config.val_per_task,
            "test": config.test_per_task,
        }
        examples: dict[tuple[str, str], list[Example]] = {}
        majority: dict[str, dict[str, float]] = {}
        used: dict[str, int] = {}
        for split in select_splits(config.splits):
            per_task = given[split] or PER_TASK[split]
            scenes, questions = split_questions(config.seed, split=split, per_task=per_task)
            shas = [scene.sha() for scene in scenes]
            asked_of = {p for task in wanted for p, _ in questions.get(task, ())}
            for position in sorted(asked_of):
                draw(scenes[position]).save(images / f"{shas[position]}.png", compress_level=1)
            used[split] = len(asked_of)
            for task, pairs in questions.items():
                majority.setdefault(task, {})[split] = round(majority_rate(a for _, a in pairs), 2)
                if task not in wanted:
                    continue
                examples[task, split] = [
                    Example(
                        question_id=f"{split}-{task}-{number:05d}",
                        task=task,
                        split=split,
                        image=f"{shas[position]}.png",
                        question=asked.question,
                        answer=asked.answer,
                        group=shas[position],
                        kind=asked.kind,
                    )
                    for number, (position, asked) in enumerate(pairs)
                ]
        statistics: dict[str, Any] = {"majority_answer_percent": majority, "scenes": used}
        return LoadedSource(
            examples=examples, image_root=images, order=self.default_order, statistics=statistics
        )


assert set(PER_TASK) == set(SPLITS)

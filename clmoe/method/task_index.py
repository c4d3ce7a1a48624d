"""Equations 7 and 8: which task does a question belong to?

    R_t  = mean over x in D_t of F(x)              [d]
    t(v) = argmin over t of ||F(v) - R_t||_2

F is the text feature of a question. Each task's summary is stored on its own and never changed
later; an index over tasks 1 .. t is combined from their summaries. `index_kinds` has the
variants of R_t and of the distance. Ties go to the earlier task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.method.index_kinds import (
    IndexKind,
    euclidean,
    kmeans_centres,
    scatter_matrix,
    whitening,
)

TENSORS_FILE = "index.safetensors"
DETAILS_FILE = "index.json"
_TENSORS: dict[IndexKind, set[str]] = {
    "centroid": {"mean"},
    "kmeans": {"mean", "centres"},
    "lda": {"mean", "scatter"},
}


@dataclass(frozen=True)
class TaskSummary:
    """What the index keeps of one task.

    Attributes:
        task: Its name.
        kind: "centroid", "kmeans" or "lda".
        count: How many questions it summarises.
        mean: R_t, [d] float64.
        centres: Kind "kmeans": [centers, d] float64; else None.
        scatter: Kind "lda": sum of (x - mean)(x - mean)^T, [d, d] float32; else None.
    """

    task: str
    kind: IndexKind
    count: int
    mean: Tensor
    centres: Tensor | None = None
    scatter: Tensor | None = None


@dataclass(frozen=True)
class TaskIndex:
    """Tells the tasks learned so far apart by a question's feature; see `combine`.

    Attributes:
        tasks: Their names, in order.
        kind: "centroid", "kmeans" or "lda".
        points: What questions are compared with, [P, d] float64; whitened for kind "lda".
        owner: The position in `tasks` of each point, [P].
        factor: Kind "lda": the Cholesky factor of the shared covariance, [d, d]; else None.
    """

    tasks: tuple[str, ...]
    kind: IndexKind
    points: Tensor
    owner: Tensor
    factor: Tensor | None

    def distances(self, features: Tensor) -> Tensor:
        """How far each question is from each task.

        Args:
            features: F(v), [N, d].

        Returns:
            [N, tasks] float64: Euclidean distance to R_t ("centroid"), to the nearest centre
            ("kmeans"), or Mahalanobis distance to the mean ("lda"). Smaller is nearer.

        Raises:
            ClmoeError: The features have another size than the index, or are not finite.
        """
        width = self.points.shape[1]
        if features.dim() != 2 or features.shape[1] != width:
            raise ClmoeError(
                f"features are {list(features.shape)}; this index has size {width}",
                hint="the index was made from another base model: run `clmoe index` again",
            )
        values = features.detach().cpu().double()
        if not bool(values.isfinite().all()):
            raise ClmoeError("a feature is not a finite number")
        if self.factor is not None:
            values = _whiten(values, factor=self.factor)
        every = euclidean(values, points=self.points)  # [N, P]
        result = torch.full((len(values), len(self.tasks)), torch.inf, dtype=torch.float64)
        owner = self.owner.expand(len(values), -1)
        return result.scatter_reduce(1, owner, every, reduce="amin")

    def predict(self, features: Tensor) -> Tensor:
        """Eq 8: the position in `tasks` of the nearest task of each question, [N] int64."""
        return self.distances(features).argmin(dim=1)


def fit_task(
    features: Tensor, *, task: str, kind: IndexKind, centers: int = 4, seed: int = 0
) -> TaskSummary:
    """Eq 7, or its richer variants, from the features of D_t.

    Args:
        features: F(x) of every question, [N, d].
        task: The task's name.
        kind: What to keep.
        centers: Kind "kmeans": how many centres.
        seed: Kind "kmeans": seed of the first centres.

    Raises:
        ClmoeError: There is no question, a feature is not finite, or there are fewer different
            questions than centres.
    """
    if features.dim() != 2 or len(features) == 0:
        raise ClmoeError(f"features of {task} are {list(features.shape)}; expected [N > 0, d]")
    if not bool(features.isfinite().all()):
        raise ClmoeError(f"a feature of {task} is not a finite number")
    values = features.detach().cpu()
    mean = values.mean(dim=0, dtype=torch.float64)
    centres = (
        kmeans_centres(values, task=task, centers=centers, seed=seed) if kind == "kmeans" else None
    )
    scatter = scatter_matrix(values, mean=mean) if kind == "lda" else None
    return TaskSummary(task, kind, len(values), mean, centres, scatter)


def combine(summaries: Sequence[TaskSummary], *, shrinkage: float = 0.1) -> TaskIndex:
    """The index over tasks 1 .. t.

    Args:
        summaries: One of each task, in order.
        shrinkage: Kind "lda": how far the shared covariance goes to a scaled identity, in [0, 1].

    Raises:
        ClmoeError: There is none, two have one name, kinds or sizes differ, the shrinkage is out
            of range, or the shared covariance is singular.
    """
    if not summaries:
        raise ClmoeError("a task index needs at least one task")
    _check_together(summaries)
    groups = [s.mean[None] if s.centres is None else s.centres for s in summaries]
    points = torch.cat(groups)
    sizes = torch.tensor([len(group) for group in groups])
    scatters = [summary.scatter for summary in summaries if summary.scatter is not None]
    factor = None
    if scatters:
        questions = sum(summary.count for summary in summaries)
        factor = whitening(scatters, questions=questions, shrinkage=shrinkage)
        points = _whiten(points, factor=factor)
    return TaskIndex(
        tasks=tuple(summary.task for summary in summaries),
        kind=summaries[0].kind,
        points=points,
        owner=torch.arange(len(groups)).repeat_interleave(sizes),
        factor=factor,
    )


def save_task_index(summary: TaskSummary, folder: Path) -> None:
    """Writes the two files of one task's index; the same summary gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"mean": summary.mean, "centres": summary.centres, "scatter": summary.scatter}
    tensors = {name: part.contiguous() for name, part in parts.items() if part is not None}
    save_file(tensors, folder / TENSORS_FILE)
    details = {"task": summary.task, "kind": summary.kind, "count": summary.count}
    (folder / DETAILS_FILE).write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")


def load_task_index(folder: Path) -> TaskSummary:
    """Reads one task's index back.

    Raises:
        ClmoeError: A file is missing or damaged, or holds something else.
    """
    again = "run `clmoe index` again"
    try:
        tensors = load_file(folder / TENSORS_FILE)
        details = json.loads((folder / DETAILS_FILE).read_text(encoding="utf-8"))
        task, kind, count = details["task"], details["kind"], details["count"]
    except Exception as error:
        raise ClmoeError(f"{folder} is not a readable task index: {error!r}", hint=again) from error
    if kind not in get_args(IndexKind) or tensors.keys() != _TENSORS[kind]:
        names = ", ".join(sorted(tensors))
        raise ClmoeError(f"{folder} is no index of kind {kind!r}: it holds {names}", hint=again)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ClmoeError(f"{folder} has a value that is not a finite number", hint=again)
    return TaskSummary(
        task, kind, count, tensors["mean"], tensors.get("centres"), tensors.get("scatter")
    )


def _whiten(values: Tensor, *, factor: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(factor, values.T, upper=False)
    return solved.T


def _check_together(summaries: Sequence[TaskSummary]) -> None:
    names = [summary.task for summary in summaries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ClmoeError(f"tasks are in the index twice: {', '.join(twice)}")
    kinds = {summary.task: summary.kind for summary in summaries}
    widths = {summary.task: len(summary.mean) for summary in summaries}
    for what, found in (("kinds", kinds), ("sizes", widths)):
        if len(set(found.values())) > 1:
            raise ClmoeError(
                f"the tasks' indexes have different {what}: {found}",
                hint="run `clmoe index` again for all of them",
            )

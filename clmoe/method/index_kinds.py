"""What each kind of task index keeps of a task's features, and how far a question is from it.

- centroid: the mean feature R_t (Eq 7); Euclidean distance (Eq 8).
- kmeans: a few centres of the task (Lloyd's k-means); distance to the nearest of them.
- lda: the mean, and one covariance shared by all tasks; Mahalanobis distance, which with equal
  priors is Fisher's linear discriminant. The covariance is pooled from per-task scatters, so no
  old data is needed (streaming LDA, Hayes and Kanan 2020), and shrunk towards a scaled identity.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from clmoe.errors import ClmoeError

IndexKind = Literal["centroid", "kmeans", "lda"]


def kmeans_centres(values: Tensor, *, task: str, centers: int, seed: int) -> Tensor:
    """The centres of Lloyd's k-means, the best of ten starts: [centers, d] float64.

    Raises:
        ClmoeError: There are fewer different questions than centres.
    """
    model = KMeans(n_clusters=centers, n_init=10, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(values.float().numpy())
        except (ConvergenceWarning, ValueError) as error:
            raise ClmoeError(
                f"{task} has {len(values)} questions, too few different ones for {centers} centres",
                hint="lower index.centers, or set index.kind=centroid",
            ) from error
    return torch.from_numpy(model.cluster_centers_).double()


def scatter_matrix(values: Tensor, *, mean: Tensor) -> Tensor:
    """Sum of (x - mean)(x - mean)^T over values [N, d]: [d, d] float32, summed in float64."""
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for start in range(0, len(values), 4096):
        centred = values[start : start + 4096].double() - mean
        total += centred.T @ centred
    return total.float()


def whitening(scatters: Sequence[Tensor], *, questions: int, shrinkage: float) -> Tensor:
    """The Cholesky factor L [d, d] of the shared covariance: Mahalanobis is Euclid after L^-1.

    The covariance is (1 - s) * S + s * trace(S)/d * I with S the sum of scatters over the number
    of questions, and s the shrinkage.

    Args:
        scatters: One of each task, [d, d].
        questions: How many questions they are of together.
        shrinkage: s in [0, 1].

    Raises:
        ClmoeError: The shrinkage is out of range, or the covariance is singular, so that no
            distance is defined.
    """
    if not 0 <= shrinkage <= 1:
        raise ClmoeError(f"index.shrinkage is {shrinkage:g}; it must be in [0, 1]")
    width = len(scatters[0])
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for scatter in scatters:
        covariance += scatter / questions
    scale = covariance.trace() / width
    covariance = (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(width).double()
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise ClmoeError(
            f"the covariance of {questions} questions with {width} features is singular at "
            f"index.shrinkage={shrinkage:g}",
            hint="raise index.shrinkage, for example to 0.1, or use index.kind=centroid",
        )
    return factor


def euclidean(features: Tensor, *, points: Tensor) -> Tensor:
    """Distances [N, P] of features [N, d] to points [P, d], by differences, not by dot products."""
    distances: Tensor = torch.cdist(features, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances

"""Eq 7 and 8 by hand; the other kinds against scikit-learn; files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.method.task_index import (
    TaskSummary,
    combine,
    fit_task,
    load_task_index,
    save_task_index,
)


def clouds(sizes: list[int], *, width: int = 6, apart: float = 1.5, seed: int = 0) -> list[Tensor]:
    """One cloud of correlated features for each task."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return [
        torch.randn(size, width, generator=generator) @ mixing
        + apart * torch.randn(width, generator=generator)
        for size in sizes
    ]


def fit_all(features: list[Tensor], **options) -> list[TaskSummary]:
    return [fit_task(x, task=f"task {i}", **options) for i, x in enumerate(features)]


def test_the_centroid_is_the_mean_and_the_nearest_wins() -> None:
    first = fit_task(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), task="a", kind="centroid")
    second = fit_task(torch.tensor([[4.0, 3.0]]), task="b", kind="centroid")
    assert first.mean.tolist() == [1, 0]
    assert (first.count, second.count) == (2, 1)
    index = combine([first, second])
    assert index.tasks == ("a", "b")
    # to (1, 0) and (4, 3)
    assert index.distances(torch.tensor([[1.0, 4.0]])).tolist() == [pytest.approx([4, 10**0.5])]
    assert index.predict(torch.tensor([[1.0, 4.0], [0.0, 0.0]])).tolist() == [1, 0]


def test_a_tie_goes_to_the_earlier_task() -> None:
    tasks = [
        fit_task(torch.tensor([[x]]), task=str(x), kind="centroid") for x in (3.0, 1.0, 0.9999)
    ]
    assert combine(tasks).predict(torch.tensor([[2.0]])).tolist() == [0]


def test_means_are_float64_and_do_not_depend_on_order() -> None:
    x = clouds([5000])[0] + 1000
    one, other = (fit_task(v, task="a", kind="centroid").mean for v in (x, x.flip(0)))
    assert one.dtype == torch.float64
    assert torch.allclose(one, other, rtol=1e-13)


def test_near_points_are_told_apart_far_from_the_origin() -> None:
    points = torch.tensor([[1e6], [1e6 + 1]], dtype=torch.float64)
    tasks = [fit_task(p[None], task=str(i), kind="centroid") for i, p in enumerate(points)]
    assert combine(tasks).distances(points).tolist() == [[0, 1], [1, 0]]


def test_kmeans_is_the_distance_to_the_nearest_centre_of_a_task() -> None:
    features = clouds([80, 60, 50])
    tasks = fit_all(features, kind="kmeans", centers=3, seed=7)
    for summary, x in zip(tasks, features, strict=True):
        model = KMeans(n_clusters=3, n_init=10, random_state=7).fit(x.numpy())
        assert np.allclose(summary.centres, model.cluster_centers_)
    asked = clouds([40], seed=9)[0].double()
    slow = [[min(float((x - c).norm()) for c in task.centres) for task in tasks] for x in asked]
    assert torch.allclose(combine(tasks).distances(asked), torch.tensor(slow).double())


def test_kmeans_solves_what_one_centroid_cannot() -> None:
    """A task on both sides of another one."""
    outer = torch.tensor([[-2.0], [-2.1], [2.0], [2.1]])
    inner = torch.tensor([[0.0], [0.1], [-0.3], [0.4]])
    right = torch.tensor([0] * 4 + [1] * 4)
    asked = torch.cat([outer, inner])
    assert combine(fit_all([outer, inner], kind="kmeans", centers=2)).predict(asked).equal(right)
    assert not combine(fit_all([outer, inner], kind="centroid")).predict(asked).equal(right)


def test_kmeans_needs_enough_different_questions() -> None:
    for x in (torch.ones(9, 2), torch.randn(2, 2)):
        with pytest.raises(ClmoeError, match="too few different ones for 3 centres") as caught:
            fit_task(x, task="a", kind="kmeans", centers=3)
        assert "index.centers" in (caught.value.hint or "")


@pytest.mark.parametrize("sizes", [[40, 40, 40], [90, 30, 12]])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7])
def test_lda_equals_scikit_learn(sizes: list[int], shrinkage: float) -> None:
    features = clouds(sizes)
    asked = clouds([200], seed=3)[0]
    index = combine(fit_all(features, kind="lda"), shrinkage=shrinkage)
    # scikit-learn weighs covariances by its priors: the counts give the pooled one. Its scores
    # then contain the log priors, which are taken off again, because ours are equal.
    priors = np.array(sizes) / sum(sizes)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None, priors=priors)
    model.fit(torch.cat(features).numpy(), np.repeat(np.arange(3), sizes))
    scores = model.decision_function(asked.numpy()) - np.log(priors)
    ours = -0.5 * index.distances(asked).square().numpy()
    differences = (ours - ours[:, :1]) - (scores - scores[:, :1])
    assert np.abs(differences).max() < 1e-3
    assert (index.predict(asked).numpy() == scores.argmax(axis=1)).all()
    if len(set(sizes)) == 1:
        equal = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage=shrinkage or None, priors=[1 / 3] * 3
        ).fit(torch.cat(features).numpy(), np.repeat(np.arange(3), sizes))
        assert (index.predict(asked).numpy() == equal.predict(asked.numpy())).all()


def test_lda_without_old_data_equals_lda_with_all_data() -> None:
    features = clouds([50, 70])
    tasks = fit_all(features, kind="lda")
    centred = torch.cat([x - x.mean(dim=0) for x in features]).double()
    covariance = centred.T @ centred / 120
    index = combine(tasks, shrinkage=0.0)
    assert index.factor is not None
    assert torch.allclose(index.factor @ index.factor.T, covariance, rtol=1e-5)
    asked = clouds([5], seed=4)[0].double()
    inverse = covariance.inverse()
    for i, task in enumerate(tasks):
        apart = asked - task.mean
        slow = torch.einsum("nd,de,ne->n", apart, inverse, apart).sqrt()
        assert torch.allclose(index.distances(asked)[:, i], slow, rtol=1e-5)


def test_full_shrinkage_is_the_centroid_rule() -> None:
    features = clouds([30, 40, 50])
    asked = clouds([100], seed=5)[0]
    lda = combine(fit_all(features, kind="lda"), shrinkage=1.0)
    assert lda.predict(asked).equal(combine(fit_all(features, kind="centroid")).predict(asked))


def test_a_singular_covariance_is_refused() -> None:
    tasks = fit_all([torch.randn(3, 8), torch.randn(3, 8)], kind="lda")
    with pytest.raises(ClmoeError, match="6 questions with 8 features is singular") as caught:
        combine(tasks, shrinkage=0.0)
    assert "index.shrinkage" in (caught.value.hint or "")
    combine(tasks, shrinkage=0.1)
    with pytest.raises(ClmoeError, match=r"must be in \[0, 1\]"):
        combine(tasks, shrinkage=1.5)


@pytest.mark.parametrize("kind", ["centroid", "kmeans", "lda"])
def test_files_round_trip_and_are_the_same_bytes(tmp_path: Path, kind: str) -> None:
    features = clouds([30, 40])
    tasks = fit_all(features, kind=kind)
    for i, task in enumerate(tasks):
        save_task_index(task, tmp_path / f"{i}")
        save_task_index(fit_task(features[i], task=task.task, kind=kind), tmp_path / f"again {i}")
        for name in ("index.safetensors", "index.json"):
            again = (tmp_path / f"again {i}" / name).read_bytes()
            assert (tmp_path / f"{i}" / name).read_bytes() == again
    loaded = combine([load_task_index(tmp_path / f"{i}") for i in range(2)])
    asked = clouds([20], seed=6)[0]
    assert loaded.distances(asked).equal(combine(tasks).distances(asked))
    assert (loaded.kind, loaded.tasks) == (kind, ("task 0", "task 1"))


@pytest.mark.parametrize("damage", ["cut", "kind", "extra", "nan", "absent"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    save_task_index(fit_task(torch.randn(3, 2), task="a", kind="centroid"), tmp_path)
    tensors, details = tmp_path / "index.safetensors", tmp_path / "index.json"
    message = "is not a readable task index"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == "absent":
        tensors.unlink()
    elif damage == "kind":
        details.write_text(json.dumps({"task": "a", "kind": "nearest", "count": 3}))
        message = "is no index of kind 'nearest'"
    elif damage == "extra":
        save_file({"mean": torch.ones(2), "centres": torch.ones(1, 2)}, tensors)
        message = "is no index of kind 'centroid': it holds centres, mean"
    else:
        save_file({"mean": torch.tensor([torch.nan, 0])}, tensors)
        message = "not a finite number"
    with pytest.raises(ClmoeError, match=message) as caught:
        load_task_index(tmp_path)
    assert caught.value.hint == "run `clmoe index` again"


def test_bad_input_is_refused() -> None:
    one = fit_task(torch.randn(3, 2), task="a", kind="centroid")
    with pytest.raises(ClmoeError, match="at least one task"):
        combine([])
    with pytest.raises(ClmoeError, match="twice: a"):
        combine([one, one])
    with pytest.raises(ClmoeError, match="different kinds"):
        combine([one, fit_task(torch.randn(3, 2), task="b", kind="lda")])
    with pytest.raises(ClmoeError, match="different sizes"):
        combine([one, fit_task(torch.randn(3, 4), task="b", kind="centroid")])
    with pytest.raises(ClmoeError, match="this index has size 2"):
        combine([one]).predict(torch.randn(5, 3))
    with pytest.raises(ClmoeError, match="not a finite number"):
        combine([one]).predict(torch.full((1, 2), torch.inf))
    with pytest.raises(ClmoeError, match=r"expected \[N > 0, d\]"):
        fit_task(torch.randn(0, 2), task="a", kind="centroid")
    with pytest.raises(ClmoeError, match="a feature of a is not a finite number"):
        fit_task(torch.full((1, 2), torch.nan), task="a", kind="centroid")

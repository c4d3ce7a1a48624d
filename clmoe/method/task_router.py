"""Equation 6: the task router, and the experts a task uses most.

    w_T(t) = mean over x in D_t of w_I(x)          [n]
    E_t    = the K largest entries of w_T(t)

w_I(x) of a sample is the mean gate over its selected tokens, so that every sample counts the
same however long it is. Sums are float64. Ties in the top K go to the lower index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clmoe.errors import ClmoeError

Scope = Literal["per-layer", "global"]

TENSORS_FILE = "task_router.safetensors"
DETAILS_FILE = "task_router.json"


@dataclass(frozen=True)
class TopExperts:
    """The K experts with the largest weights.

    Attributes:
        experts: Their indices, ascending: E_t.
        gap: The K-th largest weight minus the next one; None if all experts are chosen.
    """

    experts: tuple[int, ...]
    gap: float | None


@dataclass(frozen=True)
class TaskRouter:
    """The task router of one task, at every router of the adapter.

    Attributes:
        weights: w_T of each router, [n] float64. With scope "global" all routers have the mean.
        experts: E_t of each router.
        gaps: How clear the choice was at each router; see `TopExperts`.
        top_k: K.
        scope: "per-layer" or "global".
        samples: How many samples were averaged.
        tokens: Which tokens of a sample: "prompt", "question", "answer" or "all".
        token_count: How many tokens those were in total.
    """

    weights: dict[str, Tensor]
    experts: dict[str, tuple[int, ...]]
    gaps: dict[str, float | None]
    top_k: int
    scope: Scope
    samples: int
    tokens: str
    token_count: int


class TaskRouterAccumulator:
    """Sums gates batch by batch for Eq 6; attach its `add` to a gate recorder."""

    def __init__(self) -> None:
        """Starts with nothing added."""
        self._sums: dict[str, Tensor] = {}
        self._samples: dict[str, int] = {}
        self._tokens: dict[str, int] = {}

    def add(
        self, router: str, *, gates: Tensor, mask: Tensor, samples: Sequence[str] | None = None
    ) -> None:
        """Adds one batch of one router.

        Args:
            router: The router's name.
            gates: w_I of each token, [batch, tokens, n].
            mask: True (or non-zero) for the selected tokens, [batch, tokens].
            samples: Names of the batch's samples, for error messages.

        Raises:
            ClmoeError: A sample has no selected token, a gate is not finite, or shapes disagree.
        """
        if gates.dim() != 3 or mask.shape != gates.shape[:2]:
            raise ClmoeError(
                f"gates {list(gates.shape)} of {router} must be [batch, tokens, n], and the mask "
                f"{list(mask.shape)} [batch, tokens]"
            )
        chosen = mask.to(gates.device) != 0
        counts = chosen.sum(dim=1)
        if not bool(counts.all()):
            empty = [int(i) for i in (counts == 0).nonzero()]
            names = [
                samples[i] if samples is not None else f"number {i} of its batch" for i in empty
            ]
            raise ClmoeError(
                f"no token is selected for sample {', '.join(names)}",
                hint="its prompt is empty for this choice of route.tokens",
            )
        kept = torch.where(chosen[..., None], gates.detach().double(), 0.0)
        means = kept.sum(dim=1) / counts[:, None]  # [batch, n]
        if not bool(means.isfinite().all()):
            raise ClmoeError(
                f"a gate of {router} is not a finite number",
                hint="training has probably diverged: look at its loss",
            )
        total = means.sum(dim=0).cpu()
        if router in self._sums and self._sums[router].shape != total.shape:
            raise ClmoeError(f"{router} had {len(self._sums[router])} experts, now {len(total)}")
        self._sums[router] = self._sums.get(router, torch.zeros_like(total)) + total
        self._samples[router] = self._samples.get(router, 0) + len(means)
        self._tokens[router] = self._tokens.get(router, 0) + int(counts.sum())

    @classmethod
    def of_all(cls, parts: Sequence[TaskRouterAccumulator]) -> TaskRouterAccumulator:
        """The accumulator of everything that was added to its parts, in different processes."""
        whole = cls()
        for part in parts:
            for router, total in part._sums.items():
                whole._sums[router] = whole._sums.get(router, torch.zeros_like(total)) + total
                whole._samples[router] = whole._samples.get(router, 0) + part._samples[router]
                whole._tokens[router] = whole._tokens.get(router, 0) + part._tokens[router]
        return whole

    @property
    def samples(self) -> int:
        """How many samples every router has seen."""
        return self._same(self._samples, what="samples")

    @property
    def token_count(self) -> int:
        """How many selected tokens every router has seen."""
        return self._same(self._tokens, what="tokens")

    def result(self) -> dict[str, Tensor]:
        """w_T of each router, [n] float64, in the order in which routers were first added.

        Raises:
            ClmoeError: Nothing was added, or not the same number of samples to each router.
        """
        samples = self.samples
        return {router: total / samples for router, total in self._sums.items()}

    def _same(self, counts: Mapping[str, int], *, what: str) -> int:
        if not counts:
            raise ClmoeError(
                "no gate was recorded",
                hint="an adapter with one expert has no router; with more, run data through it",
            )
        if len(set(counts.values())) > 1:
            raise ClmoeError(f"routers saw different numbers of {what}: {dict(counts)}")
        return next(iter(counts.values()))


def top_experts(weights: Tensor, *, k: int) -> TopExperts:
    """The K largest entries of w_T; ties go to the lower index.

    Args:
        weights: w_T, [n].
        k: K; more than n means n.

    Raises:
        ClmoeError: k is below 1.
    """
    if k < 1:
        raise ClmoeError(f"route.top_k is {k}; it must be at least 1")
    values, order = torch.sort(weights, descending=True, stable=True)
    gap = None if k >= len(weights) else float(values[k - 1] - values[k])
    return TopExperts(tuple(sorted(int(i) for i in order[:k])), gap)


def build_task_router(
    accumulator: TaskRouterAccumulator, *, top_k: int, scope: Scope, tokens: str
) -> TaskRouter:
    """Eq 6 from the gates of all of D_t.

    Args:
        accumulator: Everything recorded.
        top_k: K.
        scope: "per-layer": each router has its own w_T and E_t. "global": all have the mean.
        tokens: The name of the choice of tokens, kept for the record.
    """
    weights = accumulator.result()
    if scope == "global":
        mean = torch.stack(list(weights.values())).mean(dim=0)
        weights = {router: mean.clone() for router in weights}
    chosen = {router: top_experts(value, k=top_k) for router, value in weights.items()}
    return TaskRouter(
        weights=weights,
        experts={router: top.experts for router, top in chosen.items()},
        gaps={router: top.gap for router, top in chosen.items()},
        top_k=top_k,
        scope=scope,
        samples=accumulator.samples,
        tokens=tokens,
        token_count=accumulator.token_count,
    )


def save_task_router(router: TaskRouter, *, folder: Path) -> None:
    """Writes the two files of a task router; the same router gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: w.contiguous() for name, w in router.weights.items()}, folder / TENSORS_FILE)
    details = {
        "scope": router.scope,
        "top_k": router.top_k,
        "samples": router.samples,
        "tokens": router.tokens,
        "token_count": router.token_count,
        "routers": {
            name: {"experts": list(router.experts[name]), "gap": router.gaps[name]}
            for name in router.weights
        },
    }
    (folder / DETAILS_FILE).write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")


def load_task_router(folder: Path) -> TaskRouter:
    """Reads a task router back.

    Raises:
        ClmoeError: A file is missing or damaged, or the two files do not belong together.
    """
    try:
        tensors = load_file(folder / TENSORS_FILE)
        details = json.loads((folder / DETAILS_FILE).read_text(encoding="utf-8"))
        stored = {name: tuple(entry["experts"]) for name, entry in details["routers"].items()}
        router = TaskRouter(
            weights={name: tensors[name] for name in stored},
            experts=stored,
            gaps={name: entry["gap"] for name, entry in details["routers"].items()},
            top_k=details["top_k"],
            scope=details["scope"],
            samples=details["samples"],
            tokens=details["tokens"],
            token_count=details["token_count"],
        )
    except Exception as error:
        raise ClmoeError(
            f"{folder} is not a readable task router: {error!r}", hint="run `clmoe route` again"
        ) from error
    _check(router, tensors=tensors, folder=folder)
    return router


def _check(router: TaskRouter, *, tensors: Mapping[str, Tensor], folder: Path) -> None:
    problems = [f"{name} is only in {TENSORS_FILE}" for name in tensors.keys() - router.weights]
    if router.scope not in get_args(Scope):
        problems.append(f"unknown scope {router.scope!r}")
    for name, weights in router.weights.items():
        if not bool(weights.isfinite().all()):
            problems.append(f"{name} is not finite")
        elif top_experts(weights, k=router.top_k).experts != router.experts[name]:
            problems.append(f"the experts of {name} are not the largest {router.top_k} weights")
    if problems:
        raise ClmoeError(
            f"{folder} is not a task router: {'; '.join(sorted(problems))}",
            hint="run `clmoe route` again",
        )

"""Choose each method's learning rate on val, then compare all methods on test over seeds.

Usage: python recipes/table.py RECIPE [KEY=VALUE ...] [--runs DIR] [--rates A,B,...] [--seeds N]
       [--jobs N]

Every method gets the same list of rates. The rate with the best final AP on val at seed 0 is kept;
all values are printed. Then each method runs over the seeds on test and the table is printed as
Markdown, with 95 % t-intervals over seeds. Everything is an ordinary run, so a second call only
reads what the first one made. Paired runs share every stage that is equal.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from clmoe.metrics.intervals import over_seeds
from clmoe.runs.run import Run
from clmoe.stages import pipeline

# Methods of one family share trainings, so one process takes them, the first one first.
FAMILIES = (("clmoe", "mmoe", "rmoe"), ("vanilla", "ema"), ("multitask",))
METHODS = ("vanilla", "ema", "mmoe", "rmoe", "clmoe", "multitask")
METRICS = ("AP", "AF", "LA", "AIA")


@dataclass(frozen=True)
class Job:
    """Runs of some methods with one set of values, one after another in one process."""

    recipe: str
    runs: Path
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    rates: tuple[str, ...]
    seed: int

    def start(self, kind: str, method: str, rate: str, *extra: str) -> tuple[str, list[str]]:
        """Name and overrides of the run of one method."""
        name = f"{self.recipe}-{kind}-{method}"
        changes = [*self.overrides, f"method.name={method}", f"train.lr={rate}", *extra]
        return name, [*changes, f"train.seed={self.seed}", "runtime.threads=1"]


def val_aps(job: Job) -> dict[tuple[str, str], float]:
    """Final AP on val of each method and rate: only the last row of the matrix is filled."""
    found = {}
    for method, rate in zip(job.methods, job.rates, strict=True):
        name, changes = job.start(f"val-lr{rate}", method, rate, "eval.split=val")
        pipeline.prepare(
            job.runs, recipe=job.recipe, source=None, overrides=changes, name=name, keep_going=False
        )
        run = Run.open(job.runs, name)
        for node in run.nodes():
            if node.stage == "train" and run.state(node).status != "fresh":
                pipeline.train(
                    job.runs, run=name, task=node.task, overrides=[], again=False, yes=True
                )
        row = pipeline.evaluate(
            job.runs, run=name, after=None, tasks="seen", report="ap-af", oracle_task=None,
            overrides=[], yes=True,
        )  # fmt: skip
        found[method, rate] = row.data["metrics"]["AP"]["value"]
    return found


def test_reports(job: Job) -> dict[tuple[str, int], dict[str, Any]]:
    """The whole matrix on test of each method."""
    found = {}
    for method, rate in zip(job.methods, job.rates, strict=True):
        name, changes = job.start(f"seed{job.seed}", method, rate)
        result = pipeline.run(
            job.runs, recipe=job.recipe, overrides=changes, name=name, dry_run=False,
            keep_going=False,
        )  # fmt: skip
        found[method, job.seed] = dict(result.data)
    return found


def main() -> None:
    """Choose, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--rates", default="1e-3,2e-3,4e-3,8e-3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    rates = args.rates.split(",")
    common = {"recipe": args.recipe, "runs": args.runs, "overrides": tuple(args.overrides)}
    first = Job(**common, methods=("vanilla",), rates=(rates[0],), seed=0)
    name, changes = first.start(f"val-lr{rates[0]}", "vanilla", rates[0], "eval.split=val")
    pipeline.prepare(
        args.runs, recipe=args.recipe, source=None, overrides=changes, name=name, keep_going=False
    )
    pool = ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"))

    jobs = [
        Job(**common, methods=family, rates=(rate,) * len(family), seed=0)
        for rate in rates
        for family in FAMILIES
    ]
    aps = {key: ap for found in pool.map(val_aps, jobs) for key, ap in found.items()}
    chosen = {m: max(rates, key=lambda rate, m=m: aps[m, rate]) for m in METHODS}
    print(f"Final AP on val, seed 0 ({args.recipe}); the best rate of each method is kept.\n")
    print("| method | " + " | ".join(rates) + " |\n| --- |" + " ---: |" * len(rates))
    for method in METHODS:
        cells = [f"{aps[method, r]:.1f}" for r in rates]
        cells = [
            f"**{c}**" if r == chosen[method] else c for r, c in zip(rates, cells, strict=True)
        ]
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)

    jobs = [
        Job(**common, methods=family, rates=tuple(chosen[m] for m in family), seed=seed)
        for seed in range(args.seeds)
        for family in FAMILIES
    ]
    results = {key: data for found in pool.map(test_reports, jobs) for key, data in found.items()}
    zero = results["vanilla", 0]["zero_shot"]["value"]
    print(f"\nOn test, {args.seeds} seeds: mean with 95 % t-interval over seeds.\n")
    print("| method | rate | " + " | ".join(METRICS) + " | identified |")
    print("| --- | ---: |" + " ---: |" * (len(METRICS) + 1))
    print(f"| zero-shot | - | {zero:.1f} | - | - | - | - |")
    for method in METHODS:
        seeds = [results[method, seed] for seed in range(args.seeds)]
        cells = [spread([s["metrics"][name]["value"] for s in seeds]) for name in METRICS]
        found_tasks = [(s["identification"] or {}).get("overall") for s in seeds]
        print(f"| {method} | {chosen[method]} | {' | '.join([*cells, spread(found_tasks)])} |")
    (args.runs / f"{args.recipe}-table.json").write_text(
        json.dumps(
            {
                "val": {f"{m}/{r}": ap for (m, r), ap in aps.items()},
                "chosen": chosen,
                "test": {f"{m}/seed{s}": data["metrics"] for (m, s), data in results.items()},
            },
            indent=1,
        )
    )


def spread(values: Sequence[float | None]) -> str:
    """Mean and half width of the t-interval; a dash where a value is undefined."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    found = over_seeds(known)
    return f"{found.mean:.1f}" + ("" if found.high is None else f" ± {found.high - found.mean:.1f}")


if __name__ == "__main__":
    main()

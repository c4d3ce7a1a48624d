"""From a source to prepared questions: choose, check, report everything that is wrong, write."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from clmoe.data.checks import Problems
from clmoe.data.example import SPLITS, Example, apply_suffix, select_splits
from clmoe.data.images import check_image, path_problem
from clmoe.data.prepared import (
    PreparedSource,
    describe_leakage,
    describe_split,
    write_source,
    write_split,
)
from clmoe.data.selection import choose, cut_validation, validation_images
from clmoe.data.sources.reading import select_tasks
from clmoe.data.sources.registry import LoadedSource, get_source
from clmoe.errors import DataError, UsageError
from clmoe.events import Note, emit, track
from clmoe.recipe.schema import Data

REJECTED = "rejected.jsonl"

Chosen = dict[tuple[str, str], list[Example]]


@dataclass(frozen=True)
class PreparedSummary:
    """What `prepare_data` made.

    Attributes:
        source: What `source.json` says.
        rejected: Records left out because of `data.keep_going`, listed in `rejected.jsonl`.
        warnings: What a person should know, one sentence each.
    """

    source: PreparedSource
    rejected: int
    warnings: tuple[str, ...]


def prepare_data(config: Data, *, workspace: Path, out: Path) -> PreparedSummary:
    """Load a source, choose its questions, check them and write them.

    Args:
        config: The `data` part of the recipe.
        workspace: Where a source puts files that it makes, such as drawn pictures.
        out: Gets `<task>/<split>/data.arrow`, `source.json` and perhaps `rejected.jsonl`.

    Raises:
        UsageError: The recipe asks for a source, task or column that does not exist.
        DataError: Files are missing, records are bad (all of them are counted, the first
            `data.error_limit` listed), or a task and split asked for has no question.
    """
    source = get_source(config.source)
    report = Problems()
    with _collection_paused():
        loaded = source.load(config, workspace=workspace, report=report)
        try:
            tasks = select_tasks(config.tasks, loaded.order)
        except UsageError:
            report.raise_if_any(limit=config.error_limit, keep_going=config.keep_going)
            raise
        chosen = _choose(config, loaded, tasks=tasks, report=report)
    digests = _check_images(chosen, loaded.image_root, report=report) if config.check_images else {}
    report.raise_if_any(limit=config.error_limit, keep_going=config.keep_going)
    warnings = _refuse_empty(config, chosen, tasks=tasks)

    suffix = source.suffix if config.suffix is None else config.suffix
    select_tasks(tuple(config.suffixes), tasks, key="data.suffixes")  # refuses unknown names
    prepared = {
        key: [
            replace(e, question=apply_suffix(e.question, config.suffixes.get(key[0], suffix)))
            for e in kept
        ]
        for key, kept in track(chosen.items(), label="tasks and splits")
        if kept
    }
    leakage = describe_leakage(prepared, digests)
    warnings += _leakage_warnings(leakage)
    out.mkdir(parents=True, exist_ok=True)
    for (task, split), examples in track(prepared.items(), label="writing"):
        write_split(out, examples, task=task, split=split)
    described = PreparedSource(
        source=source.name,
        image_root=loaded.image_root,
        tasks=tasks,
        splits=tuple(
            s for s in select_splits(config.splits) if any((t, s) in prepared for t in tasks)
        ),
        suffix=suffix,
        suffixes=dict(config.suffixes),
        counts={
            task: {split: len(kept) for (of, split), kept in prepared.items() if of == task}
            for task in tasks
        },
        statistics={
            "tasks": {
                task: {
                    split: describe_split(kept)
                    for (of, split), kept in prepared.items()
                    if of == task
                }
                for task in tasks
            },
            "leakage": leakage,
            "source": dict(loaded.statistics),
        },
    )
    write_source(out, described, workspace=workspace)
    if len(report):
        report.write_rejected(out / REJECTED)
        warnings.append(f"{len(report):,} records were left out; see {REJECTED}")
    for warning in warnings:
        emit(Note(warning, level="warning"))
    return PreparedSummary(source=described, rejected=len(report), warnings=tuple(warnings))


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the garbage collector, which would walk millions of live records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _choose(
    config: Data, loaded: LoadedSource, *, tasks: tuple[str, ...], report: Problems
) -> Chosen:
    """Vet the questions of the tasks asked for, cut validation where needed, and apply limits."""
    splits = select_splits(config.splits)
    cut = "val" in splits and not loaded.has_validation
    read = {*splits, "train"} if cut else set(splits)
    vetted = {
        (task, split): _vet(loaded.examples.get((task, split), []), report=report)
        for task in tasks
        for split in SPLITS
        if split in read
    }
    if cut:
        images = {e.image for task in tasks for e in vetted[task, "train"]}
        chosen = validation_images(images, fraction=config.val_fraction, seed=config.seed)
        for task in tasks:
            stay, moved = cut_validation(vetted[task, "train"], chosen)
            vetted[task, "train"], vetted[task, "val"] = stay, moved
    limits = {
        "train": config.train_per_task,
        "val": config.val_per_task,
        "test": config.test_per_task,
    }
    return {
        (task, split): choose(
            vetted[task, split],
            limit=limits[split],
            balance=config.balance_answers,
            seed=config.seed,
        )
        for task in tasks
        for split in splits
    }


def _vet(examples: list[Example], *, report: Problems) -> list[Example]:
    """Return the questions whose id is new and whose image is a path below the root."""
    seen: set[str] = set()
    good = []
    for example in examples:
        what = None
        if example.question_id in seen:
            what = f"duplicate id in {example.task}/{example.split}"
        elif problem := path_problem(example.image):
            what = f"image {example.image} {problem}"
        if what:
            report.add(f"question {example.question_id}", what, record=asdict(example))
            continue
        seen.add(example.question_id)
        good.append(example)
    return good


def _check_images(chosen: Chosen, root: Path, *, report: Problems) -> Mapping[str, bytes]:
    """Decode every image; questions about bad ones are reported and removed from `chosen`.

    Returns:
        A hash of the pixels of each good image.
    """
    images = list(dict.fromkeys(e.image for examples in chosen.values() for e in examples))
    digests: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        checks = pool.map(lambda image: check_image(root, image), images)
        pairs = zip(images, checks, strict=True)
        for image, check in track(pairs, label="images", total=len(images)):
            if check.problem is None:
                digests[image] = check.digest
            else:
                problems[image] = check.problem
    finally:  # an interrupt must not wait for images that nobody will look at
        pool.shutdown(cancel_futures=True)
    if problems:
        for key, examples in chosen.items():
            for example in examples:
                if example.image in problems:
                    what = problems[example.image]
                    report.add(f"question {example.question_id}", what, record=asdict(example))
            chosen[key] = [e for e in examples if e.image not in problems]
    return digests


def _refuse_empty(config: Data, chosen: Chosen, *, tasks: tuple[str, ...]) -> list[str]:
    """Raise for tasks and splits without questions; return warnings for validation nobody named.

    Raises:
        DataError: A task has no question in a split that was asked for, or there is no task.
    """
    empty = [key for key, examples in chosen.items() if not examples]
    optional = [key for key in empty if key[1] == "val" and config.splits is None]
    missing = [key for key in empty if key not in optional]
    if missing or not tasks:
        there = [task for task in tasks if all((task, s) not in missing for s in ("train", "test"))]
        choice = f"data.tasks={','.join(there)}" if there else "data.splits=SPLITS"
        raise DataError(
            "no questions were found for what was asked",
            problems=[f"{task}/{split}: no questions" for task, split in missing],
            hint=f"choose what there is with data.tasks and data.splits, such as {choice}",
        )
    return [
        f"{task} has no val questions: none were in the source or in the cut"
        for task, _ in optional
    ]


def _leakage_warnings(leakage: Mapping[str, int | None]) -> list[str]:
    words = {
        "test_images_in_train": "test images are training images too",
        "test_images_in_val": "test images are validation images too",
        "test_pictures_in_train": "test pictures equal a training picture pixel for pixel",
    }
    return [f"{count:,} {words[name]}" for name, count in leakage.items() if count]

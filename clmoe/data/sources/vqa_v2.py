"""VQA v2 (Goyal et al., 2017) from its official files, in the ten tasks of VQACL.

With the Karpathy split (`dataset_coco.json`), train is its train and restval images, val and test
are its own. Without it, train is train2014, test is val2014, and validation is cut from train.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from sys import intern
from typing import Any

from clmoe.data.checks import Problems, require_paths
from clmoe.data.example import Example, most_frequent_answer
from clmoe.data.question_types import QuestionTypes, load_question_types
from clmoe.data.sources.reading import (
    BadRecordError,
    answer_list,
    data_root,
    image_root,
    integer,
    list_in,
    mapping,
    optional,
    read_json,
    select_tasks,
    splits_to_read,
    text,
)
from clmoe.data.sources.registry import LoadedSource
from clmoe.events import Note, emit, track
from clmoe.recipe.schema import Data

SUFFIX = "Answer the question using a single word or phrase."
"""LLaVA's instruction for short answers."""

QUESTIONS = "v2_OpenEnded_mscoco_{half}2014_questions.json"
ANNOTATIONS = "v2_mscoco_{half}2014_annotations.json"
KARPATHY = "dataset_coco.json"
EXPECTED = (
    "data.root must hold v2_OpenEnded_mscoco_{train,val}2014_questions.json and"
    " v2_mscoco_{train,val}2014_annotations.json (visualqa.org), optionally dataset_coco.json;"
    " data.images (or data.root) the folders train2014 and val2014; data.splits and"
    " data.check_images=false do with less"
)
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
OWN_SPLITS = {"train": "train", "val": "test"}

SplitOf = Callable[[int], str]


class VqaV2Source:
    """The official question and annotation files of VQA v2."""

    name = "vqa_v2"
    suffix = SUFFIX

    @property
    def default_order(self) -> tuple[str, ...]:
        """The ten tasks, recognition first and causal last."""
        return load_question_types().order

    def required_files(self, config: Data) -> list[Path]:
        """Return the question and annotation files of the splits asked for, and the split file."""
        root = data_root(config, source=self.name)
        split_file = _karpathy(config, root)
        patterns = (QUESTIONS, ANNOTATIONS)
        halves = _halves(config, karpathy=split_file is not None)
        files = [root / pattern.format(half=half) for half in halves for pattern in patterns]
        if config.question_types is not None:
            files.append(Path(config.question_types))
        return [*files, split_file] if split_file is not None else files

    def load(self, config: Data, *, workspace: Path, report: Problems) -> LoadedSource:
        """Read the questions of the splits asked for; see `Source.load`."""
        root = data_root(config, source=self.name)
        images = image_root(config, root)
        split_file = _karpathy(config, root)
        halves = _halves(config, karpathy=split_file is not None)
        folders = [images / f"{half}2014" for half in halves] if config.check_images else []
        require_paths(self.name, [*self.required_files(config), *folders], expected=EXPECTED)
        types = load_question_types(config.question_types and Path(config.question_types))
        select_tasks(config.tasks, types.order)
        karpathy = None if split_file is None else _read_karpathy(split_file, report=report)
        if karpathy is None:
            emit(
                Note(
                    f"{KARPATHY} is absent: train is train2014, test is val2014,"
                    " and val is cut from train"
                )
            )
        examples: dict[tuple[str, str], list[Example]] = {}
        excluded: Counter[str] = Counter()
        for half in halves:
            _read_half(
                root,
                half=half,
                types=types,
                split_of=_split_of(half, karpathy),
                examples=examples,
                excluded=excluded,
                report=report,
            )
        return LoadedSource(
            examples=examples,
            image_root=images,
            order=types.order,
            has_validation=split_file is not None,
            statistics={"questions_in_no_task": dict(sorted(excluded.items()))},
        )


def coco_image(half: str, image_id: int) -> str:
    """Return the official path of a COCO 2014 picture below the image folder."""
    return f"{half}2014/COCO_{half}2014_{image_id:012d}.jpg"


def _karpathy(config: Data, root: Path) -> Path | None:
    """Return the split file the recipe names, or the one in `root`, or None."""
    if config.karpathy is not None:
        return Path(config.karpathy)
    path = root / KARPATHY
    return path if path.exists() else None


def _halves(config: Data, *, karpathy: bool) -> tuple[str, ...]:
    """Return which of COCO's halves, train2014 and val2014, hold the splits asked for."""
    splits = splits_to_read(config.splits, has_validation=karpathy)
    if karpathy:
        return ("train", "val") if "train" in splits else ("val",)
    return tuple(half for half, split in OWN_SPLITS.items() if split in splits)


def _read_karpathy(path: Path, *, report: Problems) -> dict[int, str]:
    """Return our split of each COCO image id, as the split file has it."""

    def drop_captions(parsed: dict[str, Any]) -> dict[str, Any] | None:
        return None if "tokens" in parsed else parsed

    content = read_json(path, report=report, object_hook=drop_captions)
    splits: dict[int, str] = {}
    if content is None:
        return splits
    for position, entry in enumerate(list_in(content, path=path, key="images", report=report)):
        try:
            record = mapping(entry)
            name = text(record, "split")
            if name not in KARPATHY_SPLITS:
                raise BadRecordError(f"'split' is '{name}', not train, restval, val or test")
            splits[integer(record, "cocoid")] = KARPATHY_SPLITS[name]
        except BadRecordError as problem:
            report.add(f"{path}: images[{position}]", str(problem), record=entry)
    return splits


def _split_of(half: str, karpathy: dict[int, str] | None) -> SplitOf:
    if karpathy is None:
        return lambda image_id: OWN_SPLITS[half]

    def look_up(image_id: int) -> str:
        if image_id not in karpathy:
            raise BadRecordError(f"image {image_id} is not in the split file")
        return karpathy[image_id]

    return look_up


def _compact(parsed: dict[str, Any]) -> Any:
    """Shrink one of the ten answers to its text, shared between all equal answers.

    The answers are nine tenths of the parsed objects; without this they take gigabytes.
    """
    answer = parsed.get("answer")
    return intern(answer) if type(answer) is str and "question_id" not in parsed else parsed


def _read_half(
    root: Path,
    *,
    half: str,
    types: QuestionTypes,
    split_of: SplitOf,
    examples: dict[tuple[str, str], list[Example]],
    excluded: Counter[str],
    report: Problems,
) -> None:
    """Join the questions of train2014 or val2014 with their annotations, into `examples`."""
    annotations = _read_annotations(root / ANNOTATIONS.format(half=half), report=report)
    path = root / QUESTIONS.format(half=half)
    content = read_json(path, report=report)
    if content is None or annotations is None:
        return
    questions = list_in(content, path=path, key="questions", report=report)
    for position, entry in enumerate(track(questions, label=f"questions of {half}2014")):
        where = f"{path}: questions[{position}]"
        try:
            record = mapping(entry)
            question_id = integer(record, "question_id")
            where = f"question {question_id}"
            if question_id not in annotations:
                raise BadRecordError(f"has no annotation in {ANNOTATIONS.format(half=half)}")
            annotation = annotations[question_id]
            image_id = integer(record, "image_id")
            if annotation.get("image_id", image_id) != image_id:
                other = annotation["image_id"]
                raise BadRecordError(f"is about image {image_id}, its annotation about {other}")
            question = text(record, "question")
            task, kind = _task_of(question, annotation, types)
            if task is None:
                excluded[kind] += 1
                continue
            split = split_of(image_id)
            example = Example(
                question_id=str(question_id),
                task=task,
                split=split,
                image=coco_image(half, image_id),
                question=question,
                answer=_answer(annotation),
                answers=answer_list(annotation, "answers"),
                kind=kind,
            )
        except BadRecordError as problem:
            report.add(where, str(problem), record=entry)
            continue
        examples.setdefault((task, split), []).append(example)


def _read_annotations(path: Path, *, report: Problems) -> dict[int, dict[str, Any]] | None:
    """Return the annotations by question id; None when the file cannot be parsed."""
    emit(Note(f"reading {path.name} ({path.stat().st_size / 1e6:,.0f} MB)"))
    content = read_json(path, report=report, object_hook=_compact)
    if content is None:
        return None
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(list_in(content, path=path, key="annotations", report=report)):
        try:
            record = mapping(entry)
            question_id = integer(record, "question_id")
        except BadRecordError as problem:
            report.add(f"{path}: annotations[{position}]", str(problem), record=entry)
            continue
        if question_id in found:
            report.add(f"question {question_id}", "has two annotations", record=entry)
            continue
        found[question_id] = record
    return found


def _task_of(
    question: str, annotation: dict[str, Any], types: QuestionTypes
) -> tuple[str | None, str]:
    official = optional(annotation, "question_type", text)
    try:
        return types.task_of(question, official)
    except KeyError as problem:
        raise BadRecordError(problem.args[0]) from problem


def _answer(annotation: dict[str, Any]) -> str:
    """Return the official single answer, or derive it from the ten where it is absent."""
    if annotation.get("multiple_choice_answer") is not None:
        return text(annotation, "multiple_choice_answer")
    try:
        return most_frequent_answer(answer_list(annotation, "answers"))
    except ValueError as problem:
        raise BadRecordError(str(problem)) from problem

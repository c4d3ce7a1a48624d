"""`hf:NAME`: a data set of the Hugging Face Hub, or a local folder that `datasets` can load.

`data.columns` maps our names (`question`, `answer`, `image`, `task`, and where there are any
`answers`, `question_id`, `group`, `kind`) to the columns of the data set; a name that is not
mapped means the column of the same name. Pictures inside the data set are stored once each under
`images/` by the hash of their bytes; a column of strings is a path below `data.images`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from clmoe.data.checks import Problems, did_you_mean
from clmoe.data.example import SPLITS, Example
from clmoe.data.sources.reading import (
    BadRecordError,
    answer_list,
    identifier,
    optional,
    relative_path,
    task_name,
    text,
)
from clmoe.data.sources.registry import LoadedSource
from clmoe.errors import DataError, UsageError
from clmoe.events import track
from clmoe.recipe.schema import Data

NEEDED = ("question", "answer", "image", "task")
OPTIONAL = ("answers", "question_id", "group", "kind")
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "dev": "val", "test": "test"}


class HubSource:
    """One data set, loaded through `datasets`."""

    suffix = ""
    default_order = ()

    def __init__(self, dataset: str) -> None:
        """Take the data set's name on the Hub, or the path of a local folder."""
        self._dataset = dataset
        self.name = f"hf:{dataset}"

    def required_files(self, config: Data) -> list[Path]:
        """Return the files of a local folder; a name on the Hub has none here."""
        folder = Path(self._dataset)
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def load(self, config: Data, *, workspace: Path, report: Problems) -> LoadedSource:
        """Read every row of the splits asked for; see `Source.load`."""
        found = _load(self._dataset)
        tables = {SPLIT_NAMES[name]: table for name, table in found.items() if name in SPLIT_NAMES}
        if not tables:
            raise DataError(
                f"{self.name} has no split train, validation or test, but: {', '.join(found)}"
            )
        examples: dict[tuple[str, str], list[Example]] = {}
        stored = False
        for split in (split for split in SPLITS if split in tables):
            rows = _Rows.of(tables[split], config.columns, name=self.name)
            stored = rows.pictures
            for position, row in enumerate(track(rows, label=f"rows of {split}")):
                try:
                    image = (
                        _store(row["image"], workspace) if stored else relative_path(row, "image")
                    )
                    example = _example(row, image, split=split, position=position)
                except BadRecordError as problem:
                    record = {key: value for key, value in row.items() if key != "image"}
                    report.add(f"{self.name}/{split}:{position + 1}", str(problem), record=record)
                    continue
                examples.setdefault((example.task, split), []).append(example)
        if not stored and config.images is None:
            raise UsageError(
                f"the pictures of {self.name} are paths: set data.images to their folder"
            )
        return LoadedSource(
            examples=examples,
            image_root=workspace if stored else Path(str(config.images)),
            order=tuple(dict.fromkeys(task for task, _ in examples)),
            has_validation="val" in tables,
        )


@dataclass(frozen=True)
class _Rows:
    """The rows of one split under our names.

    Attributes:
        table: The columns that are read, under the data set's own names.
        columns: Our name of each field, and its column.
        labels: Names of the classes of fields that the data set stores as numbers.
        pictures: Whether the pictures are in the table; else it has paths.
    """

    table: datasets.Dataset
    columns: Mapping[str, str]
    labels: Mapping[str, Sequence[str]]
    pictures: bool

    @classmethod
    def of(cls, table: datasets.Dataset, columns: Mapping[str, str], *, name: str) -> _Rows:
        """Find the columns of `table`.

        Raises:
            UsageError: `columns` names a field that we do not have, or a column is not there.
        """
        mapped = _find_columns(table.column_names, columns, name=name)
        table = table.select_columns(list(dict.fromkeys(mapped.values())))
        features = table.features
        labels = {
            key: features[column].names
            for key, column in mapped.items()
            if isinstance(features[column], datasets.ClassLabel)
        }
        pictures = isinstance(features[mapped["image"]], datasets.Image)
        if pictures:
            table = table.cast_column(mapped["image"], datasets.Image(decode=False))
        return cls(table, mapped, labels, pictures)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.table:
            ours = {key: row[column] for key, column in self.columns.items()}
            for key, names in self.labels.items():
                ours[key] = None if ours[key] is None else names[ours[key]]
            yield ours


def _find_columns(
    present: Sequence[str], columns: Mapping[str, str], *, name: str
) -> dict[str, str]:
    """Return the column of each of our fields that the data set has."""
    ours = [*NEEDED, *OPTIONAL]
    for key in columns:
        if key not in ours:
            raise UsageError(
                f"data.columns: there is no field '{key}'{did_you_mean(key, ours)}",
                hint=f"fields: {', '.join(ours)}",
            )
    mapped = {key: columns.get(key, key) for key in ours}
    missing = [
        key for key in ours if (key in NEEDED or key in columns) and mapped[key] not in present
    ]
    if missing:
        raise UsageError(
            f"{name} has no column for {', '.join(missing)}; its columns: {', '.join(present)}",
            hint=f"data.columns='{{{missing[0]}: COLUMN}}'",
        )
    return {key: column for key, column in mapped.items() if column in present}


def _load(name: str) -> Mapping[str, datasets.Dataset]:
    """Load a data set with all its splits, or say how to fetch it."""
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise DataError(f"there is no folder {name}")
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(name)
    except Exception as error:  # the network, the Hub and every file format have their own
        folder = Path(name).name
        raise DataError(
            f"the data set {name} cannot be loaded: {' '.join(str(error).split())}",
            hint="where there is a network, fetch it with `hf download --repo-type dataset"
            f" {name} --local-dir {folder}`, then use --source hf:./{folder}",
        ) from error
    finally:
        if not silent:
            datasets.enable_progress_bars()
    return loaded


def _store(picture: Any, workspace: Path) -> str:
    """Write the bytes of a picture once, and return the path below `workspace`."""
    content = None
    if isinstance(picture, dict):
        content = picture.get("bytes")
        if content is None and picture.get("path"):
            content = _bytes_of(Path(picture["path"]))
    if not content:
        raise BadRecordError("has no picture")
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = (image.format or "png").lower()
    except (OSError, Image.DecompressionBombError) as error:
        raise BadRecordError("the picture is not an image") from error
    relative = f"images/{hashlib.sha256(content).hexdigest()[:24]}.{kind}"
    target = workspace / relative
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return relative


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRecordError(f"picture {path} cannot be read ({error.strerror})") from error


def _example(row: dict[str, Any], image: str, *, split: str, position: int) -> Example:
    return Example(
        question_id=optional(row, "question_id", identifier) or f"{split}-{position}",
        task=task_name(row, "task"),
        split=split,
        image=image,
        question=text(row, "question"),
        answer=text(row, "answer"),
        answers=answer_list(row, "answers"),
        group=optional(row, "group", identifier),
        kind=optional(row, "kind", text),
    )

"""What the sources share: JSON files, typed fields, and the folder that the recipe points at."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from clmoe.data.checks import Problems, did_you_mean, type_name
from clmoe.data.example import SPLITS, TASK_NAME
from clmoe.errors import UsageError
from clmoe.recipe.schema import Data


class BadRecordError(Exception):
    """One record cannot be used; the message says why. Caught by the source, never shown raw."""


def data_root(config: Data, *, source: str) -> Path:
    """Return `data.root`, which every source of files needs.

    Raises:
        UsageError: The recipe does not set it.
    """
    if config.root is None:
        raise UsageError(
            f"the source {source} needs data.root, the path of its files",
            hint=f"clmoe prepare --source {source} data.root=DIR",
        )
    return Path(config.root)


def image_root(config: Data, root: Path) -> Path:
    """Return `data.images`, or `root` where it is not set."""
    return root if config.images is None else Path(config.images)


def select_tasks(
    wanted: Sequence[str] | None, known: Sequence[str], *, key: str = "data.tasks"
) -> tuple[str, ...]:
    """Return the tasks that a recipe's key names, in the order of `known`; None means all.

    Raises:
        UsageError: A task that is not known, with the nearest name.
    """
    if wanted is None:
        return tuple(known)
    for task in wanted:
        if task not in known:
            raise UsageError(
                f"{key}: there is no task '{task}'{did_you_mean(task, known)}",
                hint=f"tasks of this source: {', '.join(known)}",
            )
    return tuple(task for task in known if task in wanted)


def splits_to_read(wanted: Sequence[str] | None, *, has_validation: bool) -> tuple[str, ...]:
    """Return the splits of a source's own files that the wanted splits are made from.

    Where a source has no validation split, one is cut from train, so asking for it reads train.
    """
    needed = set(SPLITS if wanted is None else wanted)
    if "val" in needed and not has_validation:
        needed = (needed - {"val"}) | {"train"}
    return tuple(split for split in SPLITS if split in needed)


def read_json(
    path: Path, *, report: Problems, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Parse a JSON file, or report why it cannot be parsed and return None.

    Args:
        path: The file; it exists.
        report: Gets a fatal problem with the line and column of a syntax error.
        object_hook: Replaces every parsed object, to keep large files small in memory.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except json.JSONDecodeError as error:
        what = f"not valid JSON: {error.msg} at column {error.colno}"
        report.add(f"{path}:{error.lineno}", what, fatal=True)
    except UnicodeDecodeError as error:
        report.add(str(path), f"not UTF-8 text ({error.reason})", fatal=True)
    except OSError as error:
        report.add(str(path), f"cannot be read ({error.strerror})", fatal=True)
    return None


def read_list(path: Path, *, report: Problems) -> list[Any]:
    """Parse a JSON file that holds a list; anything else is reported, and the list is empty."""
    content = read_json(path, report=report)
    return [] if content is None else list_in(content, path=path, key=None, report=report)


def list_in(content: Any, *, path: Path, key: str | None, report: Problems) -> list[Any]:
    """Return the list that `content` is, or has under `key`; else report and return an empty one.

    Args:
        content: A parsed file.
        path: The file, for the report.
        key: Where the list is in an object; None when the whole file is the list.
        report: Gets a fatal problem.
    """
    where = "the file"
    if key is not None:
        if not isinstance(content, dict):
            what = f"must hold an object with '{key}', holds {type_name(content)}"
            report.add(str(path), what, fatal=True)
            return []
        content, where = content.get(key), f"'{key}'"
    if not isinstance(content, list):
        report.add(str(path), f"{where} must be a list, is {type_name(content)}", fatal=True)
        return []
    return content


def mapping(record: Any) -> dict[str, Any]:
    """Return `record` if it is an object, else raise `BadRecordError`."""
    if not isinstance(record, dict):
        raise BadRecordError(f"must be an object, is {type_name(record)}")
    return record


def text(record: dict[str, Any], key: str) -> str:
    """Return the string under `key` without surrounding blanks; it may not be empty."""
    value = record.get(key)
    if not isinstance(value, str):
        raise BadRecordError(_wrong(record, key, "a string"))
    value = value.strip()
    if not value:
        raise BadRecordError(f"'{key}' is empty")
    return _writable(value, key)


def identifier(record: dict[str, Any], key: str) -> str:
    """Return the id under `key`, an integer or a string, as text."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadRecordError(_wrong(record, key, "an integer or a string"))
    return _writable(str(value), key)


def integer(record: dict[str, Any], key: str) -> int:
    """Return the integer under `key`."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRecordError(_wrong(record, key, "an integer"))
    return value


def task_name(record: dict[str, Any], key: str) -> str:
    """Return the task under `key`, which must be fit to name a folder."""
    name = text(record, key)
    if not TASK_NAME.fullmatch(name):
        raise BadRecordError(f"task '{name}' must consist of letters, digits, '-' and '_'")
    return name


def relative_path(record: dict[str, Any], key: str) -> str:
    """Return the path under `key` in one spelling: `./a//b.png` is `a/b.png`."""
    return str(PurePosixPath(text(record, key)))


def optional(
    record: dict[str, Any], key: str, read: Callable[[dict[str, Any], str], str]
) -> str | None:
    """Return what `read` makes of `key`, or None where it is absent or null."""
    return None if record.get(key) is None else read(record, key)


def answer_list(record: dict[str, Any], key: str) -> tuple[str, ...]:
    """Return the human answers under `key`: strings, or objects with an `answer`; () if absent."""
    value = record.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRecordError(_wrong(record, key, "a list"))
    answers = [item.get("answer") if isinstance(item, dict) else item for item in value]
    texts = tuple(_writable(answer, key) for answer in answers if isinstance(answer, str))
    if len(texts) < len(answers):
        raise BadRecordError(f"'{key}' must hold strings or objects with a string 'answer'")
    return texts


def _wrong(record: dict[str, Any], key: str, expected: str) -> str:
    if key not in record:
        return f"has no '{key}'"
    return f"'{key}' must be {expected}, is {type_name(record[key])}"


def _writable(value: str, key: str) -> str:
    """Return `value` unless it has half of a surrogate pair, which JSON allows and UTF-8 not."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRecordError(f"'{key}' is not Unicode text: {ascii(value)}") from error
    return value

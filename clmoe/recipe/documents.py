"""Recipe files: where the shipped ones are, YAML without duplicate keys, and `include`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clmoe.errors import UsageError, did_you_mean
from clmoe.recipe.explain import unknown_key
from clmoe.recipe.keys import keys
from clmoe.recipe.schema import METHOD_NAMES, SECTIONS, flatten

PATH_KEYS = ("data.root", "data.images", "data.question_types", "data.karpathy")


@dataclass(frozen=True, slots=True)
class Layer:
    """One document of a recipe: its keys by dotted name, and its settings for each method."""

    origin: str
    values: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Documents:
    """What reading a recipe gave: layers, the earlier overridden by the later, and its text.

    `verbatim` is False where the text alone, in another folder, would not say the same.
    """

    layers: list[Layer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verbatim: bool = True


def shipped_folder() -> Path:
    """The folder of the shipped recipes: in the installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(source: str | Path, *, beside: Path | None = None) -> Path:
    """The file of a shipped recipe's name, or of a path (relative to `beside` or the folder).

    Raises:
        UsageError: There is neither.
    """
    text = str(source)
    shipped = shipped_folder() / f"{text}.yaml"
    is_name = isinstance(source, str) and not text.endswith((".yaml", ".yml"))
    if is_name and not Path(text).is_absolute() and ".." not in text and shipped.is_file():
        return shipped
    path = (beside or Path.cwd()) / Path(text).expanduser()
    if path.is_file():
        return path
    names = sorted(file.stem for file in shipped_folder().glob("*.yaml"))
    raise UsageError(
        f"no recipe {text!r}: neither a shipped recipe ({', '.join(names)}) nor a file"
        f"{did_you_mean(text, names)}",
        hint="clmoe recipes list",
    )


def read_file(path: Path, *, into: Documents, chain: tuple[Path, ...] = ()) -> None:
    """Adds the layers of a recipe file to `into`, those that it includes first.

    Raises:
        UsageError: The file cannot be read, is not YAML, or includes itself.
    """
    path = path.resolve()
    if path in chain:
        raise UsageError(
            "recipes include each other: " + " -> ".join(str(p) for p in (*chain, path))
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    read_text(text, origin=str(path), folder=path.parent, into=into, chain=(*chain, path))


def read_text(
    text: str, *, origin: str, folder: Path, into: Documents, chain: tuple[Path, ...] = ()
) -> None:
    """Adds the layers of a recipe's text to `into`; several YAML documents are several layers.

    Raises:
        UsageError: The text is not YAML, or an included recipe cannot be read.
    """
    try:
        documents = list(yaml.load_all(text, Loader=StrictLoader))
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not valid YAML: {error}") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            into.problems.append(f"{origin}: is not a mapping of keys to values")
            continue
        includes = document.pop("include", [])
        into.verbatim &= not includes
        for name in [includes] if isinstance(includes, str) else includes:
            read_file(find_recipe(str(name), beside=folder), into=into, chain=chain)
        into.layers.append(_layer(document, origin=origin, folder=folder, into=into))


def read_override(text: str, *, into: Documents) -> tuple[str, Any] | None:
    """The key and value of `KEY=VALUE`, the value read as YAML; problems go to `into`."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals:
        near = did_you_mean(key, keys()) if key not in keys() else ""
        into.problems.append(f"override {text!r} is not KEY=VALUE{near}")
        return None
    if key not in keys():
        into.problems.append(unknown_key(key))
        return None
    try:
        value = yaml.load(raw, Loader=StrictLoader) if raw.strip() else ""
    except yaml.YAMLError:
        value = raw
    is_text = any(word in keys()[key].type for word in ("text", "path"))
    if is_text and not isinstance(value, str | None):
        value = raw.strip()
    return key, absolute(key, value, folder=Path.cwd())


def absolute(key: str, value: Any, *, folder: Path) -> Any:
    """A relative path becomes absolute, so that it means the same from every folder.

    `base.model` is a path only where such a folder exists, else the name of a model on the hub.
    """
    if not isinstance(value, str) or not value:
        return value
    path = folder / Path(value).expanduser()
    if key in PATH_KEYS or (key == "base.model" and value != "tiny" and path.is_dir()):
        return str(path.resolve())
    return value


def _layer(document: dict[Any, Any], *, origin: str, folder: Path, into: Documents) -> Layer:
    short_origin = Path(origin).name
    methods: dict[str, dict[str, Any]] = {}
    blocks = document.pop("methods", None) or {}
    if not isinstance(blocks, dict):
        into.problems.append(f"{short_origin}: methods is not a mapping of method to keys")
        blocks = {}
    for method, block in blocks.items():
        if method not in METHOD_NAMES:
            into.problems.append(
                f"{short_origin}: methods.{method} is not a method"
                f"{did_you_mean(str(method), METHOD_NAMES)}"
            )
        elif not isinstance(block, dict):
            into.problems.append(f"{short_origin}: methods.{method} is not a mapping")
        else:
            methods[method] = _known(block, origin=short_origin, folder=folder, into=into)
            if "method.name" in methods[method]:
                into.problems.append(f"{short_origin}: methods.{method} cannot set method.name")
    values = _known(document, origin=short_origin, folder=folder, into=into)
    return Layer(origin=origin, values=values, methods=methods)


def _known(
    mapping: Mapping[Any, Any], *, origin: str, folder: Path, into: Documents
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    nested = {str(key): {} if key in SECTIONS and value is None else value
              for key, value in mapping.items()}  # fmt: skip
    for key, value in flatten(nested).items():
        if key in SECTIONS:
            into.problems.append(f"{origin}: {key} is a section: write its keys below it")
        elif key not in keys():
            into.problems.append(f"{origin}: {unknown_key(key)}")
        else:
            values[key] = absolute(key, value, folder=folder)
            into.verbatim &= bool(values[key] == value)
    return values


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; refuses a key that it has twice."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value} is written twice", key_node.start_mark
                )
            seen.add(str(key_node.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping

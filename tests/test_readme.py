"""What the README says is true: the code runs, the table names real functions, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from clmoe.recipe.keys import keys
from clmoe.recipe.schema import METHOD_NAMES, SECTIONS, Recipe


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_library_in_fifteen_lines(readme: str, tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *replies = done.stdout.splitlines()
    assert 0 <= float(first) <= 100
    assert len(replies) == 2
    assert all(reply.split()[-1] in ("color", "count") for reply in replies)


def find(path: str) -> Any:
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"{path} does not exist")


def test_equation_table_names_real_functions_with_that_equation(readme: str) -> None:
    rows = re.findall(r"^\| Eq (\d+) \| (.+?) \| `(clmoe\.[\w.]+)` \|$", readme, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(3, 13))
    for number, _, path in rows:
        found = find(path)
        module = import_module(found.__module__).__doc__ or ""
        texts = f"{module}\n{found.__doc__}"
        named = re.search(rf"\b(Eq|Equations?) (\d+ (to|and|or) |\d+, )*{number}\b", texts)
        within = re.search(r"Equations (\d+) to (\d+)", texts)
        assert named or (within and int(within[1]) <= int(number) <= int(within[2])), path


def test_open_points_are_keys_with_that_default(readme: str) -> None:
    rows = re.findall(r"^\| [^|`]+ \| `(\w+\.\w+)` \| `([\w-]+)`", readme, flags=re.MULTILINE)
    assert len(rows) == 10
    for key, default in rows:
        assert key in keys()
        assert Recipe().get(key) == default


def test_commands_of_the_table_exist(readme: str) -> None:
    table = readme.split("| command | what it does |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    assert sorted(named) == sorted(
        "prepare train route merge index eval report run study compare export import audit "
        "doctor bench status use clean recipes".split()
    )


def test_the_methods_of_the_table_are_all_there_are(readme: str) -> None:
    table = readme.split("| method | what it does |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(METHOD_NAMES)


def test_keys_that_the_readme_mentions_exist(readme: str) -> None:
    sections = "|".join(SECTIONS)
    for key in re.findall(rf"\b((?:{sections})\.[a-z_]+)=", readme):
        assert key in keys(), key

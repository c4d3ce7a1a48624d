"""The wheel holds everything, the constraints resolve, and the small files say what is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PINNED = re.compile(r"([a-z0-9][a-z0-9-]*)==([0-9][0-9a-z.]*)")
TESTED_TOGETHER = ("dev", "serve")
COMMAND_LIMIT = 300


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    loaded = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, Any] = loaded["project"]
    return table


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, Version]:
    found = {}
    for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        match = PINNED.fullmatch(line)
        assert match, f"not name==version: {line}"
        found[match[1]] = Version(match[2])
    return found


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=repository,
        capture_output=True,
        check=True,
        timeout=COMMAND_LIMIT,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def files_of(folder: Path) -> set[str]:
    """Every file of a source folder, relative to its parent."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


class TestWheel:
    """What `pip install clmoe` brings."""

    def test_the_whole_package_and_nothing_else(
        self, wheel: zipfile.ZipFile, repository: Path
    ) -> None:
        wanted = files_of(repository / "clmoe") | files_of(repository / "clmoe_cli")
        wanted |= {f"clmoe/_{name}" for name in files_of(repository / "recipes")}
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert held == wanted

    @pytest.mark.parametrize(
        "name",
        [
            "clmoe/_recipes/shapes.yaml",
            "clmoe/runs/__init__.py",
            "clmoe/assets/tiny_llava/model.safetensors",
            "clmoe/data/question_types.json",
            "clmoe/reporting/paper_tables.json",
        ],
    )
    def test_files_that_are_easily_left_out(self, wheel: zipfile.ZipFile, name: str) -> None:
        assert name in wheel.namelist()

    def test_command_and_licence(self, wheel: zipfile.ZipFile) -> None:
        (commands,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
        assert b"clmoe = clmoe_cli.app:main" in wheel.read(commands)
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())

    def test_small_enough_for_a_registry(self, wheel: zipfile.ZipFile) -> None:
        assert wheel.filename is not None
        assert Path(wheel.filename).stat().st_size < 20 * 2**20


class TestConstraints:
    """constraints.txt has the tested versions of core, dev and serve."""

    def test_sorted_names_without_platform_packages(self, pins: dict[str, Version]) -> None:
        assert list(pins) == sorted(pins)
        assert not [n for n in pins if n.startswith(("nvidia", "cuda", "triton"))]
        assert pins["torch"] == Version("2.13.0")
        assert pins["pillow"] < Version("13")

    def test_every_requirement_is_pinned_inside_its_range(
        self, project: dict[str, Any], pins: dict[str, Version]
    ) -> None:
        lines = list(project["dependencies"])
        for extra in TESTED_TOGETHER:
            lines += project["optional-dependencies"][extra]
        for requirement in map(Requirement, lines):
            pinned = pins[canonicalize_name(requirement.name)]
            assert pinned in requirement.specifier, f"{requirement} is pinned to {pinned}"

    def test_the_named_extras_are_there(self, project: dict[str, Any]) -> None:
        assert sorted(project["optional-dependencies"]) == [
            "deepspeed", "dev", "flash", "quant", "serve", "trackers", "vlm",
        ]  # fmt: skip

    def test_older_torch_and_transformers_are_accepted(self, project: dict[str, Any]) -> None:
        ranges = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
        assert "2.11.0" in ranges["torch"]
        assert "5.17.0" in ranges["transformers"]

    @pytest.mark.slow
    def test_they_resolve_together(
        self, repository: Path, pins: dict[str, Version], tmp_path: Path
    ) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
        probe = subprocess.run(
            [*pip, "--no-deps", "--ignore-installed", "iniconfig"],
            capture_output=True,
            check=False,
            timeout=COMMAND_LIMIT,
        )
        if probe.returncode:
            pytest.skip("the package registry does not answer")
        report = tmp_path / "report.json"
        wanted = f"{repository}[{','.join(TESTED_TOGETHER)}]"
        options = ["--no-build-isolation", "-c", "constraints.txt", "--report", str(report)]
        ran = subprocess.run(
            [*pip, *options, "-e", wanted],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_LIMIT,
        )
        assert ran.returncode == 0, ran.stderr
        for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
            name = canonicalize_name(item["metadata"]["name"])
            if name in pins:
                assert Version(item["metadata"]["version"]).public == pins[name].public
            else:
                assert name == "clmoe" or name.startswith(("nvidia", "cuda", "triton")), name


class TestSmallFiles:
    """Makefile, continuous integration, container and hooks."""

    def make(self, repository: Path, *arguments: str) -> str:
        outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the make that runs these tests
        ran = subprocess.run(
            ["make", *arguments],
            cwd=repository,
            env={name: value for name, value in os.environ.items() if name not in outer},
            capture_output=True,
            text=True,
            check=True,
            timeout=COMMAND_LIMIT,
        )
        return ran.stdout

    def test_bare_make_says_what_there_is(self, repository: Path) -> None:
        lines = self.make(repository).splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["make", target] for target in ("demo", "test", "lint", "clean")
        ]

    def test_demo_runs_both_methods_and_prints_both_matrices(self, repository: Path) -> None:
        text = self.make(repository, "-n", "-B", "demo")
        assert "pip install" in text
        assert "-c constraints.txt" in text
        assert "for method in clmoe vanilla" in text
        assert text.index("run shapes --name demo-$method") < text.index(
            "report --run demo-$method"
        )

    def test_ci_runs_make_test(self, repository: Path) -> None:
        script = repository / ".ci" / "run"
        assert script.stat().st_mode & 0o111
        lines = script.read_text(encoding="utf-8").splitlines()
        assert "set -euo pipefail" in lines
        assert "make test" in lines
        assert "-m pytest" in self.make(repository, "-n", "-B", "test")

    def test_the_container_copies_what_exists_and_is_not_root(self, repository: Path) -> None:
        lines = (repository / "Dockerfile").read_text(encoding="utf-8").splitlines()
        copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
        assert copied
        allowed = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
        for name in copied:
            assert (repository / name).exists(), name
            assert f"!{name}" in allowed
        assert 'ENTRYPOINT ["clmoe"]' in lines
        assert "USER clmoe" in lines
        assert "ARG BASE=python:3.11-slim" in lines

    def test_hooks_are_the_tools_of_make_lint(self, repository: Path) -> None:
        hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
        entries = {hook["name"] for repo in hooks["repos"] for hook in repo["hooks"]}
        linted = self.make(repository, "-n", "-B", "lint")
        assert entries == {"ruff check", "ruff format", "mypy"}
        assert all(f"/{entry}" in linted for entry in entries)

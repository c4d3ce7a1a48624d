"""From a workspace to a committed version, so that a kill at any step loses nothing.

Written to `.store/<stage>/.partial-<fp>` on the same disk; bytes synced; the manifest last; then
one rename. Only after that is `current.json` replaced (`clmoe.runs.pointers`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError
from clmoe.runs import atomic
from clmoe.runs.damage import find_damage
from clmoe.runs.environment import environment
from clmoe.runs.freshness import Wanted
from clmoe.runs.hashing import FileRecord, files_below, record_files
from clmoe.runs.journal import now
from clmoe.runs.layout import MANIFEST, Layout
from clmoe.runs.lock import hold
from clmoe.runs.manifest import SCHEMA, Manifest, OutputRecord, read_manifest
from clmoe.runs.plan import STAGE_VERSIONS, Node

_BEGUN = ".begun.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder that a running stage writes to.

    Attributes:
        path: The folder; what an earlier, killed attempt wrote is still there.
        node: The node, located.
        fingerprint: Of the version being made.
        resumed: Whether an earlier attempt at this very version left something.
    """

    path: Path
    node: Node
    fingerprint: str
    resumed: bool
    wanted: Wanted
    started: str
    clock: float
    held: ExitStack


def open_workspace(layout: Layout, node: Node, wanted: Wanted) -> Workspace:
    """Opens or opens again the folder for a version, and holds it against other processes.

    Raises:
        ClmoeError: Another process is making the same version.
    """
    assert wanted.fingerprint is not None
    path = layout.partial(node.stage, wanted.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = layout.partial_lock(node.stage, wanted.fingerprint)
    held = ExitStack()
    held.enter_context(hold(lock, what=f"this version of {node.label}"))
    begun = _read_begun(path / _BEGUN)
    resumed = begun.get("fingerprint") == wanted.fingerprint
    if not resumed:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        begun = {"fingerprint": wanted.fingerprint, "started": now()}
        atomic.write_json(path / _BEGUN, begun)
    (path / MANIFEST).unlink(missing_ok=True)
    return Workspace(
        path=path,
        node=node,
        fingerprint=wanted.fingerprint,
        resumed=resumed,
        wanted=wanted,
        started=begun["started"],
        clock=time.monotonic(),
        held=held,
    )


def commit_workspace(
    layout: Layout,
    workspace: Workspace,
    *,
    part: Mapping[str, Any],
    outputs: Mapping[str, str],
    counts: Mapping[str, Any],
    summary: Mapping[str, Any],
    warnings: Sequence[str],
    device: str | None,
) -> Manifest:
    """Turns a workspace into a version of the store; arguments as for `Run.commit`.

    Raises:
        ClmoeError: An output is not there, or the disk is full; then nothing is current that was
            not before, and the workspace is kept.
    """
    node = workspace.node
    with atomic.disk_errors(node.label):
        atomic.step("commit started")
        records = _record_outputs(workspace, outputs)
        manifest = Manifest(
            schema=SCHEMA,
            stage=node.stage,
            stage_version=STAGE_VERSIONS[node.stage],
            label=node.label,
            fingerprint=workspace.fingerprint,
            recipe=part,
            base=_base(workspace.wanted),
            inputs=workspace.wanted.inputs,
            external=workspace.wanted.external,
            outputs=records,
            counts=counts,
            summary=summary,
            warnings=tuple(warnings),
            seeds={key: value for key, value in part.items() if key.endswith(".seed")},
            started=workspace.started,
            finished=now(),
            seconds=round(time.monotonic() - workspace.clock, 3),
            environment=environment(device=device),
        )
        atomic.sync_files(
            file
            for path in outputs.values()
            for file in files_below(workspace.path / path).values()
        )
        atomic.step("outputs synced")
        atomic.write_json(workspace.path / MANIFEST, manifest.to_json())
        target = layout.version(node.stage, workspace.fingerprint)
        if _is_whole(target):
            shutil.rmtree(workspace.path)  # another run made the same version meanwhile
        else:
            atomic.move_folder(workspace.path, to=target)
            atomic.step("version in place")
            _remove_leftovers(target, manifest)
        atomic.step("leftovers removed")
    workspace.held.close()
    return manifest


def _record_outputs(workspace: Workspace, outputs: Mapping[str, str]) -> dict[str, OutputRecord]:
    """Hashes every file once, however many outputs hold it."""
    known: dict[str, FileRecord] = {}
    records: dict[str, OutputRecord] = {}
    largest_first = sorted(outputs.items(), key=lambda item: len(Path(item[1]).parts))
    for name, relative in largest_first:
        path = workspace.path / relative
        inside = path.resolve().is_relative_to(workspace.path.resolve())
        if not inside or relative in ("", ".") or not path.exists():
            raise ClmoeError(
                f"{workspace.node.label} did not write its output {name!r} ({relative})"
            )
        try:
            places = files_below(path)
        except ValueError as error:
            raise ClmoeError(f"output {name!r} of {workspace.node.label}: {error}") from error
        if places and all(full in known for full in places.values()):
            files = tuple(replace(known[full], path=place) for place, full in places.items())
        else:
            files = record_files(path)
        known.update({places[file.path]: file for file in files})
        records[name] = OutputRecord.of(relative, files)
    return {name: records[name] for name in outputs}


def _base(wanted: Wanted) -> dict[str, str] | None:
    base = wanted.base
    return None if base is None else {"name": base.name, "digest": base.digest}


def _is_whole(folder: Path) -> bool:
    try:
        return not find_damage(folder, read_manifest(folder))
    except (OSError, ValueError):
        return False


def _remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """A version holds its manifest and its outputs; checkpoints and the like go."""
    kept = {str(folder / MANIFEST)}
    for output in manifest.outputs.values():
        root = str(folder / output.path)
        kept |= {root if file.path == "." else f"{root}/{file.path}" for file in output.files}
    for parent, _, names in os.walk(folder, topdown=False):
        for path in {os.path.join(parent, name) for name in names} - kept:
            os.unlink(path)
        if not os.listdir(parent):
            os.rmdir(parent)


def _read_begun(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}

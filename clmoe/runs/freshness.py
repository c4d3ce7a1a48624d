"""fresh, stale, missing or damaged, and why, without running anything.

A node's wanted fingerprint follows from the recipe, the base model and the digests of what its
inputs hold. The rule:

- fresh: `current.json` points at the wanted version, and its files have their sizes;
- damaged: it points at the wanted version, but files are missing or of another size;
- stale: it points at another version, or an input is not known yet (its node must run first);
- missing: it points at nothing.

The store may hold the wanted version of a stale or missing node (an older recipe, another run):
then `stored` is true, adopting it is immediate, and what reads it is judged by its digests. Equal
outputs have equal digests, so an input that was made again with the same result changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from clmoe.recipe.fingerprint import canonical_json, fingerprint
from clmoe.runs.base_identity import BaseIdentity
from clmoe.runs.damage import find_damage
from clmoe.runs.hashing import DigestCache, ExternalRecord
from clmoe.runs.layout import Layout
from clmoe.runs.manifest import InputRecord, Manifest, read_manifest
from clmoe.runs.plan import STAGE_VERSIONS, Node, Plan, Read
from clmoe.runs.reasons import differences

Status: TypeAlias = Literal["fresh", "stale", "missing", "damaged"]
IN_STORE = "the store has this version"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is to be said of a node.

    Attributes:
        node: The node, located.
        status: As the module explains.
        reasons: Why it is not fresh; empty for fresh.
        fingerprint: Of the wanted version, or None while an input is unknown.
        directory: The version that `current.json` points at, whole or not; None for missing.
        stored: Whether the store holds the wanted version, whole.
    """

    node: Node
    status: Status
    reasons: tuple[str, ...]
    fingerprint: str | None
    directory: Path | None
    stored: bool

    @property
    def text(self) -> str:
        """One line: `fresh`, or `stale: train.lr 2e-4 -> 1e-4`."""
        shown = self.reasons[:_SHOWN]
        more = len(self.reasons) - len(shown)
        tail = f"; and {more} more" if more else ""
        return self.status + (f": {'; '.join(shown)}{tail}" if shown else "")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node would be made of now; without a fingerprint while `unknown` inputs remain."""

    fingerprint: str | None
    reads: tuple[Read, ...]
    inputs: tuple[InputRecord, ...]
    external: tuple[ExternalRecord, ...]
    base: BaseIdentity | None
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """What is wanted of a node, its manifest where the store has it, and the one pointed at."""

    wanted: Wanted
    version: Manifest | None
    old: Manifest | None


class Resolver:
    """Looks at the store once and answers for any node; make a new one after a change."""

    def __init__(
        self,
        plan: Plan,
        *,
        layout: Layout,
        current: Mapping[str, str],
        base: Callable[[], BaseIdentity],
        cache: DigestCache,
        external: Mapping[str, str] | None = None,
        rehash: bool = False,
    ) -> None:
        """Looks at nothing yet.

        Args:
            plan: The plan of the run.
            layout: Where the store is.
            current: Label -> fingerprint, as in current.json.
            base: Gives the identity of the base model when first needed.
            cache: Digests of files outside the store.
            external: Path -> sha256 of the files that prepare reads; None: those it read when it
                was last run with this recipe.
            rehash: Look for damage by sha256, not by size alone.
        """
        self._plan = plan
        self._layout = layout
        self._current = current
        self._find_base = base
        self._base: BaseIdentity | None = None
        self._cache = cache
        self._external = external
        self._rehash = rehash
        self._found: dict[str, _Found] = {}
        self._states: dict[str, NodeState] = {}

    def state(self, node: Node) -> NodeState:
        """The state of a located node."""
        if node.label not in self._states:
            self._states[node.label] = self._state(node)
        return self._states[node.label]

    def wanted(self, node: Node) -> Wanted:
        """What a located node would be made of now."""
        return self._find(node).wanted

    def _find(self, node: Node) -> _Found:
        """Needs manifests alone: damage to an input is no matter of its readers' fingerprints."""
        if node.label not in self._found:
            pointed = self._current.get(node.label)
            old = None if pointed is None else self._version(node.stage, pointed)
            wanted = self._want_prepare(node, old) if node.stage == "prepare" else self._want(node)
            version = (
                None
                if wanted.fingerprint is None
                else self._version(node.stage, wanted.fingerprint)
            )
            self._found[node.label] = _Found(wanted, version, old)
        return self._found[node.label]

    def _state(self, node: Node) -> NodeState:
        found = self._find(node)
        pointed, wanted = self._current.get(node.label), found.wanted.fingerprint
        damage: tuple[str, ...] = ()
        if found.version is not None and wanted is not None:
            folder = self._layout.version(node.stage, wanted)
            damage = find_damage(folder, found.version, rehash=self._rehash)
        stored = found.version is not None and not damage
        status, reasons = self._judge(
            node, pointed, found.old, found.wanted, stored=stored, damage=damage
        )
        directory = None if pointed is None else self._layout.version(node.stage, pointed)
        return NodeState(node, status, reasons, wanted, directory, stored)

    def _judge(
        self,
        node: Node,
        pointed: str | None,
        old: Manifest | None,
        wanted: Wanted,
        *,
        stored: bool,
        damage: tuple[str, ...],
    ) -> tuple[Status, tuple[str, ...]]:
        if pointed is None:
            return "missing", (f"never run here; {IN_STORE}" if stored else "never run",)
        if old is None:
            return "damaged", ("its folder or its manifest.json is gone or cannot be read",)
        if pointed == wanted.fingerprint:
            return ("damaged", damage) if damage else ("fresh", ())
        reasons = differences(
            node,
            old,
            part=self._plan.part(node),
            inputs=wanted.inputs,
            base=wanted.base,
            status_of=self._status_of,
        )
        if node.stage == "prepare":
            reasons += self._external_changes(old)
        reasons += [reason for reason in wanted.unknown if reason not in reasons]
        return "stale", (*reasons, IN_STORE) if stored else tuple(reasons)

    def _want(self, node: Node) -> Wanted:
        reads = tuple(self._plan.reads(node, cells=self._fresh_cells(node)))
        inputs: list[InputRecord] = []
        unknown: list[str] = []
        for read in reads:
            above = self._find(read.node)
            if above.version is None:
                unknown.append(f"{read.node.label} is {self.state(read.node).status}")
            elif read.output not in above.version.outputs:
                unknown.append(f"{read.node.label} has no {read.output}")
            else:
                digest = above.version.outputs[read.output].sha256
                inputs.append(InputRecord(read.role, read.node.label, read.output, digest))
        if node.stage == "report" and not reads:
            unknown.append("no cell of the matrix is evaluated")
        base = self._identity() if self._plan.reads_base(node) else None
        found = None if unknown else self._fingerprint(node, inputs=inputs, base=base)
        return Wanted(found, reads, tuple(inputs), (), base, tuple(dict.fromkeys(unknown)))

    def _want_prepare(self, node: Node, old: Manifest | None) -> Wanted:
        """Prepare reads files that only its source can name: those given, or those it had read."""
        if self._external is not None:
            records = tuple(self._cache.external(Path(path)) for path in sorted(self._external))
            given = [[path, self._external[path]] for path in sorted(self._external)]
            found = self._fingerprint(node, external=given)
            return Wanted(found, (), (), records, None, ())
        part = canonical_json(self._plan.part(node))
        candidates = [old] if old is not None else []
        candidates += sorted(
            self._stored_versions("prepare"), key=lambda found: found.finished, reverse=True
        )
        for candidate in candidates:
            if (
                canonical_json(candidate.recipe) == part
                and candidate.stage_version == STAGE_VERSIONS["prepare"]
                and not self._external_changes(candidate)
            ):
                return Wanted(candidate.fingerprint, (), (), candidate.external, None, ())
        return Wanted(None, (), (), (), None, ())

    def _fingerprint(
        self,
        node: Node,
        *,
        inputs: list[InputRecord] | None = None,
        external: list[list[str]] | None = None,
        base: BaseIdentity | None = None,
    ) -> str:
        return fingerprint(
            {
                "stage": node.stage,
                "version": STAGE_VERSIONS[node.stage],
                "recipe": self._plan.part(node),
                "inputs": [[item.role, item.sha256] for item in inputs or []],
                "external": external or [],
                "base": None if base is None else base.digest,
            }
        )

    def _fresh_cells(self, node: Node) -> set[str]:
        if node.stage != "report":
            return set()
        reads = self._plan.reads(node, cells=self._current)
        return {
            read.node.label
            for read in reads
            if self.state(read.node).status == "fresh"
        }  # fmt: skip

    def _status_of(self, label: str) -> str:
        return self._states[label].status if label in self._states else "gone"

    def _identity(self) -> BaseIdentity:
        if self._base is None:
            self._base = self._find_base()
        return self._base

    def _version(self, stage: str, wanted: str) -> Manifest | None:
        try:
            found = read_manifest(self._layout.version(stage, wanted))
        except (OSError, ValueError):
            return None
        return found if found.fingerprint == wanted else None

    def _stored_versions(self, stage: str) -> list[Manifest]:
        folder = self._layout.store / stage
        found = []
        for path in sorted(folder.glob("[!.]*")):
            try:
                found.append(read_manifest(path))
            except (OSError, ValueError):
                continue  # not a version: `clean` lists it
        return found

    def _external_changes(self, manifest: Manifest) -> list[str]:
        changes = []
        for record in manifest.external:
            path = Path(record.path)
            try:
                stat = path.stat()
            except OSError:
                changes.append(f"{record.path} is gone")
                continue
            same = (stat.st_size, stat.st_mtime_ns) == (record.size, record.mtime_ns)
            if not same and self._cache.digest(path) != record.sha256:
                changes.append(f"{record.path} changed")
        return changes

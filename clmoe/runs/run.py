"""A run: a recipe, and which committed version of every stage belongs to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from clmoe.errors import BusyError, InputStageError, UsageError, did_you_mean
from clmoe.events import subscribe
from clmoe.recipe.load import ResolvedRecipe, resolve_text
from clmoe.recipe.schema import Recipe
from clmoe.runs import atomic, journal
from clmoe.runs import plan as plans
from clmoe.runs.atomic import disk_errors, write_text
from clmoe.runs.base_identity import base_identity
from clmoe.runs.commit import Workspace, commit_workspace, open_workspace
from clmoe.runs.freshness import NodeState, Resolver, Wanted
from clmoe.runs.hashing import DigestCache
from clmoe.runs.layout import Layout, RunFiles, update_links
from clmoe.runs.lock import hold
from clmoe.runs.manifest import Manifest, read_manifest
from clmoe.runs.plan import Node, Plan
from clmoe.runs.pointers import Change, point, read_current, read_history

DATA_OUTPUT = "data"
SOURCE_FILE = "source.json"


class Run:
    """One named run in a runs directory; everything it made lies in the store that runs share.

    Methods take nodes with or without a position, e.g. `Node("train", "location")`.
    """

    def __init__(self, runs_dir: Path, *, name: str, resolved: ResolvedRecipe) -> None:
        """Use `create` or `open`."""
        self.runs_dir = runs_dir
        self.name = name
        self.layout = Layout(runs_dir)
        self.path = self.layout.run(name)
        self.files = RunFiles(self.path)
        self._resolved = resolved
        self._cache = DigestCache(self.layout.digests)
        self._workspaces = ExitStack()
        self._locks = 0

    @classmethod
    def create(cls, runs_dir: Path, *, resolved: ResolvedRecipe, name: str) -> Run:
        """Makes a run, or gives an existing one this recipe; its versions and history stay.

        Raises:
            UsageError: The name cannot be that of a run.
            ClmoeError: Another process is writing the run.
        """
        run = cls(runs_dir.absolute(), name=name, resolved=resolved)
        run.path.mkdir(parents=True, exist_ok=True)
        run.layout.store.mkdir(exist_ok=True)
        with run.lock():
            journal.write_recipe(run.files, resolved)
            journal.write_about(run.files, name=name)
        return run

    @classmethod
    def open(cls, runs_dir: Path, name: str | None = None) -> Run:
        """Opens a run by name, or the current one.

        Raises:
            InputStageError: There is no current run.
            UsageError: There is no run of that name.
            ClmoeError: A newer version of the program made it.
        """
        layout = Layout(runs_dir.absolute())
        if name is None:
            if not layout.head.is_file():
                raise InputStageError(f"there is no run in {runs_dir} yet", hint="clmoe prepare")
            name = layout.head.read_text(encoding="utf-8").strip()
        files = RunFiles(layout.run(name))
        names = layout.run_names()
        if name not in names:
            known = f"; the runs are {', '.join(names)}" if names else ""
            raise UsageError(
                f"there is no run {name!r} in {runs_dir}{did_you_mean(name, names)}{known}",
                hint=f"clmoe use {names[0]}" if names else "clmoe prepare",
            )
        journal.check_about(files)
        return cls(layout.root, name=name, resolved=journal.read_recipe(files))

    @property
    def recipe(self) -> Recipe:
        """The recipe, overrides applied."""
        return self._resolved.recipe

    @property
    def overrides(self) -> tuple[str, ...]:
        """KEY=VALUE, one for each key."""
        return self._resolved.overrides

    def make_current(self) -> None:
        """Makes bare commands act on this run."""
        write_text(self.layout.head, f"{self.name}\n")

    def is_current(self) -> bool:
        """Whether bare commands act on this run."""
        head = self.layout.head
        return head.is_file() and head.read_text(encoding="utf-8").strip() == self.name

    def set_overrides(self, overrides: Sequence[str]) -> list[str]:
        """Adds overrides to those of the run, and returns the keys whose value changed.

        Raises:
            UsageError: With every problem; then nothing is written.
        """
        before = self.recipe.flat()
        resolved = self.preview(overrides)._resolved
        with self.lock():
            self._resolved = resolved
            journal.write_recipe(self.files, resolved)
            after = self.recipe.flat()
            changed = [key for key, value in after.items() if value != before[key]]
            journal.log(self.files, "overrides", keys=changed, given=list(overrides))
        return changed

    def preview(self, overrides: Sequence[str]) -> Run:
        """The run as it would be with these overrides; nothing is written.

        Raises:
            UsageError: With every problem.
        """
        resolved = resolve_text(
            self._resolved.source_text,
            origin=str(self.files.source),
            overrides=[*self._resolved.overrides, *overrides],
        )
        return Run(self.runs_dir, name=self.name, resolved=resolved)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run as its one writer and logs events; may be nested in one process.

        Raises:
            ClmoeError: Another process holds it, and which.
        """
        with hold(self.files.lock, what=f"the run {self.name}"):
            self._locks += 1
            try:
                with ExitStack() as stack:
                    if self._locks == 1:
                        stack.enter_context(subscribe(partial(journal.log_event, self.files)))
                    yield
            finally:
                self._locks -= 1
                if self._locks == 0:
                    self._workspaces.close()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The prepared tasks in the order of the recipe.

        Raises:
            InputStageError: Nothing is prepared, or what is prepared is damaged.
            UsageError: `protocol.order` does not name the prepared tasks.
        """
        pointed = read_current(self.files).get("prepare")
        if pointed is None:
            raise InputStageError("nothing is prepared yet", hint=self.command(Node("prepare")))
        source = self.layout.version("prepare", pointed) / DATA_OUTPUT / SOURCE_FILE
        prepared = journal.prepared_tasks(source)
        return plans.order_tasks(prepared, order=self.recipe.protocol.order)

    @property
    def plan(self) -> Plan:
        """The stage graph over the prepared tasks; raises as `tasks` does."""
        return Plan(self.recipe, self.tasks)

    def nodes(self) -> list[Node]:
        """Everything the recipe asks for, in execution order; raises as `tasks` does."""
        return self.plan.nodes()

    def node(self, node: Node) -> Node:
        """The node with its position in the order of tasks; raises as `tasks` does."""
        needs_tasks = node.task is not None and node.position is None
        return self.plan.locate(node) if needs_tasks else node

    def learned(self, node: Node) -> tuple[str, ...]:
        """The tasks learned in a row of the matrix (an eval node) or by a training."""
        return self.plan.learned(self.node(node))

    def theta_before(self, node: Node) -> Path | None:
        """The adapter that a training starts from; None for the first (and joint) training."""
        position = self.node(node).position
        return self._adapter(max((position or 0) - 1, 0))

    def theta_after(self, node: Node) -> Path | None:
        """The adapter of an eval node's row; None for row 0, the base alone."""
        return self._adapter(self.node(node).position or 0)

    def state(self, node: Node, *, external: Mapping[str, str] | None = None) -> NodeState:
        """Whether a node is fresh, and why not; `external` as for `begin`."""
        return self._resolver(node, external=external).state(self.node(node))

    def states(self, *, rehash: bool = False) -> list[NodeState]:
        """The states of all nodes, and of cells that were evaluated without being asked for.

        Args:
            rehash: Look for damage by sha256 (reads every file), not by size alone.
        """
        nodes = self.nodes()
        report = nodes[-1]
        listed = {node.label for node in nodes}
        cells = self.plan.reads(report, cells=read_current(self.files))
        extra = [read.node for read in cells if read.node.label not in listed]
        resolver = self._resolver(report, rehash=rehash)
        return [resolver.state(node) for node in (*nodes[:-1], *extra, report)]

    def verify(self) -> list[NodeState]:
        """`states` with every file hashed again."""
        return self.states(rehash=True)

    def external(self, paths: Sequence[Path]) -> dict[str, str]:
        """Path -> sha256 of the files that prepare reads, for `begin` and `adopt`."""
        return {str(path.absolute()): self._cache.digest(path) for path in paths}

    def begin(self, node: Node, *, external: Mapping[str, str] | None = None) -> Workspace:
        """Gives a stage the folder to write to; the same folder again after a kill.

        Hold `lock` from here to `commit`.

        Args:
            node: What is about to run.
            external: For prepare: path -> sha256 of every file it reads outside the store.

        Raises:
            InputStageError: An input is not fresh; the hint is the command that makes it.
            ClmoeError: The store has this version already, or another process is making it.
        """
        with self.lock():
            located = self.node(node)
            given = dict(external or {}) if located.stage == "prepare" else None
            resolver = self._resolver(located, external=given)
            wanted, state = resolver.wanted(located), resolver.state(located)
            for read in wanted.reads:
                self._require_fresh(resolver.state(read.node))
            if wanted.fingerprint is None:
                raise InputStageError(
                    f"{located.label} cannot run: {'; '.join(wanted.unknown)}",
                    hint=self._hint(wanted),
                )
            if state.stored:
                raise BusyError(f"{located.label} is in the store already: adopt it")
            with disk_errors(located.label):
                workspace = open_workspace(self.layout, located, wanted)
            if self._locks > 1:
                self._workspaces.callback(workspace.held.close)
            journal.log(
                self.files,
                "begin",
                node=located.label,
                why=state.text,
                fingerprint=wanted.fingerprint,
                resumed=workspace.resumed,
            )
        return workspace

    def commit(
        self,
        workspace: Workspace,
        *,
        outputs: Mapping[str, str],
        counts: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
        device: str | None = None,
    ) -> Manifest:
        """Makes what a stage wrote a version, and that version current.

        Args:
            workspace: From `begin`.
            outputs: Name -> file or folder, relative to the workspace. Other files are removed.
            counts: Numbers of things.
            summary: Anything else worth keeping, JSON-able.
            warnings: Sentences for people.
            device: The device that was used.

        Raises:
            ClmoeError: An output is not there, or the disk is full; the old version stays current.
        """
        with self.lock():
            manifest = commit_workspace(
                self.layout,
                workspace,
                part=self._plan_for(workspace.node).part(workspace.node),
                outputs=outputs,
                counts=counts or {},
                summary=summary or {},
                warnings=warnings,
                device=device,
            )
            self._point(workspace.node, manifest.fingerprint, why="commit")
        return manifest

    def adopt(self, node: Node, *, external: Mapping[str, str] | None = None) -> bool:
        """Makes the wanted version current where the store has it; says whether it is current.

        Args:
            node: The node.
            external: For prepare, as for `begin`; None: the files it last read with this recipe.
        """
        with self.lock():
            located = self.node(node)
            state = self._resolver(located, external=external).state(located)
            if state.status == "fresh":
                return True
            if not state.stored or state.fingerprint is None:
                return False
            self._point(located, state.fingerprint, why="adopt")
        return True

    def output(self, node: Node, name: str) -> Path:
        """The file or folder of a fresh node's output.

        Raises:
            InputStageError: The node is not fresh; the hint is the command that makes it.
        """
        state = self.state(node)
        self._require_fresh(state)
        assert state.directory is not None
        manifest = read_manifest(state.directory)
        if name not in manifest.outputs:
            raise InputStageError(
                f"{state.node.label} has no output {name!r} (it has {', '.join(manifest.outputs)})",
                hint=self.command(state.node),
            )
        return state.directory / manifest.outputs[name].path

    def manifest(self, node: Node) -> Manifest:
        """The manifest of a node's current version, fresh or not.

        Raises:
            InputStageError: It was never run, or its manifest cannot be read.
        """
        located = self.node(node)
        pointed = read_current(self.files).get(located.label)
        try:
            if pointed is not None:
                return read_manifest(self.layout.version(located.stage, pointed))
        except (OSError, ValueError) as error:
            raise InputStageError(
                f"{located.label} is damaged: {error}", hint=self.command(located)
            ) from error
        raise InputStageError(f"{located.label} is missing: never run", hint=self.command(located))

    def history(self) -> list[Change]:
        """Every change of what is current, the oldest first (v1, v2, ...)."""
        return read_history(self.files)

    def command(self, node: Node) -> str:
        """The command that computes a node, naming the run where it is not the current one."""
        return plans.node_command(node, run=None if self.is_current() else self.name)

    def _adapter(self, t: int) -> Path | None:
        theta = self.plan.theta(t)
        return None if theta is None else self.output(theta, "adapter")

    def _require_fresh(self, state: NodeState) -> None:
        if state.status != "fresh":
            raise InputStageError(
                f"{state.node.label} is {state.text}", hint=self.command(state.node)
            )

    def _hint(self, wanted: Wanted) -> str:
        """The command for a node whose inputs are fresh, but lack what it reads."""
        return self.command(wanted.reads[0].node if wanted.reads else Node("eval"))

    def _resolver(
        self, node: Node, *, external: Mapping[str, str] | None = None, rehash: bool = False
    ) -> Resolver:
        return Resolver(
            self._plan_for(node),
            layout=self.layout,
            current=read_current(self.files),
            base=lambda: base_identity(self.recipe.base, cache=self._cache),
            cache=self._cache,
            external=external,
            rehash=rehash,
        )

    def _plan_for(self, node: Node) -> Plan:
        """The plan; prepare has one before anything is prepared, and whatever the order says."""
        return Plan(self.recipe, ()) if node.stage == "prepare" else self.plan

    def _point(self, node: Node, fingerprint: str, *, why: str) -> None:
        with disk_errors(node.label):
            current = point(self.files, label=node.label, fingerprint=fingerprint)
            update_links(self.path, store=self.layout.store, current=current)
            atomic.step("links updated")
            journal.log(self.files, why, node=node.label, fingerprint=fingerprint)

"""Stages that write small files in place of tensors, so that runs can be tested without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from clmoe.recipe import resolve_text
from clmoe.runs import Manifest, Node, Run

TASKS = ("recognition", "location", "color")
SPLITS = ("train", "val", "test")


def make_run(
    runs_dir: Path, *overrides: str, name: str = "one", recipe: str = "name: shapes"
) -> Run:
    resolved = resolve_text(recipe, origin="test.yaml", overrides=overrides)
    return Run.create(runs_dir, resolved=resolved, name=name)


def write_outputs(
    folder: Path, node: Node, *, content: str, tasks: Sequence[str] = TASKS
) -> dict[str, str]:
    """Writes what the stage would, from `content`, and returns its outputs."""
    if node.stage == "prepare":
        outputs = {"data": "data"}
        for task in tasks:
            for split in SPLITS:
                path = folder / "data" / task / split / "data.arrow"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{task} {split} {content}", encoding="utf-8")
                outputs[f"{task}/{split}"] = f"data/{task}/{split}"
        source = json.dumps({"tasks": list(tasks)})
        (folder / "data" / "source.json").write_text(source, encoding="utf-8")
        return outputs
    if node.stage in ("train", "merge"):
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / "adapter_model.safetensors").write_text(content, encoding="utf-8")
        (folder / "checkpoint.pt").write_text("left over", encoding="utf-8")
        if node.stage == "train":
            return {"adapter": "adapter"}
        (folder / "merge.json").write_text(content, encoding="utf-8")
        return {"adapter": "adapter", "merge": "merge.json"}
    name = {"route": "router", "index": "index", "eval": "samples", "report": "report"}[node.stage]
    (folder / f"{name}.json").write_text(content, encoding="utf-8")
    return {name: f"{name}.json"}


def perform(
    run: Run, node: Node, *, content: str | None = None, tasks: Sequence[str] = TASKS
) -> Manifest:
    """Begins, writes and commits; the content follows the fingerprint unless it is given.

    As in the real method, merging the first task changes nothing: theta_1 is phi_1.
    """
    with run.lock():
        workspace = run.begin(node)
        node = workspace.node
        if content is None and node.stage == "merge" and node.position == 1:
            adapter = run.output(Node("train", node.task), "adapter")
            content = (adapter / "adapter_model.safetensors").read_text(encoding="utf-8")
        if content is None:
            content = workspace.fingerprint
        outputs = write_outputs(workspace.path, node, content=content, tasks=tasks)
        return run.commit(workspace, outputs=outputs)


def bring_up_to_date(run: Run, *, tasks: Sequence[str] = TASKS) -> list[str]:
    """Runs or adopts whatever is not fresh; returns the labels that were run."""
    ran: list[str] = []
    prepare = Node("prepare")
    if run.state(prepare).status != "fresh" and not run.adopt(prepare):
        perform(run, prepare, tasks=tasks)
        ran.append("prepare")
    for node in run.nodes():
        if not run.adopt(node):
            perform(run, node, tasks=tasks)
            ran.append(node.label)
    return ran


def not_fresh(run: Run) -> dict[str, str]:
    return {state.node.label: state.text for state in run.states() if state.status != "fresh"}

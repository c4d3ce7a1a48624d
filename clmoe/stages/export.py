"""Take one row of a run out as a bundle that `clmoe.load` answers from, with its card."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clmoe.errors import InputStageError, UsageError
from clmoe.runs.plan import Node, Plan
from clmoe.runs.run import Run
from clmoe.stages.result import Result, Table
from clmoe.stages.sequence import row_position

if TYPE_CHECKING:
    from clmoe.interop.bundle import BundleSettings
    from clmoe.interop.model_card import CardCell, CardFacts
    from clmoe.recipe.schema import Base


def export(
    runs_dir: str | Path, folder: str | Path, *, run: str | None = None, after: str | None = None
) -> Path:
    """Write the adapter, task routers, index and card of a run to a folder.

    Args:
        runs_dir: The folder of all runs.
        folder: Where to; it must not exist.
        run: The run; None: the current one.
        after: The newest task learned; None: the newest trained.

    Returns:
        The folder.

    Raises:
        UsageError: ``after`` is ``base``, which has no adapter.
        ClmoeError: A stage that is needed is not up to date; the hint is the command.
    """
    _write(Run.open(Path(runs_dir), run), Path(folder), after=after)
    return Path(folder)


def export_bundle(
    runs_dir: Path, *, out: Path, run: str | None, after: str | None, push: str | None
) -> Result:
    """Export a row of a run, and upload it where a repository is named.

    Args:
        runs_dir: The folder of all runs.
        out: Where to; it must not exist.
        run: The run; None: the current one.
        after: The newest task learned; None: the newest trained.
        push: Repository on the Hub, USER/NAME; None: nothing leaves this machine.

    Raises:
        ClmoeError: As `export`; or the upload failed, and then the folder stays.
    """
    if push is not None:
        from clmoe.interop.hub import check_repo_id

        check_repo_id(push)
    opened = Run.open(runs_dir, run)
    written = _write(opened, out, after=after)
    missing, tasks = written.missing, written.settings.tasks
    device = written.settings.device
    where = "" if device in (None, "cpu") else f", device={device!r}"
    notes = [
        f"{out} answers as clmoe eval does, with the base as it was then "
        f"({written.settings.base_is}): clmoe.load({str(out)!r}{where})",
        *written.caveats,
    ]
    if missing:
        notes.append(f"the card says that these results are missing: {', '.join(missing)}")
    notes.append("the card names no license: add one before you publish it")
    address = None
    if push is not None:
        from clmoe.interop.hub import push_folder

        address = push_folder(out, push)
        notes.append(f"pushed to {address} (a new repository is private)")
    files = sorted(path for path in out.rglob("*") if path.is_file())
    rows = [[str(path.relative_to(out)), str(path.stat().st_size)] for path in files]
    return Result(
        command="export",
        run=opened.name,
        tables=(Table(str(out), ["file", "bytes"], rows),),
        data={
            "folder": out,
            "tasks": list(tasks),
            "files": [row[0] for row in rows],
            "missing_results": missing,
            "pushed_to": address,
        },
        notes=tuple(notes),
        next_command=f"clmoe audit {shlex.quote(str(out))}",
    )


@dataclass(frozen=True)
class _Written:
    """A bundle's settings, the tasks without a result, and the card's caveats."""

    settings: BundleSettings
    missing: list[str]
    caveats: tuple[str, ...]


def _write(opened: Run, folder: Path, *, after: str | None) -> _Written:
    from clmoe.data.prepared import read_source
    from clmoe.interop.bundle import FORMAT, BundleSettings, write_bundle
    from clmoe.interop.model_card import model_card
    from clmoe.model.adapter_info import read_adapter_info

    plan, recipe = opened.plan, opened.recipe
    place = row_position(opened, after)
    theta = plan.theta(place)
    if theta is None:
        raise UsageError(
            "before any task there is no adapter to export",
            hint=f"clmoe export --after {plan.tasks[0]} --out {shlex.quote(str(folder))}",
        )
    if plan.per_task or recipe.strategy.kind == "vqacl":
        raise UsageError(
            f"{recipe.method.name} answers with more than one adapter and its routers, which one "
            "bundle does not hold",
            hint="export another method's run",
        )
    tasks = plan.learned(plan.cell(place, plan.tasks[0]))
    mixed = tasks if plan.soft_gates else ()
    source = read_source(opened.output(Node("prepare"), "data"))
    device = _device(opened, [*(plan.cell(place, task) for task in tasks), theta])
    settings = BundleSettings(
        format=FORMAT,
        base=recipe.base.model,
        revision=recipe.base.revision,
        prompt=recipe.base.prompt,
        suffix=source.suffix,
        suffixes=tuple(source.suffixes.values()),
        tasks=tasks,
        mixes=plan.soft_gates,
        beta=recipe.eval.beta,
        feature=recipe.index.feature,
        shrinkage=recipe.index.shrinkage,
        max_new_tokens=recipe.eval.max_new_tokens,
        soft=recipe.index.soft,
        dtype=_dtype(recipe.base, device),
        quantization=recipe.base.quantization,
        device=device,
    )
    adapter = opened.output(theta, "adapter")
    facts = _card_facts(opened, place, tasks=tasks, source=source.source)
    write_bundle(
        folder,
        adapter=adapter,
        routers=[opened.output(Node("route", task), "router") for task in mixed],
        indexes=[opened.output(Node("index", task), "index") for task in mixed],
        settings=settings,
        card=model_card(facts, bundle=settings, info=read_adapter_info(adapter)),
    )
    missing = [cell.task for cell in facts.cells if cell.correct is None]
    return _Written(settings, missing, tuple(facts.caveats))


def _device(opened: Run, nodes: Sequence[Node]) -> str | None:
    """The kind of device of the first of these nodes that is up to date and says it."""
    for node in nodes:
        if opened.state(node).status == "fresh":
            device = opened.manifest(node).environment.get("device")
            if device:
                return str(device).partition(":")[0]
    return None


def _dtype(base: Base, device: str | None) -> str:
    """What `base.dtype` was on a device; `auto` where nothing here can tell."""
    if base.dtype != "auto" or device is None:
        return base.dtype
    import torch

    from clmoe.model.choices import choose_dtype

    if device == "cuda" and not torch.cuda.is_available():
        return base.dtype  # it was that GPU's choice
    dtype, _ = choose_dtype(base.dtype, device=torch.device(device))
    return str(dtype).removeprefix("torch.")


def _card_facts(opened: Run, place: int, *, tasks: tuple[str, ...], source: str) -> CardFacts:
    from clmoe.interop.model_card import CardFacts

    recipe, plan = opened.recipe, opened.plan
    cells = [_cell(opened, plan.cell(place, task)) for task in tasks]
    scores = [100 * cell.correct / cell.asked for cell in cells if cell.correct is not None]
    theta = plan.theta(place)
    assert theta is not None, "row 0 was refused"
    flat = recipe.flat()
    return CardFacts(
        name=f"{opened.name}, after {'all tasks' if recipe.protocol.joint else tasks[-1]}",
        method=recipe.method.name,
        settings=[(name, f"{_text(flat[key])} (`{key}`)") for name, key in _settings(plan)],
        scorer=recipe.report.scorer,
        split=recipe.eval.split,
        cells=cells,
        ap=sum(scores) / len(scores) if len(scores) == len(cells) else None,
        source=source,
        versions=_versions(opened, theta),
        joint=recipe.protocol.joint,
        caveats=_caveats(plan),
    )


def _settings(plan: Plan) -> list[tuple[str, str]]:
    """The rows of the card's settings: only those that had a part in this run."""
    one = plan.recipe.adapter.experts == 1
    found = [
        ("experts n", "adapter.experts", True),
        ("total rank r", "adapter.rank", True),
        ("alpha", "adapter.alpha", True),
        ("adapted linears", "adapter.targets", True),
        ("routers", "adapter.routers", not one),
        ("top K", "route.top_k", plan.routes),
        ("gamma", "merge.gamma", plan.merges),
        ("merge", "merge.rule", True),
        ("beta", "eval.beta", not one and not plan.recipe.protocol.joint),
        ("task index", "index.kind", plan.soft_gates),
        ("strategy", "strategy.kind", plan.recipe.strategy.kind != "none"),
        ("projector", "base.projector", True),
        ("seed of training", "train.seed", True),
    ]
    return [(name, key) for name, key, used in found if used]


def _caveats(plan: Plan) -> tuple[str, ...]:
    """How the results were made otherwise than a bundle answers."""
    recipe, found = plan.recipe, []
    if plan.soft_gates and recipe.eval.oracle_task:
        found.append(
            "The run answered with the true task of each question (`eval.oracle_task`); what is "
            "exported finds the task itself (Eq 8), so its answers may differ."
        )
    elif plan.soft_gates and recipe.index.noise:
        found.append(
            f"The run replaced a share of {recipe.index.noise:g} of the task ids at random "
            "(`index.noise`); what is exported replaces none, so its answers may differ."
        )
    if recipe.protocol.task_known:
        found.append("Questions could show the model their task (`protocol.task_known`).")
    return tuple(found)


def _cell(opened: Run, node: Node) -> CardCell:
    """What is known of one cell; one that is not up to date is missing."""
    from clmoe.interop.model_card import CardCell

    task = str(node.task)
    state = opened.state(node)
    if state.status != "fresh":
        told = "not evaluated" if state.status == "missing" else f"not up to date ({state.status})"
        return CardCell(task, missing=told)
    from clmoe.stages.report import cell_score

    score = cell_score(opened, node, scorer=opened.recipe.report.scorer)
    if score["correct"] is None:
        return CardCell(task, missing=str(score["reason"]))
    return CardCell(task, correct=score["correct"], asked=score["total"])


def _versions(opened: Run, node: Node) -> dict[str, str]:
    """Versions of the packages that made an adapter, as its manifest has them."""
    try:
        made = opened.manifest(node).environment
    except InputStageError:
        return {}
    return {"python": str(made["python"]), **made["versions"]}


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

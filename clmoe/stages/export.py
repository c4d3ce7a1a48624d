"""Take one row of a run out as a bundle that `clmoe.load` answers from."""

from __future__ import annotations

from pathlib import Path

from clmoe.data.prepared import read_source
from clmoe.interop.bundle import FORMAT, BundleSettings, write_bundle
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.sequence import row_position


def export(
    runs_dir: str | Path, folder: str | Path, *, run: str | None = None, after: str | None = None
) -> Path:
    """Write the adapter, task routers and index of a run to a folder.

    Args:
        runs_dir: The folder of all runs.
        folder: Where to; it must not exist.
        run: The run; None: the current one.
        after: The newest task learned; None: the newest trained.

    Returns:
        The folder.

    Raises:
        ClmoeError: A stage that is needed is not up to date; the hint is the command.
    """
    opened = Run.open(Path(runs_dir), run)
    plan, recipe = opened.plan, opened.recipe
    place = row_position(opened, after)
    theta = plan.theta(place)
    assert theta is not None, "row 0 has no adapter"
    tasks = plan.learned(plan.cell(place, plan.tasks[0]))
    mixed = tasks if plan.soft_gates else ()
    write_bundle(
        Path(folder),
        adapter=opened.output(theta, "adapter"),
        routers=[opened.output(Node("route", task), "router") for task in mixed],
        indexes=[opened.output(Node("index", task), "index") for task in mixed],
        settings=BundleSettings(
            format=FORMAT,
            base=recipe.base.model,
            revision=recipe.base.revision,
            prompt=recipe.base.prompt,
            suffix=read_source(opened.output(Node("prepare"), "data")).suffix,
            tasks=tasks,
            mixes=plan.soft_gates,
            beta=recipe.eval.beta,
            feature=recipe.index.feature,
            shrinkage=recipe.index.shrinkage,
            max_new_tokens=recipe.eval.max_new_tokens,
        ),
    )
    return Path(folder)

"""The run that answers with true task ids and is otherwise the same: what `report` sets beside."""

from __future__ import annotations

from clmoe.errors import ClmoeError
from clmoe.reporting.compare import ORACLE
from clmoe.reporting.compare import compare as side_by_side
from clmoe.reporting.oracle_cost import OracleCost, oracle_costs
from clmoe.runs.run import Run
from clmoe.stages.compare import read_run, result_settings


def oracle_cost(run: Run, *, scorer: str) -> OracleCost | None:
    """What misidentified tasks cost a run; None where no finished run tells."""
    wanted = {**result_settings(run), ORACLE: True}
    if run.recipe.eval.oracle_task or not run.plan.indexes:
        return None
    for name in run.layout.run_names():
        try:
            other = Run.open(run.runs_dir, name)
            if name == run.name or result_settings(other) != wanted:
                continue
            pair = [read_run(run, scorer=scorer), read_run(other, scorer=scorer)]
            return next(iter(oracle_costs(side_by_side(pair))), None)
        except ClmoeError:
            continue  # unreadable, or not as far: it tells nothing about this run
    return None

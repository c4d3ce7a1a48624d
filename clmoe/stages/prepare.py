"""Turn a source into Arrow files, one for each task and split, with what is worth knowing of it."""

from __future__ import annotations

from pathlib import Path

from clmoe.data.prepare import REJECTED, prepare_data
from clmoe.data.prepared import split_folder
from clmoe.runs.plan import Node
from clmoe.stages.context import Context
from clmoe.stages.stage import StageResult


def perform(context: Context, node: Node, folder: Path) -> StageResult:
    """Prepare every task and split that the recipe asks for, into ``folder/data``."""
    out = folder / "data"
    summary = prepare_data(context.recipe.data, workspace=folder, out=out)
    source = summary.source
    outputs = {"data": "data"}
    for task, counts in source.counts.items():
        for split in counts:
            path = split_folder(out, task=task, split=split)
            outputs[f"{task}/{split}"] = path.relative_to(folder).as_posix()
    if (folder / "images").is_dir():
        outputs["images"] = "images"
    if summary.rejected:
        outputs["rejected"] = f"data/{REJECTED}"
    total = sum(sum(counts.values()) for counts in source.counts.values())
    lines = [f"{total:,} questions of {len(source.tasks)} tasks from {source.source}"]
    for task in source.tasks:
        sizes = ", ".join(f"{split} {count:,}" for split, count in source.counts[task].items())
        rates = [
            f"{split} {described['majority_rate']:.0%}"
            for split, described in source.statistics["tasks"][task].items()
            if split in ("val", "test") and described["majority_rate"] is not None
        ]
        lines.append(f"{task}: {sizes}; majority answer {', '.join(rates)}")
    return StageResult(
        outputs=outputs,
        counts={
            f"{task}/{split}": count
            for task, counts in source.counts.items()
            for split, count in counts.items()
        },
        summary={
            "tasks": list(source.tasks),
            "splits": list(source.splits),
            "rejected": summary.rejected,
            "statistics": source.statistics,
        },
        warnings=summary.warnings,
        lines=tuple(lines),
    )

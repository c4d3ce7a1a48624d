"""The card of an exported adapter: `README.md`, with the front matter that the Hub reads.

It names no license: only its publisher can. It says what plain PEFT loading gives and what not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from clmoe.interop.bundle import BundleSettings
from clmoe.model.adapter_info import AdapterInfo

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TAGS = ("clmoe", "continual-learning", "visual-question-answering", "lora", "mixture-of-experts")


@dataclass(frozen=True)
class CardCell:
    """What is known of one task in the adapter's row of the accuracy matrix.

    Attributes:
        task: The task.
        correct: Sum of scores; None where the cell is missing.
        asked: Questions asked.
        missing: Why there is no score; empty where there is one.
    """

    task: str
    correct: float | None = None
    asked: int = 0
    missing: str = ""


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside the bundle's own settings.

    Attributes:
        name: The title.
        method: `method.name` of the recipe.
        settings: Rows of the table of settings: symbol or key, and value.
        scorer: The scorer of the cells.
        split: The split whose questions were asked.
        cells: The row, in the order of tasks.
        ap: Mean over the learned tasks in percent; None where a cell is missing.
        source: The data source.
        versions: Package -> version that trained it.
        joint: Whether all tasks were learned at once.
        caveats: Sentences on how the results were made otherwise than the bundle answers.
    """

    name: str
    method: str
    settings: Sequence[tuple[str, str]]
    scorer: str
    split: str
    cells: Sequence[CardCell]
    ap: float | None
    source: str
    versions: Mapping[str, str]
    joint: bool = False
    caveats: Sequence[str] = ()


def model_card(facts: CardFacts, *, bundle: BundleSettings, info: AdapterInfo) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        facts: What the run knows.
        bundle: How the bundle answers.
        info: The adapter's configuration.
    """
    parts = [
        _front_matter(bundle),
        f"# {facts.name}",
        f"An adapter for visual question answering: {_learning(facts, bundle, info)} with the "
        f"method `{facts.method}` of clmoe (CL-MoE, arXiv 2503.00413).",
        "No license is named here: add `license:` to the front matter before publishing, in "
        "agreement with the base model's and the data's.",
        "## What it is",
        _table(("", ""), _identity(facts, bundle)),
        "## Settings",
        _table(("setting", "value"), facts.settings),
        "## Results",
        _results(facts),
        "## Loading it",
        _whole(facts, bundle),
        _plain(bundle, experts=info.experts),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(bundle: BundleSettings) -> str:
    fields: dict[str, object] = {
        "library_name": "peft",
        "pipeline_tag": "visual-question-answering",
        "tags": list(_TAGS),
    }
    if _HUB_NAME.fullmatch(bundle.base):  # the Hub refuses a base that is not one of its names
        fields = {"base_model": bundle.base, **fields}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _learning(facts: CardFacts, bundle: BundleSettings, info: AdapterInfo) -> str:
    what = "LoRA experts" if info.experts > 1 else "one LoRA"
    if len(bundle.tasks) == 1:
        return f"{what} that learned one task"
    how = "all tasks at once" if facts.joint else "one task after another"
    return f"{what} that learned {how}"


def _identity(facts: CardFacts, bundle: BundleSettings) -> list[tuple[str, str]]:
    tiny = " (built into clmoe)" if bundle.base == "tiny" else ""
    tasks = ", ".join(f"{number}. {task}" for number, task in enumerate(bundle.tasks, 1))
    return [
        ("base model", f"`{bundle.base}`{tiny}"),
        ("revision", f"`{bundle.revision}`" if bundle.revision else "not pinned"),
        ("the base when it answered", bundle.base_is),
        ("method", facts.method),
        ("tasks, learned at once" if facts.joint else "tasks, in the order learned", tasks),
        ("data source", f"`{facts.source}`"),
    ]


def _results(facts: CardFacts) -> str:
    if not any(cell.correct is not None for cell in facts.cells):
        return "Nothing was evaluated after the last of these tasks; every result is missing."
    rows = [
        (
            cell.task,
            "missing" if cell.correct is None else f"{100 * cell.correct / cell.asked:.1f}",
            cell.missing if cell.correct is None else f"{cell.correct:g} of {cell.asked}",
        )
        for cell in facts.cells
    ]
    mean = (
        "The mean over these tasks (AP) is missing, because a cell is."
        if facts.ap is None
        else f"The mean over these tasks (AP) is {facts.ap:.2f}."
    )
    learned = "all of these tasks" if facts.joint else "the last of these tasks"
    told = f"Accuracy after {learned}, scorer `{facts.scorer}`, split `{facts.split}`:"
    table = _table(("task", "percent", "right of asked"), rows)
    return "\n\n".join([told, table, mean, *facts.caveats])


def _whole(facts: CardFacts, bundle: BundleSettings) -> str:
    """How `clmoe.load` answers, and how to call it."""
    exact = bundle.dtype == "float32" and not facts.caveats
    as_eval = "exactly as `clmoe eval` did" if exact else "as `clmoe eval` does"
    parts = (
        f"experts, both routers mixed with beta = {bundle.beta:g} (Eq 9), and the task index that "
        "finds a question's task (Eq 8)."
        if bundle.mixes
        else "no task router takes part."
    )
    limits = (
        "The base is loaded as it was when the run answered; with another device, dtype or "
        "quantization, answers may differ."
    )
    if bundle.dtype == "bfloat16":
        limits += " In bfloat16 they may also differ with the questions that share a batch."
    elif bundle.dtype == "auto":
        limits = "It is not known in which dtype the base answered, so answers may differ."
    device = "" if bundle.device in (None, "cpu") else f", device={bundle.device!r}"
    asked = json.dumps("what color is it?" + bundle.suffix)
    if bundle.suffix:
        limits += " A question ends with the instruction that the adapter was trained with."
    code = (
        "```python\nimport clmoe\n\n"
        'folder = "."  # of this file; from the Hub: huggingface_hub.snapshot_download(NAME)\n'
        f"learned = clmoe.load(folder{device})\n"
        f'for reply in learned.answer(["picture.png"], [{asked}]):\n'
        "    print(reply.text, reply.task)\n```"
    )
    return f"The whole of it, which answers {as_eval}: {parts} {limits}\n\n{code}"


def _plain(bundle: BundleSettings, *, experts: int) -> str:
    """What plain PEFT gives, and how to call it."""
    tiny = bundle.base == "tiny"
    base = "from clmoe.model.tiny import tiny_folder\n" if tiny else ""
    name = "tiny_folder()" if tiny else repr(bundle.base)
    options = f", revision={bundle.revision!r}" if bundle.revision else ""
    options += "" if bundle.dtype == "auto" else f", dtype={bundle.dtype!r}"
    gates = "experts and the instance router" if experts > 1 else "the one expert"
    told = (
        f"Plain PEFT gives {gates}: Eq 3 with the gate of Eq 5, as if beta were 1. It does not "
        "give the task router, the task identification of Eq 8 and the mixed gate of Eq 9, which "
        "lie in `task_router/` and `index/`. PEFT must know the method first: `import clmoe`."
        if bundle.mixes
        else f"Plain PEFT gives {gates}, and here that is everything that answers. PEFT must know "
        "the method first: `import clmoe`."
    )
    if bundle.quantization != "none":
        told += (
            f" The base was quantised to {bundle.quantization} when it answered; below it is not, "
            "so answers may differ."
        )
    code = (
        "```python\nimport clmoe  # makes PEFT know the method\n"
        f"{base}from peft import PeftModel\nfrom transformers import "
        "AutoModelForImageTextToText\n\n"
        f"base = AutoModelForImageTextToText.from_pretrained({name}{options})\n"
        'model = PeftModel.from_pretrained(base, ".")  # or its name on the Hub\n```'
    )
    return f"{told}\n\n{code}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )

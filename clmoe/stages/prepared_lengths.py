"""How long the samples of prepared data are, counted with the base's tokenizer alone."""

from __future__ import annotations

from transformers import AutoTokenizer

from clmoe.data.prepared import read_examples
from clmoe.data.prompts import TEMPLATES
from clmoe.model.fetching import Source, quiet_loading
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.fit import Sample

CHECKED = 2000  # the longest texts of a task, by characters, that are tokenised


def longest_sample(run: Run) -> Sample:
    """Return the longest training sample of a run whose data are prepared, without its picture."""
    with quiet_loading():
        tokenizer = Source(run.recipe.base).fetch(AutoTokenizer)
    template = TEMPLATES["short" if run.recipe.base.model == "tiny" else "vicuna_v1"]
    frame = template.start + template.between + template.after + template.gap
    text = answer = 0
    pictures: set[str] = set()
    data = run.output(Node("prepare"), "data")
    for task in run.tasks:
        examples = read_examples(data, task=task, split="train")
        asked = read_examples(data, task=task, split=run.recipe.eval.split)
        pictures |= {example.image for example in (*examples, *asked)}
        examples.sort(key=lambda e: -len(e.question) - len(e.answer))
        for example in examples[:CHECKED]:
            answer = max(answer, len(tokenizer.tokenize(example.answer)) + 1)
            text = max(text, len(tokenizer.tokenize(f"{example.question} {example.answer}")))
    return Sample(
        text=text + len(tokenizer.tokenize(frame)) + 2, answer=answer, pictures=len(pictures)
    )

"""A bundle answers exactly as ``clmoe eval`` does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import clmoe
from clmoe.data.prepared import read_examples, read_source
from clmoe.errors import ClmoeError
from clmoe.evaluation.samples import read_samples
from clmoe.model.tiny import tiny_folder
from clmoe.runs.plan import Node
from clmoe.runs.run import Run


@pytest.fixture(scope="module")
def bundle(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clmoe.export(finished, tmp_path_factory.mktemp("out") / "learned")


def test_answers_as_eval_does(finished: Path, bundle: Path) -> None:
    run = Run.open(finished)
    data = run.output(Node("prepare"), "data")
    root = read_source(data).image_root
    learned = clmoe.load(bundle, "tiny", batch_size=7)
    for task in run.tasks:
        node = Node("eval", task, after="count")
        samples = read_samples(run.output(node, "samples"))
        examples = read_examples(data, task=task, split="test")
        replies = learned.answer([root / e.image for e in examples], [e.question for e in examples])
        assert [r.text for r in replies] == [s.prediction for s in samples]
        assert [r.task for r in replies] == [s.predicted_task for s in samples]


def test_plain_peft_reads_experts_and_instance_routers(bundle: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(tiny_folder())
    model = PeftModel.from_pretrained(base, str(bundle))
    ours = clmoe.load(bundle).model
    theirs = dict(model.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.equal(theirs[name])


def test_not_a_bundle(finished: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ClmoeError, match="is not a bundle"):
        clmoe.load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "clmoe.json").write_text('{"format": 99}')
    with pytest.raises(ClmoeError, match="newer version"):
        clmoe.load(copy)
    with pytest.raises(ClmoeError, match="exists"):
        clmoe.export(finished, copy)

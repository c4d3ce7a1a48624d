"""A bundle answers exactly as ``clmoe eval`` does."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import clmoe
from clmoe.data.prepared import read_examples, read_source
from clmoe.errors import ClmoeError
from clmoe.evaluation.samples import read_samples
from clmoe.interop.bundle import Learned, read_settings
from clmoe.model.tiny import tiny_folder
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline


@pytest.fixture(scope="module")
def bundle(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clmoe.export(finished, tmp_path_factory.mktemp("out") / "learned")


def differing(run: Run, learned: Learned) -> tuple[int, int]:
    """How many answers, and how many tasks, are not those of the run's last row."""
    data = run.output(Node("prepare"), "data")
    root = read_source(data).image_root
    texts = tasks = 0
    for task in run.tasks:
        samples = read_samples(run.output(Node("eval", task, after=run.tasks[-1]), "samples"))
        examples = read_examples(data, task=task, split="test")
        replies = learned.answer([root / e.image for e in examples], [e.question for e in examples])
        for reply, sample in zip(replies, samples, strict=True):
            texts += reply.text != sample.prediction
            tasks += reply.task != sample.predicted_task
    return texts, tasks


def test_answers_as_eval_does(finished: Path, bundle: Path) -> None:
    learned = clmoe.load(bundle, "tiny", batch_size=7)
    assert differing(Run.open(finished), learned) == (0, 0)
    assert learned.differences == ()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder whose run was trained and evaluated on a base in nf4."""
    pytest.importorskip("bitsandbytes", reason="pip install 'clmoe[quant]'")
    runs = tmp_path_factory.mktemp("packed") / "runs"
    few = ["data.tasks=count,color", "data.train_per_task=48", "data.val_per_task=8",
           "data.test_per_task=16", "runtime.threads=1", "runtime.device=cpu",
           "base.quantization=nf4"]  # fmt: skip
    pipeline.run(runs, recipe="shapes", overrides=few, name="q", dry_run=False, keep_going=False)
    return runs


@pytest.fixture(scope="module")
def packed_bundle(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clmoe.export(packed, tmp_path_factory.mktemp("out") / "learned")


class TestTheBaseAsItWas:
    """Whatever of the base changes answers is stored in the bundle."""

    def test_a_quantised_run(self, packed: Path, packed_bundle: Path) -> None:
        settings = read_settings(packed_bundle)
        assert (settings.quantization, settings.dtype) == ("nf4", "float32")
        learned = clmoe.load(packed_bundle, batch_size=7)
        linear = learned.backbone.model.get_submodule("model.language_model.layers.0.mlp.up_proj")
        assert type(linear.base_layer).__name__ == "Linear4bit"
        assert differing(Run.open(packed), learned) == (0, 0)
        card = (packed_bundle / "README.md").read_text(encoding="utf-8")
        assert "| the base when it answered | quantised to nf4, float32, on cpu |" in card
        assert "below it is not, so answers may differ" in card
        assert "dtype='float32')" in card

    def test_another_base_than_the_runs_is_said(self, packed_bundle: Path) -> None:
        with pytest.warns(UserWarning, match="answers may differ") as caught:
            learned = clmoe.load(packed_bundle, quantization="none", dtype="bfloat16")
        assert learned.differences == (
            "the run answered with the base's dtype float32, here it is bfloat16",
            "the run answered with the base's quantization nf4, here it is none",
        )
        assert len(caught) == 2
        assert learned.backbone.dtype == torch.bfloat16

    def test_a_machine_that_cannot_quantise(
        self, packed_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else find(n, *a)
        )
        with pytest.raises(ClmoeError, match="bitsandbytes is not installed") as caught:
            clmoe.load(packed_bundle)
        assert str(caught.value.hint).endswith(
            "or clmoe.load(..., quantization='none'), whose answers may differ"
        )

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_the_dtype(self, bundle: Path, tmp_path: Path, dtype: str) -> None:
        copy = changed(bundle, tmp_path / "copy", dtype=dtype)
        assert clmoe.load(copy).backbone.dtype == getattr(torch, dtype)

    def test_a_run_on_another_device(self, bundle: Path, tmp_path: Path) -> None:
        copy = changed(bundle, tmp_path / "copy", device="cuda", dtype="bfloat16")
        with pytest.warns(UserWarning, match="the base's device cuda, here it is cpu: answers may"):
            assert clmoe.load(copy).backbone.dtype == torch.bfloat16

    def test_a_bundle_of_format_1(self, finished: Path, bundle: Path, tmp_path: Path) -> None:
        gone = dict.fromkeys(("dtype", "quantization", "device"))
        copy = changed(bundle, tmp_path / "copy", format=1, **gone)
        settings = read_settings(copy)
        assert (settings.dtype, settings.quantization, settings.device) == ("auto", "none", None)
        learned = clmoe.load(copy)
        assert learned.differences == ()
        assert differing(Run.open(finished), learned) == (0, 0)

    def test_a_copy_of_the_built_in_base_has_its_prompt(
        self, finished: Path, bundle: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(tiny_folder(), tmp_path / "copied")
        learned = clmoe.load(bundle, str(tmp_path / "copied"))
        assert learned.backbone.prompt == "short"
        assert differing(Run.open(finished), learned) == (0, 0)

    def test_an_unknown_value(self, bundle: Path, tmp_path: Path) -> None:
        copy = changed(bundle, tmp_path / "copy", dtype="float8")
        with pytest.raises(ClmoeError, match="copy cannot be loaded so: dtype is 'float8', which"):
            clmoe.load(copy)


def changed(bundle: Path, copy: Path, **fields: object) -> Path:
    """A copy of a bundle with other settings; None leaves one out."""
    shutil.copytree(bundle, copy)
    settings = json.loads((copy / "clmoe.json").read_text()) | fields
    kept = {k: v for k, v in settings.items() if k not in fields or v is not None}
    (copy / "clmoe.json").write_text(json.dumps(kept))
    return copy


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

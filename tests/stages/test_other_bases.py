"""The whole pipeline on a base model that is no LLaVA-1.5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from clmoe.data.prepared import read_examples, read_source
from clmoe.errors import ClmoeError, UsageError
from clmoe.evaluation.samples import read_samples
from clmoe.interop.bundle import load
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline
from clmoe.stages.export import export

from ..conftest import SMALL
from ..model.families import make


def test_shapes_recipe_on_a_llava_next(tmp_path: Path) -> None:
    """Prepare to report on a LLaVA-NeXT, then the exported folder answers as the run did."""
    runs = tmp_path / "runs"
    few = ["data.tasks=recognition,location", "data.train_per_task=8", "data.val_per_task=4"]
    few += ["data.test_per_task=4", "adapter.rank=8", "adapter.alpha=16", "train.lr=5e-3"]
    few += ["eval.max_new_tokens=4", "eval.batch_size=3", "runtime.threads=1"]
    pipeline.run(
        runs,
        recipe="shapes",
        overrides=[*few, f"base.model={make('llava_next', tmp_path / 'base')}"],
        name="other",
        dry_run=False,
        keep_going=False,
    )

    folder = export(runs, tmp_path / "bundle")
    learned, opened = load(folder, batch_size=2), Run.open(runs)
    data = opened.output(Node("prepare"), "data")
    root = read_source(data).image_root
    for task in opened.tasks:
        samples = read_samples(opened.output(Node("eval", task, after="location"), "samples"))
        examples = read_examples(data, task=task, split="test")
        replies = learned.answer([root / e.image for e in examples], [e.question for e in examples])
        assert [reply.text for reply in replies] == [sample.prediction for sample in samples]
        assert [reply.task for reply in replies] == [s.predicted_task for s in samples]


def test_a_base_that_cannot_be_used_changes_nothing_on_disk(runs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    change = f"base.model={tmp_path / 'llama'}"
    with pytest.raises(ClmoeError, match="is a Llama model, not a vision-language model"):
        pipeline.train(
            runs, run=None, task="recognition", overrides=[change], again=True, yes=False
        )
    with pytest.raises(ClmoeError, match="is a Llama model, not a vision-language model"):
        pipeline.run(
            runs, recipe="shapes", overrides=[change], name="new", dry_run=False, keep_going=False
        )
    assert not (runs / "new").exists()
    after = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    changed = {
        path.name for path in after.keys() | before.keys() if after.get(path) != before.get(path)
    }
    assert changed <= {"log.jsonl", ".lock"}


def test_each_task_starts_from_the_bases_own_projector(tmp_path: Path) -> None:
    """With an adapter for each task, one process for all tasks gives what one for each gives."""
    few = [*SMALL, "data.tasks=recognition,location", "data.train_per_task=16"]
    few += ["data.test_per_task=4", "method.name=pertask", "base.projector=trained"]
    pipeline.run(
        tmp_path / "one", recipe="shapes", overrides=few, name="one", dry_run=False,
        keep_going=False,
    )  # fmt: skip
    runs = tmp_path / "each"
    pipeline.prepare(
        runs, source=None, recipe="shapes", overrides=few, name="each", keep_going=False
    )
    for task in ("recognition", "location"):
        pipeline.train(runs, run=None, task=task, overrides=[], again=False, yes=True)
    trained = []
    for opened in (Run.open(tmp_path / "one"), Run.open(runs)):
        folder = opened.output(Node("train", "location"), "adapter")
        trained.append(load_file(folder / "adapter_model.safetensors"))
    one, each = trained
    assert one.keys() == each.keys()
    assert [name for name in one if not torch.equal(one[name], each[name])] == []
    assert sum("multi_modal_projector" in name for name in one) == 4


def test_weights_that_are_not_whole_change_nothing_on_disk(runs: Path, tmp_path: Path) -> None:
    base = make("llava", tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    change = [f"base.model={base}"]
    with pytest.raises(ClmoeError, match=r"model.safetensors is damaged or was cut short"):
        pipeline.run(
            runs, recipe="shapes", overrides=change, name="new", dry_run=False, keep_going=False
        )
    with pytest.raises(ClmoeError, match=r"model.safetensors is damaged or was cut short"):
        pipeline.run(
            runs, recipe=None, overrides=change, name="small", dry_run=False, keep_going=False
        )
    with pytest.raises(UsageError, match="is built in, which has no revisions"):
        pipeline.run(
            runs, recipe="shapes", overrides=["base.revision=main"], name="new", dry_run=False,
            keep_going=False,
        )  # fmt: skip
    assert not (runs / "new").exists()
    assert Run.open(runs, "small").recipe.base.model == "tiny"

"""Changing one key of a recipe makes exactly the stages stale that declare it: every key."""

from __future__ import annotations

from pathlib import Path

import pytest

from clmoe.recipe import keys, resolve_text
from clmoe.runs import Node, Run
from tests.runs.fake_stages import bring_up_to_date, make_run

OTHER = {
    "name": "other",
    "data.source": "jsonl",
    "data.root": "/data",
    "data.images": "/images",
    "data.tasks": "recognition,location,color",
    "data.splits": "train,test",
    "data.train_per_task": 10,
    "data.val_per_task": 10,
    "data.test_per_task": 10,
    "data.seed": 1,
    "data.val_fraction": 0.1,
    "data.balance_answers": "true",
    "data.suffix": "Answer briefly.",
    "data.check_images": "false",
    "data.keep_going": "true",
    "data.question_types": "/types.json",
    "data.karpathy": "/dataset_coco.json",
    "data.columns": "{question: sentence}",
    "data.error_limit": 5,
    "data.turns": "image",
    "base.model": "llava-hf/llava-1.5-7b-hf",
    "base.revision": "main",
    "base.dtype": "bfloat16",
    "base.quantization": "nf4",
    "base.prompt": "short",
    "base.attention": "eager",
    "base.projector": "trained",
    "adapter.experts": 4,
    "adapter.rank": 32,
    "adapter.alpha": 64,
    "adapter.dropout": 0.1,
    "adapter.targets": "all-linear",
    "adapter.routers": "per-linear",
    "adapter.router_std": 0.1,
    "adapter.router_start": "fresh",
    "train.lr": "1e-4",
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.warmup": 0.1,
    "train.schedule": "linear",
    "train.weight_decay": 0.1,
    "train.clip": 0,
    "train.seed": 1,
    "train.micro_batch": 4,
    "train.checkpoint_every": 10,
    "train.gradient_checkpointing": "true",
    "train.group_by_length": "false",
    "route.top_k": 3,
    "route.scope": "global",
    "route.tokens": "all",
    "merge.gamma": 0.8,
    "merge.allow_any_gamma": "true",
    "merge.space": "product",
    "merge.routers": "momentum",
    "index.kind": "lda",
    "index.centers": 8,
    "index.feature": "question-last",
    "index.shrinkage": 0.2,
    "index.seed": 1,
    "eval.beta": 0.6,
    "eval.split": "val",
    "eval.max_new_tokens": 20,
    "eval.oracle_task": "true",
    "eval.batch_size": 8,
    "index.soft": 0.1,
    "index.noise": 0.1,
    "protocol.task_known": "true",
    "report.scorer": "vqa",
    "report.seed": 1,
    "report.resamples": 100,
    "runtime.device": "cpu",
    "runtime.threads": 1,
}
EWC = "strategy.kind=ewc strategy.strength=1"
# What these change depends on another key, which is given with them.
TOGETHER = {
    "data.suffixes": ("{color: A color.}", "protocol.task_known=true"),
    "eval.seed": (1, "index.noise=0.1"),
    "strategy.strength": (2, EWC),
    "strategy.decay": (0.5, EWC),
    "strategy.samples": (3, EWC),
    "strategy.memory": (30, "strategy.kind=er"),
    "strategy.policy": ("reservoir", "strategy.kind=er"),
    "strategy.alpha": (2, "strategy.kind=der"),
    "strategy.beta": (2, "strategy.kind=derpp"),
    "strategy.margin": (0.2, "strategy.kind=vs"),
    "strategy.top_logits": (10, "strategy.kind=der"),
    "strategy.question_momentum": (0.1, "strategy.kind=vqacl"),
    "strategy.picture_momentum": (0.1, "strategy.kind=vqacl"),
}
CHANGES_THE_GRAPH = {
    "protocol.order", "protocol.joint", "protocol.per_task", "merge.rule", "strategy.kind",
    "eval.rows",
}  # fmt: skip
CHANGES_OTHER_KEYS = {"method.name"}
NOT_IN_ROW_0 = {"eval.beta", "eval.oracle_task", "index.shrinkage", "index.soft", "index.noise"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("runs"))
    bring_up_to_date(run)
    return run


def changed(run: Run, *overrides: str) -> Run:
    """The same run as it would be with other values; nothing is written."""
    resolved = resolve_text("name: shapes", origin="test", overrides=overrides)
    return Run(run.runs_dir, name=run.name, resolved=resolved)


def declares(node: Node, key: str) -> bool:
    if node.stage not in keys()[key].stages:
        return False
    if node.stage == "merge" and node.position == 1:
        return False  # nothing to merge: theta_1 = phi_1 under any setting
    return not (node.stage == "eval" and node.position == 0 and key in NOT_IN_ROW_0)


def test_the_table_has_every_key() -> None:
    tables = set(OTHER) | set(TOGETHER) | CHANGES_THE_GRAPH | CHANGES_OTHER_KEYS
    assert tables == set(keys())


@pytest.mark.parametrize("key", TOGETHER)
def test_a_key_counts_where_its_other_key_does(finished: Run, key: str) -> None:
    value, other = TOGETHER[key]
    setting = f"{key}={value}"
    without, with_ = (changed(finished, *other.split(), *more) for more in ([], [setting]))
    [stage] = keys()[key].stages
    if key != "data.suffixes":  # which is refused without the other key
        assert all(state.status == "fresh" for state in changed(finished, setting).states())
    nodes = [node for node in with_.nodes() if node.stage == stage and node.position != 0]
    assert nodes
    for node in nodes:
        assert with_.plan.part(node) != without.plan.part(node), node.label


@pytest.mark.parametrize("key", OTHER)
def test_exactly_the_declared_stages(finished: Run, key: str) -> None:
    run = changed(finished, f"{key}={OTHER[key]}")
    states = {state.node: state for state in run.states()}
    named = {
        node.label
        for node, state in states.items()
        if any(reason.startswith(f"{key} ") for reason in state.reasons)
    }
    assert named == {node.label for node in states if declares(node, key)}
    stale = set(named)
    for node in states:  # execution order: what a node reads comes before it
        cells = {other.label for other in states if other.stage == "eval"}
        if any(read.node.label in stale for read in run.plan.reads(node, cells=cells)):
            stale.add(node.label)
    assert {n.label for n, s in states.items() if s.status == "stale"} == stale
    assert all(s.status == "fresh" for n, s in states.items() if n.label not in stale)


def test_speed_and_labels_change_nothing(finished: Run) -> None:
    free = [key for key, known in keys().items() if not known.stages and key in OTHER]
    assert len(free) == 10
    run = changed(finished, *(f"{key}={OTHER[key]}" for key in free))
    assert all(state.status == "fresh" for state in run.states())


def test_a_method_is_only_its_keys(finished: Run) -> None:
    run = changed(finished, "method.name=mmoe", "eval.beta=0.5")
    assert [state.node.label for state in run.states() if state.status != "fresh"] == ["report"]


def test_another_order_leaves_what_does_not_depend_on_it(finished: Run) -> None:
    run = changed(finished, "protocol.order=recognition,color,location")
    fresh = {state.node.label for state in run.states() if state.status == "fresh"}
    assert "prepare" in fresh
    assert {label for label in fresh if "01-recognition" in label} == {
        "train/01-recognition", "route/01-recognition", "merge/01-recognition",
        "index/01-recognition", "eval/after-01-recognition/recognition",
    }  # fmt: skip
    assert not {label for label in fresh if "02-" in label or "03-" in label}
    stored = {state.node.label for state in run.states() if state.stored} - fresh
    assert stored == {"index/02-color", "index/03-location"}


def test_no_merge_keeps_the_first_task(finished: Run) -> None:
    run = changed(finished, "merge.rule=none")
    states = {state.node.label: state for state in run.states()}
    assert not [label for label in states if label.startswith("merge/")]
    assert states["train/01-recognition"].status == "fresh"
    assert states["train/02-location"].status == "fresh"  # theta_1 = phi_1, byte for byte
    assert states["eval/after-01-recognition/recognition"].status == "fresh"
    assert states["train/03-color"].text == "stale: train/02-location changed"


def test_joint_training_is_one_node(finished: Run) -> None:
    run = changed(finished, "protocol.joint=true", "adapter.experts=1", "eval.beta=1")
    labels = [node.label for node in run.nodes()]
    assert labels[4:6] == ["train/00-all", "eval/after-03-all/recognition"]
    assert [label for label in labels if label.startswith(("merge", "route", "index"))] == []


def test_the_base_itself(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    one = changed(finished, f"base.model={tmp_path}")
    before = one.state(Node("index", "location")).fingerprint
    (tmp_path / "config.json").write_text('{"layers": 2}', encoding="utf-8")
    assert one.state(Node("index", "location")).fingerprint != before

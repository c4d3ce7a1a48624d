"""A method's fingerprint has its own keys; those of other methods stand at their defaults."""

from __future__ import annotations

from typing import Any

import pytest

from clmoe.errors import UsageError
from clmoe.recipe import PRESETS, resolve_text
from clmoe.recipe.schema import Strategy
from clmoe.recipe.strategy_keys import USED
from clmoe.runs import Plan
from clmoe.runs.identities import identities

TASKS = ("recognition", "location", "color")
WEIGHT = "strategy.strength=1"  # which the penalties must be given
OTHER: dict[str, Any] = {
    "strength": 10,
    "decay": 0.5,
    "samples": 3,
    "memory": 30,
    "policy": "reservoir",
    "alpha": 2,
    "beta": 2,
    "margin": 0.2,
    "top_logits": 10,
    "question_momentum": 0.1,
    "picture_momentum": 0.1,
}
DEFAULT_PART = {
    "strategy.kind": "er",
    "strategy.strength": 1.0,
    "strategy.decay": 1.0,
    "strategy.samples": 200,
    "strategy.memory": 5000,
    "strategy.policy": "equal",
    "strategy.alpha": 1.0,
    "strategy.beta": 1.0,
    "strategy.margin": 0.1,
    "strategy.top_logits": 64,
    "strategy.question_momentum": 0.5,
    "strategy.picture_momentum": 0.3,
}


def plan(*overrides: str) -> Plan:
    return Plan(resolve_text("", origin="x", overrides=[WEIGHT, *overrides]).recipe, TASKS)


def test_every_kind_and_every_key_is_in_the_table() -> None:
    kinds = Strategy.model_json_schema()["properties"]["kind"]["enum"]
    assert list(USED) == kinds
    fields = set(Strategy.model_fields) - {"kind"}
    assert fields == set(OTHER) == {name for used in USED.values() for name in used}


@pytest.mark.parametrize("kind", USED)
@pytest.mark.parametrize("name", OTHER)
def test_a_key_counts_where_its_method_uses_it(kind: str, name: str) -> None:
    plain = identities(plan(f"strategy.kind={kind}"))
    other = identities(plan(f"strategy.kind={kind}", f"strategy.{name}={OTHER[name]}"))
    changed = {label for label in plain if plain[label] != other[label]}
    assert bool(changed) is (name in USED[kind])
    assert not changed or {label for label in changed if label.startswith("train/")}


def test_at_the_defaults_every_key_is_in_the_part() -> None:
    made = plan("method.name=er")
    part = made.part(made.train(2))
    found = {key: value for key, value in part.items() if key.startswith("strategy.")}
    assert found == DEFAULT_PART
    unused = plan("method.name=er", "strategy.strength=10")
    assert unused.part(unused.train(2)) == part


@pytest.mark.parametrize("kind", [kind for kind in USED if kind != "none"])
@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("per_task", "trains each adapter alone, from the base"),
        ("joint", "trains all tasks at once"),
    ],
)
def test_a_method_needs_tasks_one_after_another(kind: str, key: str, why: str) -> None:
    given = [f"strategy.kind={kind}", f"protocol.{key}=true", WEIGHT]
    with pytest.raises(UsageError) as caught:
        resolve_text("", origin="x", overrides=given)
    assert str(caught.value).splitlines()[1:] == [
        f"  protocol.{key} {why}, so strategy.kind {kind} has no earlier task to hold or to "
        f"replay: set strategy.kind=none, or protocol.{key}=false"
    ]


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_resolves(method: str) -> None:
    assert resolve_text("", origin="x", overrides=[f"method.name={method}", WEIGHT])


def test_the_choice_of_an_adapter_has_no_softness() -> None:
    hard, soft = plan("method.name=pertask"), plan("method.name=pertask", "index.soft=1")
    assert identities(hard) == identities(soft)
    mixed = ["method.name=pertask", "adapter.experts=8", "eval.beta=0.5"]
    assert identities(plan(*mixed)) != identities(plan(*mixed, "index.soft=1"))

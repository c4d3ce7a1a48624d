"""Every key is documented, shipped recipes hold, fingerprints are canonical, explain explains."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clmoe.errors import UsageError
from clmoe.recipe import (
    PRESETS,
    STAGES,
    Recipe,
    canonical_json,
    explain,
    fingerprint,
    keys,
    load_recipe,
    recipe_part,
    shipped_recipes,
    stage_keys,
)
from clmoe.recipe.schema import METHOD_NAMES

TASKS = ("shape", "color", "has_shape", "has_color", "no_shape", "no_color")


@pytest.mark.parametrize("name", keys())
def test_every_key_is_documented(name: str) -> None:
    key = keys()[name]
    assert key.help
    assert key.type
    assert set(key.stages) <= set(STAGES)
    assert explain(name).help == key.help
    assert Recipe().get(name) == (
        list(key.default) if isinstance(key.default, tuple) else key.default
    )


def test_keys_of_presets_exist() -> None:
    for preset in PRESETS.values():
        assert set(preset.values) <= set(keys())
        assert preset.help


def test_explain() -> None:
    gamma = explain("merge.gamma")
    assert (gamma.symbol, gamma.stages, gamma.default) == ("gamma", ("merge",), 0.7)
    assert gamma.effect == "changing it makes stale: merge, and what they change downstream"
    assert explain("train.micro_batch").effect == "changing it makes nothing stale"
    one = set(METHOD_NAMES) - {"clmoe", "mmoe", "rmoe", "moelora"}
    assert explain("adapter.experts").presets == dict.fromkeys(one, 1)
    with pytest.raises(UsageError, match="lr is not a key of a recipe; did you mean 'train.lr'"):
        explain("lr")
    with pytest.raises(UsageError, match="did you mean 'data.seed' or 'train.seed' or"):
        explain("seed")


def test_seeds_belong_to_their_stage() -> None:
    assert keys()["data.seed"].stages == ("prepare",)
    assert keys()["train.seed"].stages == ("train",)
    assert "eval.batch_size" not in stage_keys("eval")


def test_shipped_recipes() -> None:
    found = {recipe.name: recipe.description for recipe in shipped_recipes()}
    assert set(found) >= {"shapes", "easy_vqa", "vqa_v2", "paper", "released"}
    assert all(found.values())
    for name in found:
        assert load_recipe(name).recipe.name == name


def test_the_default_recipe() -> None:
    assert load_recipe(None).recipe == load_recipe("shapes").recipe
    recipe = load_recipe("shapes").recipe
    assert recipe.adapter.alpha == 2 * recipe.adapter.rank
    assert recipe.base.model == "tiny"
    assert recipe.data.source == "shapes"


def test_the_settings_of_the_paper() -> None:
    recipe = load_recipe("vqa_v2").recipe
    assert recipe.base.model == "llava-hf/llava-1.5-7b-hf"
    assert (recipe.adapter.experts, recipe.adapter.rank, recipe.adapter.alpha) == (8, 64, 128)
    assert (recipe.route.top_k, recipe.merge.gamma, recipe.eval.beta) == (2, 0.7, 0.5)
    assert (recipe.train.batch_size, recipe.train.lr, recipe.train.epochs) == (16, 2e-4, 1)
    assert (recipe.train.schedule, recipe.data.turns) == ("cosine", "image")
    released = load_recipe("released").recipe.adapter
    assert (released.experts, released.rank) == (4, 32)
    assert (released.targets, released.routers) == ("all-linear", "per-linear")


def test_easy_vqa() -> None:
    data = load_recipe("easy_vqa").recipe.data
    assert data.tasks == TASKS
    assert data.balance_answers
    assert (data.train_per_task, data.test_per_task) == (2400, 600)


def test_a_part_has_its_stage_alone() -> None:
    part = recipe_part(Recipe(), stage="route")
    assert set(part) == {
        "base.model", "base.revision", "base.dtype", "base.prompt",
        "route.top_k", "route.scope", "route.tokens",
    }  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(), JSON))
def test_fingerprints_do_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    assert fingerprint(value) == fingerprint(turned)


def test_canonical_json() -> None:
    assert canonical_json({"b": 1e-4, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":0.0001}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))

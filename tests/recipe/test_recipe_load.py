"""Recipes: which value holds, every problem at once, and text that can be moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from clmoe.errors import UsageError
from clmoe.events import Event, Note, subscribe
from clmoe.recipe import PRESETS, Recipe, load_recipe, resolve_text
from clmoe.recipe.schema import METHOD_NAMES, Merge


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as failure:
        resolve_text(text, origin="mine.yaml", overrides=overrides)
    return [line.strip() for line in str(failure.value).splitlines()[1:]]


def test_all_problems_at_once() -> None:
    text = """
name: x
trian: {lr: 1}
train: {lr: fast, batchsize: 4}
adapter: {experts: 3}
merge: {gamma: 0.5}
data: {tasks: [a, a], turns: images}
method: {name: vanila}
methods: {vanilia: {train.lr: 1}, mmoe: {train.lrr: 1}}
eval: 3
"""
    assert problems(text, "eval.beta=2", "gamma=1", "route.top_k") == [
        "mine.yaml: methods.vanilia is not a method; did you mean 'vanilla'?",
        "mine.yaml: train.lrr is not a key of a recipe; did you mean 'train.lr'?",
        "mine.yaml: trian is not a key of a recipe; did you mean 'train.lr'?",
        "mine.yaml: train.batchsize is not a key of a recipe; did you mean 'train.batch_size'?",
        "mine.yaml: eval is a section: write its keys below it",
        "gamma is not a key of a recipe; did you mean 'merge.gamma'?",
        "override 'route.top_k' is not KEY=VALUE",
        "data.tasks: named twice: a (it is ['a', 'a'])",
        "data.turns: 'images' is not one of question, image; did you mean 'image'?",
        "adapter.rank 64 is not a multiple of adapter.experts 3: each expert has rank r / n",
        "train.lr: must be a valid number, unable to parse string as a number (it is 'fast')",
        "merge.gamma 0.5 is outside (0.5, 1]: Eq 10 keeps a share gamma of experts that tasks "
        "share and 1 - gamma of task-specific ones, so at 0.5 or less the shared experts move at "
        "least as much as the specific ones (merge.allow_any_gamma=true accepts it)",
        "eval.beta: must be less than or equal to 1 (it is 2)",
        f"method.name: 'vanila' is not one of {', '.join(METHOD_NAMES)}; did you mean 'vanilla'?",
    ]


def test_a_suffix_that_shows_the_task_needs_permission() -> None:
    text = "data: {suffixes: {count: A number.}}"
    assert problems(text) == [
        "data.suffixes shows the task of a question to the model, which no method may know: "
        "leave it out, or set protocol.task_known=true, which marks every table"
    ]
    allowed = resolve_text(text, origin="x", overrides=["protocol.task_known=true"])
    assert allowed.recipe.data.suffixes == {"count": "A number."}


@pytest.mark.parametrize(("value", "kept"), [("auto", "auto"), ("4", 4), ("null", None)])
def test_a_micro_batch_is_a_number_or_auto(value: str, kept: object) -> None:
    resolved = resolve_text("", origin="x", overrides=[f"train.micro_batch={value}"])
    assert resolved.recipe.train.micro_batch == kept
    assert "train.micro_batch: 'many' is not one of auto" in problems("", "train.micro_batch=many")


@pytest.mark.parametrize("gamma", [0.5, 0.0, 1.01, -1])
def test_gamma_needs_permission(gamma: float) -> None:
    assert "is outside (0.5, 1]" in problems(f"merge.gamma: {gamma}")[0]
    resolved = resolve_text(
        f"merge.gamma: {gamma}", origin="x", overrides=["merge.allow_any_gamma=true"]
    )
    assert resolved.recipe.merge.gamma == gamma
    assert Merge(gamma=1).gamma == 1


@pytest.mark.parametrize("method", ["ewc", "mas"])
def test_the_weight_of_a_penalty_has_no_default(method: str) -> None:
    (problem,) = problems("", f"method.name={method}")
    assert problem.startswith("strategy.strength is not set: how much")
    chosen = resolve_text(
        "", origin="x", overrides=[f"method.name={method}", "strategy.strength=1"]
    )
    assert chosen.recipe.strategy.strength == 1
    assert resolve_text("", origin="x", overrides=["method.name=er"]).recipe.strategy.kind == "er"
    for recipe in ("shapes", "vqa_v2"):
        overrides = [f"method.name={method}", "data.root=/nowhere"]
        assert load_recipe(recipe, overrides=overrides).recipe.strategy.strength != 1


@pytest.mark.parametrize(
    "text", ["- a list", "train: {lr: 1", "a: 1\na: 2", "train: {lr: 1, lr: 2}"]
)
def test_not_a_recipe(text: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.yaml"):
        resolve_text(text, origin="mine.yaml")


def test_overrides_are_yaml_and_the_last_holds() -> None:
    given = ["train.lr=1e-4", "data.tasks=a, b", "data.suffix=yes", "train.lr=3e-4",
             "data.columns={question: q}", "data.root=null", "protocol.order=b,a"]  # fmt: skip
    resolved = resolve_text("", origin="x", overrides=given)
    recipe = resolved.recipe
    assert (recipe.train.lr, recipe.data.tasks, recipe.data.suffix) == (3e-4, ("a", "b"), "yes")
    assert (recipe.data.columns, recipe.data.root) == ({"question": "q"}, None)
    assert recipe.protocol.order == ("b", "a")
    assert len(resolved.overrides) == 6
    again = resolve_text("", origin="x", overrides=resolved.overrides)
    assert (again.recipe, again.overrides) == (recipe, resolved.overrides)


def test_a_method_sets_its_keys_unless_they_are_given_with_it() -> None:
    text = "adapter: {experts: 8}\nmerge.gamma: 0.8"
    vanilla = resolve_text(text, origin="x", overrides=["method.name=vanilla"])
    assert {key: vanilla.recipe.get(key) for key in PRESETS["vanilla"].values} == dict(
        PRESETS["vanilla"].values
    )
    assert vanilla.recipe.merge.gamma == 0.8
    assert vanilla.origins["adapter.experts"] == "preset vanilla"
    both = resolve_text(text, origin="x", overrides=["method.name=vanilla", "adapter.experts=2"])
    assert both.recipe.adapter.experts == 2
    file = resolve_text("method.name: vanilla\nadapter.experts: 2", origin="x")
    assert file.recipe.adapter.experts == 2
    assert file.recipe.merge.rule == "none"
    other = resolve_text("method.name: vanilla", origin="x", overrides=["method.name=clmoe"])
    assert other.recipe.adapter.experts == 8


@pytest.mark.parametrize("method", PRESETS)
def test_every_method_is_a_valid_recipe(method: str) -> None:
    events: list[Event] = []
    with subscribe(events.append):
        recipe = load_recipe("shapes", overrides=[f"method.name={method}"]).recipe
    assert recipe.method.name == method
    assert recipe.protocol.joint == (method == "multitask")
    assert (recipe.adapter.experts == 1) == (method not in ("clmoe", "mmoe", "rmoe", "moelora"))
    assert events == []


def test_settings_of_one_method() -> None:
    text = """
train.lr: 3.0e-3
methods:
  vanilla: {train.lr: 1.0e-3, train: {epochs: 2}}
  mmoe: {train.lr: 2.0e-3}
"""

    def lr(*overrides: str) -> float:
        return resolve_text(text, origin="x", overrides=overrides).recipe.train.lr

    assert lr() == 3e-3
    assert lr("method.name=vanilla") == 1e-3
    assert lr("method.name=mmoe") == 2e-3
    assert lr("method.name=vanilla", "train.lr=5e-3") == 5e-3
    resolved = resolve_text(text, origin="x", overrides=["method.name=vanilla"])
    assert resolved.recipe.train.epochs == 2
    assert resolved.origins["train.lr"] == "methods.vanilla"
    assert problems("methods: {vanilla: {method.name: ema}}") == [
        "mine.yaml: methods.vanilla cannot set method.name"
    ]


def test_include_and_text_that_can_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    write(
        tmp_path, "low.yaml", "train.lr: 1.0e-5\nadapter.experts: 4\nmethods: {ema: {train.lr: 9}}"
    )
    top = write(
        tmp_path,
        "top.yaml",
        "include: [low.yaml, paper]\nmethod.name: vanilla\ndata.images: pictures\ntrain.epochs: 3",
    )
    resolved = load_recipe(top)
    recipe = resolved.recipe
    assert (recipe.train.lr, recipe.train.epochs) == (2e-4, 3)  # paper comes after low
    assert recipe.data.images == tmp_path / "pictures"
    assert recipe.adapter.experts == 1
    monkeypatch.chdir("/")
    moved = resolve_text(resolved.source_text, origin="copy")
    assert moved.recipe == recipe
    assert (
        resolve_text(resolved.source_text, origin="copy", overrides=["method.name=clmoe"]).recipe
        == load_recipe(top, overrides=["method.name=clmoe"]).recipe
    )
    assert (
        resolve_text(
            resolved.source_text, origin="copy", overrides=["method.name=ema"]
        ).recipe.train.lr
        == 9
    )


def test_text_is_kept_as_it_is_where_it_can_be(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "# mine\nname: a   # a comment\n")
    assert load_recipe(path).source_text == "# mine\nname: a   # a comment\n"


def test_paths_of_overrides_are_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llava").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["data.root=vqa", "base.model=llava"]
    resolved = resolve_text("", origin="x", overrides=given)
    assert resolved.overrides == (f"data.root={tmp_path}/vqa", f"base.model={tmp_path}/llava")
    assert (
        resolve_text("", origin="x", overrides=["base.model=org/no"]).recipe.base.model == "org/no"
    )


def test_includes_that_cannot_be(tmp_path: Path) -> None:
    one = write(tmp_path, "one.yaml", "include: two.yaml")
    write(tmp_path, "two.yaml", "include: one.yaml")
    with pytest.raises(UsageError, match="recipes include each other"):
        load_recipe(one)
    with pytest.raises(UsageError, match=r"no recipe 'thre\.yaml'"):
        load_recipe(write(tmp_path, "x.yaml", "include: thre.yaml"))


def test_a_name_that_is_nearly_one() -> None:
    with pytest.raises(
        UsageError, match=r"no recipe 'shape': .*; did you mean 'shapes'\?"
    ) as failure:
        load_recipe("shape")
    assert failure.value.hint == "clmoe recipes list"


def test_more_experts_of_a_task_than_there_are() -> None:
    events: list[Event] = []
    with subscribe(events.append):
        assert (
            resolve_text("adapter.experts: 2\nroute.top_k: 4", origin="x").recipe.route.top_k == 2
        )
        assert resolve_text("adapter.experts: 1", origin="x").recipe.route.top_k == 1
    warning = "route.top_k 4 is more than adapter.experts 2: 2 is used"
    assert events == [Note(warning, level="warning")]


def test_recipes_are_frozen_and_round_trip() -> None:
    recipe = load_recipe("vqa_v2").recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.lr = 1
    with pytest.raises(KeyError):
        recipe.get("train.lrr")

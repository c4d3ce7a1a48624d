"""Study files: every problem at once, points and names of runs, orders, shipped studies."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from clmoe.errors import UsageError
from clmoe.recipe import load_recipe
from clmoe.recipe.study import find_study, shipped_studies
from clmoe.recipe.study_cells import Cell, load_study, random_orders, study_cells

TASKS = ("a", "b", "c", "d")


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def cells_of(folder: Path, text: str, *overrides: str) -> tuple[Cell, ...]:
    study = load_study(write(folder, text), overrides=overrides)
    return study_cells(study, tasks_of=lambda resolved, name: TASKS, overrides=overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as failure:
        load_study(write(folder, text), overrides=overrides)
    assert failure.value.exit_code == 2
    return [line.strip() for line in str(failure.value).splitlines()[1:]]


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = """
nam: x
recipe: shappes
train.lr: 1
gird: 2
overrides: {trian.lr: 1, eval: 3, name: y}
grid: {merge.gamma: 0.7, method.name: [vanilla, vanilla], train: {lrr: [1]}}
runs: [3, {name: "a b", eval.betta: 1}]
seeds: [0, 0]
orders: {randm: 1, forward: 2, random: -1}
"""
    assert problems(tmp_path, text) == [
        "nam is not a field of a study; did you mean 'name'?",
        "train.lr is not a field of a study: it is a key of a recipe, so write it below "
        "overrides, grid or runs",
        "gird is not a field of a study; did you mean 'grid'?",
        "grid: train.lrr is not a key of a recipe; did you mean 'train.lr'?",
        "grid: merge.gamma must be a list of values",
        "grid: method.name has vanilla twice",
        "runs 1 must be a mapping of keys (it is 3)",
        "runs 2: the name 'a b' cannot be part of a run's name",
        "runs 2: eval.betta is not a key of a recipe; did you mean 'eval.beta'?",
        "name is missing: it begins the name of each run",
        "no recipe 'shappes': neither a shipped recipe (easy_vqa, paper, released, shapes, vqa_v2) "
        "nor a file; did you mean 'shapes'?",
        "overrides: trian.lr is not a key of a recipe; did you mean 'train.lr'?",
        "overrides: eval is a section: write its keys below it",
        "overrides: name cannot be set: the study names its runs",
        "seeds must be a list of different whole numbers from 0 on (it is [0, 0])",
        "orders: randm is not a field of orders; did you mean 'random'?",
        "orders: forward must be true or false (it is 2)",
        "orders: random must be a whole number (it is -1)",
    ]


def test_what_the_recipes_say_is_told_once_with_the_run_that_shows_it(tmp_path: Path) -> None:
    text = """
name: x
recipe: shapes
overrides: {train.lr: fast}
grid: {merge.gamma: [0.4, 0.7], method.name: [clmoe, vanila]}
"""
    found = problems(tmp_path, text, "train.ler=1", "merge.gamma=0.8")
    assert found[0] == "override merge.gamma=0.8: merge.gamma varies in this study"
    assert found[1] == "train.ler is not a key of a recipe; did you mean 'train.lr'?"
    assert found[2].startswith("train.lr: must be a valid number")
    assert found[3].startswith("merge.gamma 0.4 is outside (0.5, 1]")
    assert found[3].endswith("[gamma0.4, clmoe]")
    assert found[4].startswith("method.name: 'vanila' is not one of clmoe, vanilla")
    assert found[4].endswith("did you mean 'vanilla'? [gamma0.4, vanila]")
    assert len(found) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x\nrecipe: shapes\n", "nothing varies: give grid, runs, seeds or orders"),
        ("name: x\nrecipe: shapes\nseeds: 3\n", "seeds must be a list of different whole numbers"),
        (
            "name: x\nrecipe: shapes\nseeds: [1]\ngrid: {train.seed: [1, 2]}\n",
            "train.seed is given twice: by seeds and by its key",
        ),
        (
            "name: x\nrecipe: shapes\norders: {}\noverrides: {protocol.order: reverse}\n",
            "protocol.order is given twice: by orders and by its key",
        ),
        (
            "name: x\nrecipe: shapes\norders: {forward: false, reverse: false}\n",
            "orders: there is no order",
        ),
        ("name: -x\nrecipe: shapes\nseeds: [1]\n", "name: '-x' cannot begin the name of a run"),
    ],
)
def test_single_problems(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in problems(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is not a mapping with name, recipe, overrides, grid, runs, seeds, orders"),
        ("a: [", "not valid YAML"),
        ("name: a\nname: b", "name is written twice"),
    ],
)
def test_files_that_are_no_study(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_study(write(tmp_path, text))


def test_points_names_and_values(tmp_path: Path) -> None:
    text = """
# What it shows.
name: mix
recipe: shapes
overrides: {train: {epochs: 2}}
grid:
  - {method.name: [clmoe, ema], merge.gamma: [0.6, 0.7]}
  - {route: {top_k: [1, 2]}}
runs:
  - {name: soft, index.kind: lda, eval.oracle_task: true}
  - {train.lr: 1e-3, report.seed: 1, index.seed: 2}
seeds: [0, 5]
"""
    found = cells_of(tmp_path, text, "train.batch_size=8")
    assert [cell.run for cell in found][:7] == [
        "mix-clmoe-gamma0.6-seed0", "mix-clmoe-gamma0.7-seed0", "mix-ema-gamma0.6-seed0",
        "mix-ema-gamma0.7-seed0", "mix-top_k1-seed0", "mix-soft-seed0",
        "mix-lr0.001-report.seed1-index.seed2-seed0",
    ]  # fmt: skip
    assert [cell.run[-1] for cell in found] == ["0"] * 7 + ["5"] * 7
    first, soft = found[0], found[5]
    assert set(first.values) == {
        "method.name", "merge.gamma", "route.top_k", "index.kind", "eval.oracle_task", "train.lr",
        "report.seed", "index.seed", "train.seed",
    }  # fmt: skip
    assert (first.values["merge.gamma"], first.values["route.top_k"]) == (0.6, 2)
    assert (soft.values["name"], soft.values["index.kind"]) == ("soft", "lda")
    recipe = first.resolved.recipe
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.merge.gamma) == (2, 8, 0.6)


def test_equal_recipes_are_one_run(tmp_path: Path) -> None:
    """top_k 2 is the recipe's own, and so is gamma 0.7: two sweeps meet in one run."""
    text = """
name: x
recipe: shapes
grid: [{merge.gamma: [0.7, 0.8]}, {route.top_k: [1, 2]}]
"""
    assert [cell.run for cell in cells_of(tmp_path, text)] == [
        "x-gamma0.7", "x-gamma0.8", "x-top_k1",
    ]  # fmt: skip


def test_names_are_unique_short_and_of_plain_characters(tmp_path: Path) -> None:
    text = """
name: x
recipe: shapes
grid: {base.model: [a/b, a b], data.tasks: [[recognition, location, judge, count, color], null]}
"""
    names = [cell.run for cell in cells_of(tmp_path, text)]
    assert len(set(names)) == 4
    for name in names:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ._-")
        assert len(name) < 100


def test_overrides_give_the_same_recipe_again(tmp_path: Path) -> None:
    """What --print-commands prints is all there is to a run."""
    text = """
name: x
recipe: shapes
overrides: {data.root: files, data.columns: {image: "a, b"}, data.suffix: "null"}
grid: {data.tasks: [[recognition], [recognition, location]], train.lr: [1.0e-3]}
orders: {random: 1}
"""
    for cell in cells_of(tmp_path, text):
        again = load_recipe("shapes", overrides=cell.overrides)
        assert again.recipe == cell.resolved.recipe
        assert again.recipe.data.root == tmp_path / "files"
        assert again.recipe.data.suffix == "null"


def test_a_recipe_beside_the_study(tmp_path: Path) -> None:
    write(tmp_path, "include: shapes\ntrain.lr: 0.5\n", "base.yaml")
    study = load_study(write(tmp_path, "name: x\nrecipe: base.yaml\nseeds: [1]\n"))
    assert study.recipe == str(tmp_path / "base.yaml")
    (cell,) = study_cells(study, tasks_of=lambda resolved, name: ())
    assert (cell.run, cell.resolved.recipe.train.lr) == ("x-seed1", 0.5)


class TestOrders:
    """forward, reverse and permutations that follow from the seed."""

    TEXT = "name: x\nrecipe: shapes\norders: {random: 2, seed: 3}\nseeds: [0]\n"

    def test_names_and_values(self, tmp_path: Path) -> None:
        found = cells_of(tmp_path, self.TEXT)
        assert [cell.run for cell in found] == [
            "x-forward-seed0", "x-reverse-seed0", "x-random3.1-seed0", "x-random3.2-seed0",
        ]  # fmt: skip
        drawn = [tuple(cell.values["protocol.order"]) for cell in found[2:]]
        assert drawn == random_orders(TASKS, count=2, seed=3)
        assert found[2].resolved.recipe.protocol.order == drawn[0]

    def test_tasks_are_asked_for_only_where_orders_are_random(self, tmp_path: Path) -> None:
        asked: list[str] = []

        def tasks(resolved: object, name: str) -> tuple[str, ...]:
            asked.append(name)
            return TASKS

        study_cells(load_study(write(tmp_path, self.TEXT)), tasks_of=tasks)
        assert asked == ["x-forward-seed0"]
        plain = self.TEXT.replace("random: 2, ", "")
        study_cells(load_study(write(tmp_path, plain)), tasks_of=tasks)
        assert asked == ["x-forward-seed0"]

    def test_more_orders_add_to_the_list_and_none_is_forward_or_reverse(self) -> None:
        every = random_orders(TASKS, count=22, seed=0)
        assert set(every) == set(permutations(TASKS)) - {TASKS, TASKS[::-1]}
        assert random_orders(TASKS, count=5, seed=0) == every[:5]
        assert random_orders(TASKS, count=5, seed=1) != every[:5]

    def test_there_are_only_so_many(self) -> None:
        with pytest.raises(UsageError) as failure:
            random_orders("abc", count=5, seed=0)
        assert str(failure.value) == (
            "orders: 5 random orders of 3 tasks, but besides forward and reverse there are 4"
        )


class TestShipped:
    """The paper's tables and figure, each with a twin that runs on a CPU."""

    NAMES = (
        "figure3_gamma_beta", "table1", "table2_ablation", "table3_experts", "table4_order",
    )  # fmt: skip

    def test_each_has_a_twin(self) -> None:
        twins = [f"{name}_shapes" for name in self.NAMES]
        wanted = sorted([*self.NAMES, *twins, "rates", "rates_shapes", "memory_shapes"])
        assert [study.name for study in shipped_studies()] == wanted
        assert all(study.description for study in shipped_studies())

    @pytest.mark.parametrize("name", NAMES)
    def test_on_vqa_v2_at_the_papers_settings(self, name: str) -> None:
        study = load_study(name, overrides=["data.root=/nowhere"])
        found = study_cells(study, tasks_of=lambda resolved, name: TASKS)
        for cell in found:
            recipe = cell.resolved.recipe
            assert (recipe.data.source, recipe.base.model) == (
                "vqa_v2", "llava-hf/llava-1.5-7b-hf",
            )  # fmt: skip
            assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.train.lr) == (64, 128, 2e-4)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_twin_has_the_same_runs(self, name: str) -> None:
        paper, twin = (
            {
                cell.run.split("-", 1)[1]
                for cell in study_cells(load_study(one), tasks_of=lambda resolved, name: TASKS)
            }
            for one in (name, f"{name}_shapes")
        )
        assert paper <= twin

    def test_the_values_of_the_paper(self) -> None:
        def values(name: str, key: str) -> list[object]:
            found = study_cells(load_study(name), tasks_of=lambda resolved, name: TASKS)
            swept = [cell for cell in found if not cell.run.endswith("-vanilla-seed0")]
            return sorted({cell.values[key] for cell in swept})

        assert values("table3_experts", "adapter.experts") == [1, 2, 4, 8]
        assert values("table3_experts", "route.top_k") == [1, 2, 3, 4]
        assert values("figure3_gamma_beta", "merge.gamma") == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
        assert values("figure3_gamma_beta", "eval.beta") == [0.1, 0.3, 0.5, 0.7, 0.9]
        assert values("table2_ablation", "method.name") == ["clmoe", "mmoe", "rmoe"]

    def test_unknown_names_are_near_some(self) -> None:
        with pytest.raises(UsageError) as failure:
            find_study("table1_shape")
        assert str(failure.value).endswith("nor a file; did you mean 'table1_shapes'?")
        with pytest.raises(UsageError, match="shapes is a recipe, not a study") as failure:
            find_study("shapes")
        assert failure.value.hint == "clmoe run shapes"

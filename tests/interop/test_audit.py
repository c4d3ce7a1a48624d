"""What an audit finds in one adapter, and between two."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clmoe.errors import ClmoeError, UsageError
from clmoe.interop.audit import compare, describe
from clmoe.interop.opened import open_adapter
from clmoe.stages.audit import audit
from tests.interop.layouts import LAYOUTS, random_experts, write_released

Write = Callable[..., Path]


def change(folder: Path, name: str, *, expert: int, by: float) -> None:
    """Add to one value of A_i (two rows an expert)."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[name][2 * expert, 0] += by
    save_file(tensors, path)


def cells(result: object, table: int) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in result.tables[table].rows}  # type: ignore[attr-defined]


class TestOne:
    """The contents of one adapter."""

    def test_numbers_by_hand(self, tmp_path: Path) -> None:
        experts = random_experts(everything=False, projector=False)
        for held in (experts.a, experts.b):
            for path in held:
                for i, tensor in enumerate(held[path]):
                    tensor.fill_(float(i))
        found = describe(open_adapter(write_released(tmp_path / "a", experts)))
        # Six linears, A_i is [2, 32] or [2, 48], B_i [48, 2] or [32, 2], all values i.
        values_of_a = 2 * (2 * 32 + 2 * 32 + 2 * 48)
        values_of_b = 2 * (48 * 2 + 48 * 2 + 32 * 2)
        for i, expert in enumerate(found.experts):
            assert expert.a == pytest.approx(i * sqrt(values_of_a))
            assert expert.b == pytest.approx(i * sqrt(values_of_b))
            # Each value of B_i A_i is 2 i^2; there are 32 * 48 of them in every linear.
            assert expert.product == pytest.approx(2 * i * i * sqrt(6 * 32 * 48))
            assert expert.dead == (6 if i == 0 else 0)
        assert found.norm_a == pytest.approx(sqrt((1 + 4 + 9) * values_of_a))
        assert found.parameters == 4 * (values_of_a + values_of_b) + 2 * 4 * (32 + 32 + 48)
        assert (found.bytes, found.dtypes) == (4 * found.parameters, ("F32",))
        assert (found.linears, found.routers, found.extras) == (6, 6, 0)

    def test_a_dead_expert_is_said(self, tmp_path: Path) -> None:
        experts = random_experts()
        for path in experts.b:
            experts.b[path][2].zero_()
        result = audit([write_released(tmp_path / "a", experts)])
        assert "expert 2 adds nothing: B_i is all zero in every linear" in result.notes
        assert cells(result, 1)["2"][-1] == "14 of 14"
        assert cells(result, 1)["1"][-1] == "0 of 14"

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_foreign_formats(self, layout: str, tmp_path: Path) -> None:
        source = write_released(tmp_path / "a", random_experts(), layout)
        before = sorted(tmp_path.rglob("*"))
        result = audit([source])
        assert sorted(tmp_path.rglob("*")) == before
        facts = cells(result, 0)
        assert facts["scaling alpha / r"] == ["24 / 8 = 3"]
        assert facts["adapted linears"] == ["14 (all-linear)"]
        assert facts["routers"] == ["14 (per-linear)"]
        assert result.data["adapters"][0]["format"] == facts["format"][0]
        assert any("task_embedding_dim" in note for note in result.notes)

    def test_a_folder_of_ours(self, ours: Write) -> None:
        facts = cells(audit([ours("a", 1)]), 0)
        assert facts["format"] == ["clmoe adapter"]
        assert facts["base model"] == ["some/base"]
        assert facts["routers"] == ["2 (per-block)"]


class TestTwo:
    """How two adapters differ."""

    def test_equal(self, ours: Write) -> None:
        result = audit([ours("a", 1), ours("b", 1)])
        # Two factors of four experts in three linears, and two routers.
        assert result.notes == ("the two are equal: all 26 tensors are the same bit for bit",)
        assert result.data["equal"] is True

    def test_one_value(self, ours: Write) -> None:
        a, b = ours("a", 1), ours("b", 1)
        name = "base_model.model.layers.10.mlp.gate.clmoe_A.weight"
        change(b, name, expert=2, by=0.5)
        result = audit([a, b])
        assert result.notes == (
            f"1 of 26 tensors differ; the largest change is in {name}, expert 2",
        )
        assert cells(result, 0)["A_i and B_i"][:3] == ["24", "1", "0.5"]
        assert cells(result, 0)["routers"] == ["2", "0", "0", "0"]
        changes = result.data["comparison"]["experts"]
        tensors = load_file(a / "adapter_model.safetensors")
        size = sum(
            float((t[4:6] if "_A" in n else t[:, 4:6]).square().sum())
            for n, t in tensors.items()
            if "router" not in n
        )
        assert changes == (0, 0, pytest.approx(0.5 / sqrt(size), rel=1e-5), 0)

    def test_the_sign_of_a_zero_is_a_difference(self, ours: Write, make_zero: Write) -> None:
        result = audit([make_zero("a", 0.0), make_zero("b", -0.0)])
        assert (
            "1 of 26 tensors differ; the largest change is in the sign of a zero"
            in (result.notes[0])
        )

    def test_a_foreign_and_an_imported_one_are_equal(self, tmp_path: Path) -> None:
        from clmoe.stages.foreign import import_adapter

        source = write_released(tmp_path / "a", random_experts(), "easycl")
        import_adapter(source, out=tmp_path / "b", base=None)
        assert compare(open_adapter(source), open_adapter(tmp_path / "b")).equal

    def test_a_projector_in_one_only_is_said(self, tmp_path: Path) -> None:
        one = write_released(tmp_path / "a", random_experts())
        two = write_released(tmp_path / "b", random_experts(projector=False))
        found = compare(open_adapter(one), open_adapter(two))
        assert len(found.only_one) == 4
        assert "not compared, because not all of them have it: " in audit([one, two]).notes[1]


@pytest.fixture
def make_zero(ours: Write) -> Write:
    def make(name: str, zero: float) -> Path:
        folder = ours(name, 1)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors["base_model.model.layers.0.mlp.gate.clmoe_B.weight"][0, 0] = zero
        save_file(tensors, path)
        return folder

    return make


class TestRefused:
    """One clear error each, and nothing changed on disk."""

    def test_another_rank_number_of_experts_or_base(self, ours: Write, tmp_path: Path) -> None:
        a = ours("a", 1)
        with pytest.raises(ClmoeError, match="the base is base and other") as caught:
            audit([a, ours("b", 1, base_model_name_or_path="some/other")])
        assert caught.value.hint == "they are adapters of different bases or settings"
        with pytest.raises(ClmoeError, match="alpha is 16.0 and 32.0"):
            audit([a, a, ours("c", 1, alpha=32.0)])
        foreign = write_released(tmp_path / "f", random_experts())
        with pytest.raises(ClmoeError, match="alpha is 16.0 and 24.0; .*and 49 more differences"):
            audit([a, foreign])
        audit([a, ours("d", 1, base_model_name_or_path="/elsewhere/base/")])

    def test_another_shape(self, ours: Write, make_wide: Path) -> None:
        with pytest.raises(ClmoeError, match=r"clmoe_A.weight is \[8, 12\] and \[8, 13\]"):
            audit([ours("a", 1), make_wide])

    def test_no_adapter(self, tmp_path: Path) -> None:
        (tmp_path / "x.txt").write_text("")
        with pytest.raises(ClmoeError, match=r"adapter_config.json is missing \(it holds x.txt\)"):
            audit([tmp_path])
        with pytest.raises(ClmoeError, match="there is no folder"):
            audit([tmp_path / "nowhere"])

    def test_cut_short(self, ours: Write) -> None:
        folder = ours("a", 1)
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ClmoeError, match="is damaged"):
            audit([folder])

    def test_a_bundle_of_a_newer_version(self, ours: Write) -> None:
        folder = ours("a", 1)
        (folder / "clmoe.json").write_text(json.dumps({"format": 99}))
        with pytest.raises(ClmoeError, match="written by a newer version of clmoe"):
            audit([folder])

    @pytest.mark.parametrize("count", [0, 4])
    def test_too_many_or_none(self, count: int, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=f"one, two or three adapters, not {count}"):
            audit([tmp_path] * count)


@pytest.fixture
def make_wide(ours: Write) -> Path:
    folder = ours("wide", 1)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.layers.0.mlp.gate.clmoe_A.weight"] = torch.ones(8, 13)
    save_file(tensors, path)
    return folder

"""Released adapters answer after the import as a slow loop over their experts does."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from clmoe.errors import ClmoeError, UsageError
from clmoe.interop.foreign import read_foreign
from clmoe.interop.import_folder import write_imported
from clmoe.model.adapter_file import load_adapter, read_tensors
from clmoe.model.adapter_info import read_adapter_info
from clmoe.stages.foreign import import_adapter
from clmoe_cli.app import main
from tests.interop.layouts import BASE, LAYOUTS, Experts, random_experts, write_released
from tests.model.conftest import llava_config

DECODER = "model.language_model.layers"


class SlowLinear(nn.Module):
    """The released forward pass, as its source has it: an addition for each expert, one by one."""

    def __init__(self, base: nn.Linear, experts: Experts, path: str) -> None:
        super().__init__()
        self.base, self.experts, self.path = base, experts, path

    def forward(self, x: Tensor) -> Tensor:
        found, experts = self.base(x), self.experts
        weights = torch.softmax(x @ experts.router[self.path].T, dim=-1)
        scaling = experts.alpha / experts.rank
        for i in range(experts.count):
            hidden = x @ experts.a[self.path][i].T
            added = hidden @ experts.b[self.path][i].T
            found = found + added * scaling * weights[..., i].unsqueeze(-1)
        return found


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(llava_config()).eval()


def imported(tmp_path: Path, experts: Experts, layout: str, **changes) -> Path:
    source = write_released(tmp_path / "source", experts, layout, **changes)
    import_adapter(source, out=tmp_path / "out", base=None)
    return tmp_path / "out"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_and_the_whole_model_answer_as_the_released_code(
    layout: str, llava: LlavaForConditionalGeneration, tmp_path: Path
) -> None:
    experts = random_experts(everything=layout != "mcitlib")
    slow = copy.deepcopy(llava)
    for path in experts.a:
        parent, _, name = f"{DECODER}.{path}".rpartition(".")
        module = slow.get_submodule(parent)
        setattr(module, name, SlowLinear(getattr(module, name), experts, path))
    for name, tensor in experts.projector.items():
        index, what = name.split(".")
        linear = slow.get_submodule(
            f"model.multi_modal_projector.linear_{1 if index == '0' else 2}"
        )
        getattr(linear, what).data = tensor.clone()
    model = load_adapter(copy.deepcopy(llava), imported(tmp_path, experts, layout)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path in experts.a:
            layer = model.get_base_model().get_submodule(f"{DECODER}.{path}")
            x = torch.randn(2, 5, layer.in_features, generator=generator)
            expected = slow.get_submodule(f"{DECODER}.{path}")(x)
            assert (layer(x) - expected).abs().max() < 1e-6 * max(1.0, float(expected.abs().max()))
            assert (layer(x) - layer.get_base_layer()(x)).abs().max() > 0.1
        ids = torch.cat([torch.full((2, 4), 63), torch.randint(3, 60, (2, 6))], dim=1)
        pixels = torch.randn(2, 3, 16, 16, generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        assert torch.allclose(model(**batch).logits, slow(**batch).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "format", "targets"),
    [
        ("official", "CL-MoE, official or MCITlib (one layout)", "all-linear"),
        ("mcitlib", "CL-MoE, official or MCITlib (one layout)", "all-linear"),
        ("easycl", "EasyCL", "all-linear"),
        ("coin", "CoIN", "all-linear"),
    ],
)
def test_what_was_recognised(layout: str, format: str, targets: str, tmp_path: Path) -> None:
    found = read_foreign(write_released(tmp_path / "a", random_experts(), layout))
    assert (found.format, found.info.targets, found.info.routers) == (
        format, targets, "per-linear"
    )  # fmt: skip
    assert (found.info.experts, found.info.rank, found.info.alpha) == (4, 8, 24.0)
    assert found.info.base == BASE
    assert found.dropout == 0.05
    assert len(found.tensors) == 2 * 7 * 3 + 4
    assert found.notes == (
        "task_embedding_dim 64 has no effect: the released code stores it and never uses it",
    )


def test_second_names_of_easycl_are_dropped_and_its_files_named(tmp_path: Path) -> None:
    found = read_foreign(write_released(tmp_path / "a", random_experts(), "easycl"))
    assert found.aliases == 2 * 7 * 2 * 4
    assert found.ignored == ("index_location.txt", "not_aligned/", "value_counts_location.txt")


def test_the_files_are_strict_and_say_what_they_are_for(tmp_path: Path) -> None:
    experts = random_experts(everything=False)
    out = imported(tmp_path, experts, "official")
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    info, tensors = read_adapter_info(out), read_tensors(out)
    assert (info.base, info.targets, info.modules_to_save) == (
        BASE, "ffn", ("model.multi_modal_projector",)
    )  # fmt: skip
    key = f"base_model.model.{DECODER}.1.mlp.up_proj"
    assert tensors[f"{key}.clmoe_A.weight"][2:4].equal(experts.a["1.mlp.up_proj"][1])
    assert tensors[f"{key}.clmoe_B.weight"][:, 6:].equal(experts.b["1.mlp.up_proj"][3])
    assert tensors[f"{key}.clmoe_router.weight"].equal(experts.router["1.mlp.up_proj"])
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["dropout"], config["inference_mode"]) == (0.05, True)


def test_plain_peft_loads_the_same(llava: LlavaForConditionalGeneration, tmp_path: Path) -> None:
    out = imported(tmp_path, random_experts(), "official")
    theirs = dict(PeftModel.from_pretrained(copy.deepcopy(llava), str(out)).named_parameters())
    for name, parameter in load_adapter(copy.deepcopy(llava), out).named_parameters():
        assert parameter.equal(theirs[name]), name


def test_linears_that_differ_between_blocks_are_named_one_by_one(tmp_path: Path) -> None:
    experts = random_experts(projector=False)
    for held in (experts.a, experts.b, experts.router):
        del held["1.self_attn.q_proj"]
    found = read_foreign(write_released(tmp_path / "a", experts))
    assert isinstance(found.info.targets, tuple)
    assert len(found.info.targets) == 13
    assert found.info.targets == tuple(found.info.router_of)


def test_a_single_expert_needs_no_router(tmp_path: Path) -> None:
    experts = random_experts(count=1, everything=False)
    out = imported(tmp_path, experts, "official")
    assert not [name for name in read_tensors(out) if "router" in name]
    assert read_adapter_info(out).experts == 1


def test_bfloat16_is_kept_to_the_bit(tmp_path: Path) -> None:
    experts = random_experts(projector=False, everything=False)
    for held in (experts.a, experts.b):
        for path in held:
            held[path] = [tensor.bfloat16() for tensor in held[path]]
    out = imported(tmp_path, experts, "official")
    name = f"base_model.model.{DECODER}.0.mlp.up_proj.clmoe_A.weight"
    assert read_tensors(out)[name].equal(torch.cat(experts.a["0.mlp.up_proj"]))


def test_the_base_comes_from_the_option_the_base_config_or_the_adapter_config(
    tmp_path: Path,
) -> None:
    source = write_released(tmp_path / "a", random_experts(), "mcitlib")
    assert read_foreign(source).info.base == BASE
    assert read_foreign(source, base="llava-hf/llava-1.5-7b-hf").info.base == (
        "llava-hf/llava-1.5-7b-hf"
    )
    nameless = write_released(
        tmp_path / "b", random_experts(), "mcitlib", base_model_name_or_path=None
    )
    with pytest.raises(UsageError, match="does not say which base model") as caught:
        write_imported(read_foreign(nameless), tmp_path / "out")
    assert caught.value.hint == f"clmoe import {nameless} --out {tmp_path / 'out'} --base NAME"
    assert not (tmp_path / "out").exists()


def test_the_output_must_be_new(tmp_path: Path) -> None:
    source = write_released(tmp_path / "a", random_experts())
    (tmp_path / "out").mkdir()
    with pytest.raises(ClmoeError, match="exists"):
        import_adapter(source, out=tmp_path / "out", base=None)
    assert list((tmp_path / "out").iterdir()) == []


def test_fields_of_a_changed_code_are_named(tmp_path: Path) -> None:
    found = read_foreign(write_released(tmp_path / "a", random_experts(), warmup_tokens=10))
    assert "also has warmup_tokens: unknown here and ignored" in found.notes[1]


def test_the_commands_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_released(tmp_path / "a", random_experts(), "easycl")
    assert main(["import", "a", "--out", "made/a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"]["format"], found["data"]["aliases"]) == ("EasyCL", 112)
    assert found["next"] == "clmoe audit made/a"
    assert main(["audit", "a", "made/a"]) == 0
    assert "the two are equal: all 130 tensors are the same bit for bit" in capsys.readouterr().out
    assert main(["import", "a", "--out", "made/a"]) == 1
    assert capsys.readouterr().err.startswith("error: made/a exists\nhint: name another folder")
    assert main(["audit", "a", "a", "a", "a"]) == 2

"""Released adapters that must be refused, each with one clear error and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from clmoe.errors import ClmoeError
from clmoe.stages.audit import audit
from clmoe.stages.foreign import import_adapter
from tests.interop.layouts import (
    HIDDEN,
    INNER,
    LAYERS,
    VISION,
    random_experts,
    released_tensors,
    write_released,
)

START = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in which a refused import leaves nothing new."""
    yield tmp_path
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def refused(source: Path, match: str, *, base: str | None = None) -> ClmoeError:
    with pytest.raises(ClmoeError, match=match) as caught:
        import_adapter(source, out=source.parent / "out", base=base)
    assert caught.value.exit_code == 1
    return caught.value


class Evil:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["raw 2", "raw 4", "torch", "among tensors"])
@pytest.mark.parametrize("file", ["adapter_model.bin", "non_lora_trainables.bin"])
def test_a_malicious_pickle_is_refused_and_does_nothing(place: Path, file: str, how: str) -> None:
    trap = place / "trap"
    source = write_released(place / "a", random_experts())
    evil: Any = Evil(trap)
    if how == "among tensors":
        evil = released_tensors(random_experts(), "official") | {"x": evil}
    if how.startswith("raw"):
        (source / file).write_bytes(pickle.dumps(evil, protocol=int(how[-1])))
    else:
        torch.save(evil, source / file)
    error = refused(source, "is refused: as a pickle it holds something other than tensors")
    assert "mkdir" in error.message or how == "raw 4"  # it stops before it knows the name
    assert error.hint == "ask its author for a safetensors file"
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil(trap)))  # the trap works
    assert trap.is_dir()


@pytest.mark.parametrize("layout", ["official", "coin"])
@pytest.mark.parametrize("left", [0, 7, 1000])
def test_truncated_files(place: Path, layout: str, left: int) -> None:
    source = write_released(place / "a", random_experts(projector=False), layout)
    path = next(source.glob("adapter_model.*"))
    path.write_bytes(path.read_bytes()[:left])
    refused(source, "is damaged|or it is damaged")


def test_an_alias_that_is_not_equal(place: Path) -> None:
    experts = random_experts(projector=False)
    tensors = released_tensors(experts, "easycl")
    name = next(name for name in tensors if name.endswith("up_proj.lora_A.loraA.1.mlp.weight"))
    tensors[name][0, 0] += 1e-7
    source = write_released(place / "a", experts, "easycl", tensors=tensors)
    refused(source, r"loraA.1.weight and .*loraA.1.mlp.weight are two names of one tensor")


def test_keys_that_match_nothing_are_counted_and_the_first_named(place: Path) -> None:
    experts = random_experts(projector=False)
    strange = {f"base_model.model.model.vision_tower.x{i}.weight": torch.ones(1) for i in range(5)}
    tensors = released_tensors(experts, "official") | strange
    source = write_released(place / "a", experts, tensors=tensors)
    error = refused(source, "5 keys match no part of an adapter")
    assert "vision_tower.x0.weight (adapter_model.bin), " in error.message
    assert error.message.endswith("and 2 more")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (f"{START}.lora_B.loraB.2.weight", "1 tensors are missing: .*up_proj B_2"),
        (f"{START}.lora_router.weight", "1 tensors are missing: .*up_proj router"),
    ],
)
def test_missing_tensors(place: Path, gone: str, message: str) -> None:
    experts = random_experts(projector=False)
    tensors = released_tensors(experts, "official")
    del tensors[gone]
    refused(write_released(place / "a", experts, tensors=tensors), message)


def test_half_a_projector(place: Path) -> None:
    experts = random_experts()
    del experts.projector["2.bias"]
    refused(
        write_released(place / "a", experts), "part of a projector: .*linear_2.bias missing"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("0.bias", (7,), r"linear_1.bias of the projector has shape \[7\], expected \[32\] as"),
        ("2.bias", (7,), r"linear_2.bias of the projector has shape \[7\], expected \[32\] as"),
        ("2.weight", (32, 31), r"linear_2.weight .* has shape \[32, 31\], expected \[32, 32\]"),
        ("0.weight", (32,), r"linear_1.weight of the projector has shape \[32\], expected"),
        ("0.weight", (), r"linear_1.weight of the projector has shape \[\], expected"),
    ],
)
def test_a_projector_that_does_not_fit_itself(
    place: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    experts = random_experts()
    experts.projector[name] = torch.ones(shape)
    source = write_released(place / "a", experts)
    error = refused(source, message)
    assert error.hint == "the projector is of another checkpoint, or damaged"
    with pytest.raises(ClmoeError, match=message):
        audit([source])


def test_an_adapter_of_this_project_with_such_a_projector(tmp_path: Path) -> None:
    import_adapter(write_released(tmp_path / "a", random_experts()), out=tmp_path / "b", base=None)
    weights = tmp_path / "b" / "adapter_model.safetensors"
    name = "base_model.model.model.multi_modal_projector.linear_2.bias"
    save_file(load_file(weights) | {name: torch.ones(7)}, weights)
    with pytest.raises(ClmoeError, match=r"linear_2.bias of the projector has shape \[7\]"):
        audit([tmp_path / "b"])


def projector(vision: int, between: int, hidden: int) -> dict[str, torch.Tensor]:
    return {
        "0.weight": torch.ones(between, vision), "0.bias": torch.ones(between),
        "2.weight": torch.ones(hidden, between), "2.bias": torch.ones(hidden),
    }  # fmt: skip


def test_a_projector_that_does_not_fit_the_experts(place: Path) -> None:
    experts = random_experts()
    experts.projector = projector(24, 40, 40)
    refused(write_released(place / "a", experts), "the projector gives 40 values, .* reads 32")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((32, 32, 32), "projector reads pictures 32 values wide, in .*llava it is 24"),
        ((24, 40, 32), "projector has between its linears 40 values wide, in .*llava it is 32"),
    ],
)
def test_a_projector_that_does_not_fit_the_base(
    place: Path, sizes: tuple[int, int, int], message: str
) -> None:
    experts = random_experts()
    experts.projector = projector(*sizes)
    text = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, vocab_size=8,
        num_attention_heads=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=VISION, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlavaConfig(vision_config=vision, text_config=text).save_pretrained(place / "llava")
    source = write_released(place / "a", experts, "mcitlib")
    error = refused(source, message, base=str(place / "llava"))
    assert error.hint == "the adapter is of another base model: name it with --base"


def test_sizes_that_the_base_leaves_to_the_defaults(place: Path) -> None:
    """The published LLaVA-1.5 does not write the sizes of its decoder, which are Llama's."""
    (place / "llava").mkdir()
    said = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    (place / "llava" / "config.json").write_text(json.dumps(said))
    source = write_released(place / "a", random_experts(), "mcitlib")
    refused(
        source,
        "down_proj reads 48 values, in the base .* it reads 11008",
        base=str(place / "llava"),
    )


def test_the_released_codes_own_width_of_pictures(place: Path) -> None:
    source = write_released(place / "a", random_experts())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"mm_hidden_size": 1024}))
    refused(source, "reads pictures 24 values wide, in .*config.json it is 1024")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"expert_num": 8, "r": 64},
            "says 8 experts of total rank 64, the tensors hold 4 experts of total rank 8",
        ),
        ({"r": 2}, "says 4 experts of total rank 2, the tensors hold 4 experts of total rank 8"),
        ({"target_modules": ["up_proj"]}, "targets up_proj, the tensors adapt down_proj, gate_"),
        ({"peft_type": "LORA"}, "method 'LORA', expected one of MOE_LORA_CLMoE, MOE_LORA_CoIN"),
        ({"peft_type": "CLMOE"}, "method 'CLMOE', expected"),
        ({"use_rslora": True}, "use_rslora is True, which changes what the tensors compute"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"r": 8.5}, "r is 8.5, expected a whole number"),
        ({"expert_num": "4"}, "expert_num is '4', expected a whole number"),
        ({"lora_alpha": None}, "is not a complete configuration"),
    ],
)
def test_a_configuration_that_does_not_fit(
    place: Path, changes: dict[str, Any], message: str
) -> None:
    refused(write_released(place / "a", random_experts(), **changes), message)


def test_a_tensor_of_another_shape(place: Path) -> None:
    experts = random_experts(projector=False)
    experts.b["0.mlp.up_proj"][1] = torch.ones(47, 2)
    error = refused(write_released(place / "a", experts), "up_proj B_1 has shape")
    assert "[47, 2], expected [48, 2]" in error.message


def test_a_value_that_is_not_finite(place: Path) -> None:
    experts = random_experts()
    experts.a["0.mlp.up_proj"][1][0, 0] = torch.nan
    refused(write_released(place / "a", experts), "loraA.1.weight has a value that is not a finite")


def test_a_file_of_something_else(place: Path) -> None:
    source = write_released(place / "a", random_experts(), tensors={"step": 3})  # type: ignore
    refused(source, "holds a dict, not tensors by name")


def test_two_files_of_weights(place: Path) -> None:
    source = write_released(place / "a", random_experts(projector=False))
    other = write_released(place / "b", random_experts(projector=False), "coin")
    shutil.copy(other / "adapter_model.safetensors", source)
    refused(source, "holds both adapter_model.safetensors and adapter_model.bin")


def test_another_base(place: Path) -> None:
    source = write_released(place / "a", random_experts())
    refused(source, "mlp.down_proj reads 48 values, in the base tiny it reads 256", base="tiny")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    refused(source, "adapts layer 1, but .*config.json has 1 layers, from 0")
    (source / "config.json").write_text(json.dumps(config | {"hidden_size": 4096}))
    refused(source, "gate_proj reads 32 values, in .*config.json it reads 4096")


@pytest.mark.parametrize(
    ("made", "message"),
    [("nothing", "there is no folder"), ("empty", "adapter_config.json cannot be read")],
)
def test_no_adapter(place: Path, made: str, message: str) -> None:
    if made == "empty":
        (place / "a").mkdir()
    refused(place / "a", message)


def test_no_weights(place: Path) -> None:
    source = write_released(place / "a", random_experts())
    (source / "adapter_model.bin").unlink()
    refused(source, "holds no weights: no adapter_model.bin and no adapter_model.safetensors")

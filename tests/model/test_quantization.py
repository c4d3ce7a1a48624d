"""A base in NF4: what is quantised, what is not, and a mixture that trains on it as on any base."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.errors import ClmoeError
from clmoe.model.adapter_file import load_adapter, save_adapter
from clmoe.model.backbone import load_backbone
from clmoe.model.config import ClmoeConfig
from clmoe.model.layer import MixtureLinear
from clmoe.model.quantization import loading_options, split_linears
from clmoe.model.tuner import attach
from clmoe.recipe.schema import Base, Train
from clmoe.training.loop import train_adapter

LAYERS, HIDDEN, WIDE, IMAGE = 2, 64, 128, 63
NEEDS = "bitsandbytes is not installed: pip install 'clmoe[quant]'"


def config(*, hidden: int = HIDDEN) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=WIDE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=4,
        vision_feature_layer=-1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaVA, saved unquantised as real ones are."""
    place = tmp_path_factory.mktemp("base") / "llava"
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config()).save_pretrained(place)
    words = ["<pad>", "<s>", "</s>", *(f"w{index}" for index in range(3, 63)), "<image>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=["<image>"],
    ).save_pretrained(place)  # fmt: skip
    (place / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16},'
        ' "crop_size": {"height": 16, "width": 16}}'
    )
    return place


@pytest.fixture
def quantised(folder: Path) -> Any:
    pytest.importorskip("bitsandbytes", reason=NEEDS)
    return load_backbone(Base(model=str(folder), quantization="nf4"))


def pictured(rows: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 60, (rows, 6), generator=generator)
    ids = torch.cat([torch.full((rows, 4), IMAGE), text], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
    }


def mixture(backbone: Any, **fields: Any) -> Any:
    return attach(backbone.model, ClmoeConfig(**{"experts": 4, "r": 8, "alpha": 16.0} | fields))


def randomize(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "clmoe_B" in name or "clmoe_router" in name:
            with torch.no_grad():
                parameter.normal_(0.0, 0.2, generator=generator)


def trained(model: Any, *, steps: int) -> list[float]:
    """Losses of a few steps on eight conversations with one answer each."""
    samples = [
        Encoded(
            input_ids=[1, *[IMAGE] * 4, 10 + row, 30 + row, 2],
            labels=[*[IGNORE] * 6, 30 + row, 2],
            question=[False] * 8,
        )
        for row in range(8)
    ]
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))

    def inputs(batch: Batch) -> dict[str, Tensor]:
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values": pixels[batch.rows].to(model.get_base_model().dtype),
        }

    return train_adapter(
        model, samples=samples, inputs=inputs, pad=0, label="test",
        settings=Train(lr=2e-2, batch_size=8, epochs=steps, checkpoint_every=0),
    ).losses  # fmt: skip


def test_only_the_linears_of_the_decoders_blocks_are_quantised(quantised: Any) -> None:
    from bitsandbytes.nn import Linear4bit

    inside, outside = split_linears(quantised.model.config)
    assert len(inside) == 7 * LAYERS
    assert {path.rpartition(".")[0] for path in outside} >= {"", "model.multi_modal_projector"}
    for path, module in quantised.model.named_modules():
        if isinstance(module, nn.Linear):
            assert isinstance(module, Linear4bit) == (path in inside), path
            assert path in inside or module.weight.dtype == torch.float32
    packed = quantised.model.get_submodule(f"{next(iter(inside))}").weight
    assert packed.dtype == torch.uint8
    assert packed.quant_state.quant_type == "nf4"
    assert packed.quant_state.nested
    assert not any(parameter.requires_grad for parameter in quantised.model.parameters())
    assert quantised.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_answers_are_nearly_those_of_the_unquantised_base(folder: Path, dtype: Any) -> None:
    """NF4 rounds a normal weight by 9 % of its size on the mean; logits move less than by half."""
    pytest.importorskip("bitsandbytes", reason=NEEDS)
    whole = load_backbone(Base(model=str(folder), dtype=dtype))
    small = load_backbone(Base(model=str(folder), dtype=dtype, quantization="nf4"))
    assert small.model.dtype == small.dtype == whole.dtype
    batch = pictured()
    batch["pixel_values"] = batch["pixel_values"].to(whole.dtype)
    with torch.no_grad():
        first, second = whole.model(**batch).logits, small.model(**batch).logits
    error = (first - second).float().norm() / first.float().norm()
    assert 0.01 < error < 0.35


def test_the_mixture_is_on_every_mlp_and_changes_the_output(quantised: Any) -> None:
    with torch.no_grad():
        before = quantised.model(**pictured()).logits
        model = mixture(quantised)
        adapted = [m for m in model.modules() if isinstance(m, MixtureLinear)]
        assert len(adapted) == 3 * LAYERS
        shapes = {(m.in_features, m.out_features) for m in adapted}
        assert shapes == {(HIDDEN, WIDE), (WIDE, HIDDEN)}
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert all("clmoe_" in name and p.dtype == torch.float32 for name, p in trainable.items())
        assert len(trainable) == 7 * LAYERS  # A and B of three linears, and one router a block
        assert torch.equal(model(**pictured()).logits, before)  # B starts at zero
        randomize(model)
        after = model(**pictured()).logits
        assert (after - before).abs().max() > 0.1
        with model.disable_adapter():
            assert torch.equal(model(**pictured()).logits, before)


def test_gradients_reach_every_expert_and_router(quantised: Any) -> None:
    model = mixture(quantised)
    randomize(model)
    model.train()
    model(**pictured()).logits.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        if "clmoe_" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_lowers_the_loss_and_touches_no_base_weight(folder: Path, dtype: Any) -> None:
    pytest.importorskip("bitsandbytes", reason=NEEDS)
    backbone = load_backbone(Base(model=str(folder), dtype=dtype, quantization="nf4"))
    model = mixture(backbone)
    before = {n: p.clone() for n, p in model.named_parameters() if "clmoe_" not in n}
    losses = trained(model, steps=12)
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        assert "clmoe_" in name or torch.equal(parameter, before[name])


def test_an_evaluation_between_trainings_changes_nothing(folder: Path) -> None:
    """bitsandbytes repacks weights in evaluations on some CPUs; they then pass no gradient."""
    pytest.importorskip("bitsandbytes", reason=NEEDS)
    runs = []
    for look in (False, True):
        model = mixture(load_backbone(Base(model=str(folder), quantization="nf4")))
        if look:
            with torch.no_grad():
                model.eval()(**pictured())
        runs.append(trained(model, steps=3))
    assert runs[0] == runs[1]
    model.eval()
    with torch.no_grad():
        silent = model(**pictured()).logits
    assert torch.equal(silent, model(**pictured()).logits)


def test_a_saved_adapter_gives_equal_logits(quantised: Any, folder: Path, tmp_path: Path) -> None:
    model = mixture(quantised)
    trained(model, steps=3)
    save_adapter(model, tmp_path)
    again = load_adapter(
        load_backbone(Base(model=str(folder), quantization="nf4")).model, tmp_path
    ).eval()
    with torch.no_grad():
        assert torch.equal(model.eval()(**pictured()).logits, again(**pictured()).logits)


def test_gradient_checkpointing_gives_the_same_losses(folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason=NEEDS)
    from clmoe.model.checkpointing import enable_checkpointing

    runs = []
    for on in (False, True):
        model = mixture(load_backbone(Base(model=str(folder), quantization="nf4")))
        if on:
            enable_checkpointing(model)
        runs.append(trained(model, steps=3))
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)


def options(model_config: Any, device: str = "cpu") -> dict[str, Any]:
    return loading_options(
        Base(model="some/base", quantization="nf4"),
        model_config=model_config,
        device=torch.device(device),
        dtype=torch.float32,
    )


def test_none_asks_for_nothing() -> None:
    nothing = {"model_config": None, "device": torch.device("cpu"), "dtype": torch.float32}
    assert loading_options(Base(), **nothing) == {}


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else find(n, *a)
    )


def test_not_installed(without_bitsandbytes: None, folder: Path) -> None:
    with pytest.raises(ClmoeError, match="the package bitsandbytes is not installed") as caught:
        load_backbone(Base(model=str(folder), quantization="nf4"))
    assert caught.value.hint == "pip install 'clmoe[quant]', or base.quantization=none"


def test_what_cannot_be_quantised() -> None:
    pytest.importorskip("bitsandbytes", reason=NEEDS)
    with pytest.raises(ClmoeError, match="does not run on mps"):
        options(config(), device="mps")
    with pytest.raises(
        ClmoeError,
        match=r"layers\.0\.self_attn\.q_proj of some/base is 48 wide; nf4 needs a multiple of 64",
    ):
        options(config(hidden=48))
    stored = config()
    stored.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ClmoeError, match="some/base is stored quantised already"):
        options(stored)


@pytest.mark.parametrize("what", ["missing", "shape"])
def test_a_weight_that_the_files_do_not_hold(folder: Path, tmp_path: Path, what: str) -> None:
    pytest.importorskip("bitsandbytes", reason=NEEDS)
    place = Path(shutil.copytree(folder, tmp_path / "edited"))
    tensors = load_file(place / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    taken = tensors.pop(name)
    if what == "shape":
        tensors[name] = taken[:64].clone()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ClmoeError, match="do not hold every weight of the model: 1 ") as caught:
        load_backbone(Base(model=str(place), quantization="nf4"))
    assert "model.language_model.layers.1.mlp.up_proj.weight" in caught.value.message

"""Bases that cannot be used: one clear error each, and nothing on disk is changed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from torch import nn
from transformers.utils import is_torchvision_available

from clmoe.errors import ClmoeError
from clmoe.model.backbone import load_backbone
from clmoe.model.config import ClmoeConfig
from clmoe.model.fetching import Source
from clmoe.model.tuner import attach
from clmoe.recipe.schema import Base


def refused(folder: Path, **fields: Any) -> ClmoeError:
    """The error of loading a folder, which is left as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ClmoeError) as caught:
        load_backbone(Base(model=str(folder), **fields))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return caught.value


@pytest.fixture
def copy(folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders(name), tmp_path / name))


def test_a_processor_that_needs_missing_packages(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(place: str, **options: Any) -> Any:
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was\n")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    error = refused(copy("qwen2_5_vl"))
    assert error.message.endswith(
        "needs a package that is not installed: Qwen2VLVideoProcessor requires the Torchvision "
        "library but it was"
    )
    assert error.hint == "pip install 'clmoe[vlm]'"


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_qwen_without_torchvision(copy: Callable[[str], Path]) -> None:
    error = refused(copy("qwen2_5_vl"))
    assert "requires the Torchvision library" in error.message
    assert error.hint == "pip install 'clmoe[vlm]'"


@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3"])
def test_a_missing_processor(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    (folder / "processor_config.json").unlink()
    error = refused(folder)
    assert error.message.startswith(
        f"{folder} is not a complete vision-language model: Can't load image processor for"
    )
    assert error.hint == "it needs config.json, safetensors, tokenizer and preprocessor files"


def test_a_processor_that_is_only_a_tokenizer(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("llava_next")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: tokenizer)
    error = refused(folder)
    assert "has no processor for pictures: its TokenizersBackend lacks tokenizer, " in error.message


def test_tensors_of_picture_and_text_together_are_refused(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Mllama's, whose decoder looks at pictures through cross-attention."""
    call = transformers.LlavaNextProcessor.__call__

    def crossed(self: Any, *args: Any, **fields: Any) -> Any:
        made = call(self, *args, **fields)
        return made | {"cross_attention_mask": made["attention_mask"][..., None, None]}

    monkeypatch.setattr(transformers.LlavaNextProcessor, "__call__", crossed)
    assert (
        "needs cross_attention_mask, which depend on picture and text"
        in refused(copy("llava_next")).message
    )


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (transformers.Florence2Config(), "Florence2"),
        (transformers.Blip2Config(text_config={"model_type": "t5"}), "Blip2"),
    ],
)
def test_encoder_decoders_are_refused(config: Any, kind: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert refused(tmp_path).message == (
        f"{tmp_path} is a {kind} model with an encoder and a decoder; experts are for decoder-only "
        "models"
    )


def test_fused_experts_are_refused() -> None:
    """A mixture-of-experts MLP keeps its experts in 3D parameters, not in linears."""
    config = transformers.Qwen3VLMoeConfig(
        text_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 99,
            "intermediate_size": 32,
            "moe_intermediate_size": 16,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    model = transformers.Qwen3VLMoeForConditionalGeneration(config)
    with pytest.raises(ClmoeError) as caught:
        attach(model, ClmoeConfig(experts=2, r=4))
    assert "has no MLP made of plain linears" in caught.value.message
    assert "mlp (Qwen3VLMoeTextSparseMoeBlock)" in caught.value.message
    assert not any("clmoe" in name for name, _ in model.named_parameters())


def test_experts_beside_plain_linears_are_refused(llama: Any) -> None:
    """An MLP of two linears around fused experts is no plain MLP either."""
    llama.model.layers[1].mlp.experts = nn.Parameter(torch.zeros(2, 4, 4))
    with pytest.raises(ClmoeError, match=r"model.layers.1 has no MLP made of plain linears"):
        attach(llama, ClmoeConfig(experts=2, r=4))


def test_a_mixer_with_linears_is_not_taken_for_the_mlp(llama: Any) -> None:
    """Some blocks have a convolution with linears in place of attention (LFM2)."""
    for block in llama.model.layers:
        block.conv = nn.Sequential(nn.Linear(32, 32))
    config = attach(llama, ClmoeConfig(experts=2, r=4)).peft_config["default"]
    assert {path.split(".")[-2] for path in config.router_of} == {"mlp"}


class Client:
    """Stands for the hub's HTTP client."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.asked = error, 0

    def head(self, url: str, *, timeout: float) -> None:
        self.asked += 1
        assert timeout <= 5
        if self.error is not None:
            raise self.error


class Part:
    """Stands for a class of transformers: notes what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def from_pretrained(self, place: str, **options: Any) -> str:
        self.calls.append((place, options))
        return "loaded"


@pytest.mark.parametrize("reachable", [True, False])
def test_the_hub_is_asked_once_whether_it_is_there(
    monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    client, part = Client(None if reachable else ConnectionError("no route")), Part()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
    source = Source(Base(model="some/body", revision="v1"))
    assert [source.fetch(part), source.fetch(part, dtype="float32")] == ["loaded", "loaded"]
    options = {"revision": "v1", "local_files_only": not reachable}
    assert part.calls == [("some/body", options), ("some/body", options | {"dtype": "float32"})]
    assert client.asked == 1


def test_an_unreachable_hub_is_one_quick_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: Client(ConnectionError("no route")))
    started = time.monotonic()
    with pytest.raises(ClmoeError, match="nobody/nothing is not on this machine") as caught:
        load_backbone(Base(model="nobody/nothing"))
    assert caught.value.hint == "hf download nobody/nothing"
    assert time.monotonic() - started < 5

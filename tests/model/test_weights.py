"""Bases whose weight files are missing, cut short, or hold other weights than the model has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from clmoe.errors import ClmoeError, UsageError
from clmoe.events import Event, Note, subscribe
from clmoe.model import fetching
from clmoe.model.backbone import check_base, load_backbone
from clmoe.model.tiny import tiny_folder
from clmoe.recipe.schema import Base

UP = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """A small random LLaVA of its own."""
    return Path(shutil.copytree(folders("llava"), tmp_path / "llava"))


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Write the folder's weights again after an edit of their dictionary."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def stored(folder: Path, ending: str) -> str:
    """The name in the file of the weight that ends so."""
    names = load_file(folder / "model.safetensors")
    return next(name for name in names if name.endswith(ending))


def shard(folder: Path) -> list[str]:
    """Split the weights into several files with an index."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return sorted(set(index["weight_map"].values()))


def refused(folder: Path, *, use: Callable[..., Any] = load_backbone, **fields: Any) -> ClmoeError:
    with pytest.raises(ClmoeError) as caught:
        use(Base(model=str(folder), **fields))
    return caught.value


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop(stored(folder, "layers.1.mlp.up_proj.weight")))
    error = refused(folder)
    assert error.message == (
        f"the weight files of {folder} do not hold every weight of the model: 1 are missing ({UP})"
    )
    assert error.hint is not None
    assert error.hint.startswith("config.json and the weights are not of one model")
    check_base(Base(model=str(folder)))  # what is in the files is not looked at there


def test_many_missing_weights_are_counted_and_a_few_named(folder: Path) -> None:
    def strip(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".mlp." in name and "language_model" in name]:
            del tensors[name]

    change(folder, strip)
    message = refused(folder).message
    assert "6 are missing (model.language_model.layers.0.mlp.down_proj.weight, " in message
    assert message.endswith("layers.0.mlp.up_proj.weight and 3 more)")


def test_a_weight_of_another_shape(folder: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        name = stored(folder, "layers.1.mlp.up_proj.weight")
        tensors[name] = tensors[name][:40].clone()

    change(folder, cut)
    assert refused(folder).message.endswith(
        f"1 have another shape ({UP} is [40, 32] there, [48, 32] in the model)"
    )


def test_tied_weights_and_old_buffers_are_harmless(folder: Path) -> None:
    """The built-in base stores no output layer; old checkpoints hold buffers."""
    notes: list[Event] = []
    assert "lm_head.weight" not in load_file(tiny_folder() / "model.safetensors")
    old = "model.language_model.layers.0.self_attn.rotary_emb.inv_freq"
    change(folder, lambda tensors: tensors.update({old: torch.ones(4)}))
    with subscribe(notes.append):
        load_backbone(Base())
        load_backbone(Base(model=str(folder)))
    assert notes == []


def test_weights_that_the_model_does_not_use_are_told(folder: Path) -> None:
    change(folder, lambda t: t.update({"model.language_model.more.weight": torch.ones(2)}))
    notes: list[Event] = []
    with subscribe(notes.append):
        load_backbone(Base(model=str(folder)))
    text = f"{folder}: its files hold 1 weights that the model does not use"
    assert notes == [Note(f"{text} (model.language_model.more.weight)", level="warning")]


@pytest.mark.parametrize("use", [load_backbone, check_base])
def test_no_weights_at_all(folder: Path, use: Callable[..., Any]) -> None:
    (folder / "model.safetensors").unlink()
    error = refused(folder, use=use)
    assert error.message == (
        f"{folder} is not a complete vision-language model: it has neither model.safetensors nor "
        "model.safetensors.index.json"
    )
    assert error.hint == "copy or download the folder again"


@pytest.mark.parametrize("use", [load_backbone, check_base])
@pytest.mark.parametrize("left", [0, 5, 1000, -1])
def test_a_file_that_was_cut_short(folder: Path, use: Callable[..., Any], left: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    assert refused(folder, use=use).message.startswith(f"{path} is damaged or was cut short: ")


def test_files_that_the_index_names(folder: Path) -> None:
    files = shard(folder)
    assert len(files) > 2
    check_base(Base(model=str(folder)))
    load_backbone(Base(model=str(folder)))
    last = folder / files[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-4])
    assert refused(folder, use=check_base).message.startswith(f"{last} is damaged")
    last.unlink()
    assert refused(folder, use=check_base).message.endswith(
        f"1 of its {len(files)} weight files are missing ({files[-1]})"
    )
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json cannot be read" in refused(folder, use=check_base).message


def test_weights_in_torchs_own_format_are_let_through(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    check_base(Base(model=str(folder)))


def test_a_model_of_the_hub_is_checked_only_where_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it lies in the cache and the hub cannot be reached, its files are all there are."""
    commit = "0" * 40
    cached = tmp_path / "cache" / "models--some--llava"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_hub_answers", lambda: False)
    check_base(Base(model="some/llava"))
    (cached / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(ClmoeError, match="has neither model.safetensors nor"):
        check_base(Base(model="some/llava"))


@pytest.mark.parametrize("use", [load_backbone, check_base])
def test_a_folder_has_no_revisions(folder: Path, use: Callable[..., Any]) -> None:
    error = refused(folder, use=use, revision="main")
    assert isinstance(error, UsageError)
    assert error.message == (
        f"base.revision is main, but base.model={folder} is a folder, which has no revisions"
    )
    assert error.hint == "leave base.revision out"
    with pytest.raises(UsageError, match="base.model=tiny is built in, which has no revisions"):
        use(Base(revision="main"))


@pytest.mark.parametrize(("kept", "wanted"), [(True, "</s>"), (False, "<unk>")])
def test_a_tokenizer_without_a_padding_token(folder: Path, kept: bool, wanted: str) -> None:
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields.pop("pad_token")
    if not kept:
        fields.pop("eos_token")
    path.write_text(json.dumps(fields))
    tokenizer = load_backbone(Base(model=str(folder), prompt="vicuna_v1")).tokenizer
    assert tokenizer.pad_token == wanted
    assert isinstance(tokenizer.pad_token_id, int)
    if not kept:
        fields.pop("unk_token")
        path.write_text(json.dumps(fields))
        assert "has no token for padding" in refused(folder).message

"""What doctor says of this machine and of recipes; nothing here loads a weight."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from clmoe.errors import ClmoeError, UsageError
from clmoe.model.backbone import load_backbone
from clmoe.model.config import ClmoeConfig
from clmoe.model.tuner import attach
from clmoe.recipe.load import load_recipe
from clmoe.recipe.schema import Base
from clmoe.stages import fit as fit_module
from clmoe.stages import pipeline
from clmoe.stages.fit import ASSUMED_IMAGE_TOKENS, FEATURES_KEPT, Sample, study
from clmoe.stages.machine import PACKAGES, Gpu, Machine, look_at_machine
from clmoe.stages.result import Result
from clmoe.training.memory_estimate import estimate_training

GIB = 2**30


def studied(*overrides: str, room: int = 64 * GIB, sample: Sample | None = None) -> Any:
    recipe = load_recipe(None, overrides=overrides).recipe
    return study(recipe, device=torch.device("cpu"), room=room, sample=sample)


def test_the_machine_alone(tmp_path: Path) -> None:
    result = pipeline.doctor(tmp_path / "runs", recipe=None, overrides=[])
    assert set(result.data["versions"]) == {"python", *PACKAGES}
    assert result.data["versions"]["torch"] == torch.__version__
    cpu = result.data["cpu"]
    assert cpu["cores"] >= 1
    assert 0 < cpu["free"] <= cpu["memory"]
    assert result.data["disks"]["runs"]["free"] > 0
    assert [table.title for table in result.tables] == ["versions", "devices", "disk"]
    assert "recipe" not in result.data
    assert result.next_command == "clmoe doctor shapes"
    assert not (tmp_path / "runs").exists()


def test_a_package_that_is_missing_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("clmoe.stages.machine.PACKAGES", ("torch", "no-such-package"))
    result = pipeline.doctor(tmp_path, recipe=None, overrides=[])
    assert result.data["versions"]["no-such-package"] is None
    assert ["no-such-package", "not installed"] in [list(row) for row in result.tables[0].rows]


def test_a_container_limits_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("clmoe.stages.machine._LIMIT_OF_A_CONTAINER", limit)
    free = look_at_machine({}).memory
    limit.write_text("1048576\n", encoding="ascii")
    assert look_at_machine({}).memory == 1048576
    limit.write_text("max\n", encoding="ascii")
    assert look_at_machine({}).memory == free


def test_room_is_that_of_the_device() -> None:
    machine = replace(
        look_at_machine({}), gpus=(Gpu("one", 8, 5, True), Gpu("two", 9, 6, False)), available=7
    )
    devices = ("cpu", "cuda", "cuda:1")
    assert [machine.room(torch.device(name)) for name in devices] == [7, 5, 6]


def test_the_counts_are_those_of_the_loaded_base() -> None:
    shape = studied().shape
    model = load_backbone(Base()).model
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    adapter = load_recipe(None).recipe.adapter
    peft = attach(model, ClmoeConfig.from_recipe(adapter, base="tiny"))
    assert shape.trainable == sum(p.numel() for p in peft.parameters() if p.requires_grad)


def test_a_recipe_that_fits(tmp_path: Path) -> None:
    result = pipeline.doctor(tmp_path, recipe="shapes", overrides=["runtime.device=cpu"])
    told = result.data["recipe"]
    assert (told["training"]["verdict"], told["evaluation"]["verdict"]) == ("fits", "fits")
    assert told["training"]["to_try"] == []
    assert told["training"]["needed"] == sum(told["training"]["parts"].values())
    assert told["training"]["tokens"] == 9 + 64
    assert "no data prepared: 9 image and 64 other tokens a sample assumed" in result.notes
    assert "dtype float32: the device is cpu" in result.notes
    assert result.next_command == "clmoe run shapes --dry-run"


def test_overrides_alone_are_about_the_default_recipe(tmp_path: Path) -> None:
    result = pipeline.doctor(
        tmp_path, recipe=None, overrides=["runtime.device=cpu", "base.dtype=bfloat16"]
    )
    assert "dtype bfloat16: base.dtype" in result.notes
    assert result.next_command == "clmoe run shapes --dry-run"


LARGE = ("train.batch_size=4096", "eval.batch_size=32768")


@pytest.mark.parametrize(
    ("room", "wanted"),
    [
        (6 * GIB, [("train.gradient_checkpointing=true",), ("train.micro_batch=2048",)]),
        (4 * GIB, [("train.micro_batch=1024",),
                   ("train.gradient_checkpointing=true", "base.dtype=bfloat16")]),
    ],
)  # fmt: skip
def test_one_that_does_not_fit_says_what_would(room: int, wanted: list[Any]) -> None:
    training, evaluation = studied(*LARGE, room=room).fits
    assert (training.verdict, evaluation.verdict) == ("does not fit", "does not fit")
    assert [remedy.overrides for remedy in training.remedies] == wanted
    assert [remedy.overrides for remedy in evaluation.remedies] == [("eval.batch_size=4096",)]
    for remedy in (*training.remedies, *evaluation.remedies):
        fit = studied(*LARGE, *remedy.overrides, room=room).fits[remedy in evaluation.remedies]
        assert (fit.fits, fit.estimate.total) == (True, remedy.total)


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the configuration of LLaVA-1.5-7B and no weights."""
    folder = tmp_path_factory.mktemp("base") / "llava7b"
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14,
    )  # fmt: skip
    LlavaConfig(vision_config=vision, text_config=text, image_token_id=32000).save_pretrained(
        folder
    )
    return str(folder)


class TestASevenBillionBase:
    """What is proposed for it on machines of several sizes."""

    @pytest.fixture
    def study7(self, seven_billion: str) -> Callable[..., Any]:
        settings = ["train.micro_batch=4", "train.gradient_checkpointing=true",
                    "train.batch_size=16", "eval.batch_size=16", "eval.max_new_tokens=10",
                    "adapter.experts=8", "adapter.rank=64"]  # fmt: skip

        def run(*overrides: str, room: int) -> Any:
            return studied(f"base.model={seven_billion}", *settings, *overrides, room=room * GIB)

        return run

    @pytest.mark.parametrize("room", [11, 16, 20, 32, 36])
    def test_all_that_is_proposed_fits(self, study7: Callable[..., Any], room: int) -> None:
        pytest.importorskip("bitsandbytes")
        found = study7(room=room)
        assert not all(fit.fits for fit in found.fits)
        for place, fit in enumerate(found.fits):
            assert fit.fits != bool(fit.remedies)
            for remedy in fit.remedies:
                again = study7(*remedy.overrides, room=room).fits[place]
                assert (again.fits, again.estimate.total) == (True, remedy.total)
        both = study7(*found.together.overrides, room=room).fits
        assert [fit.fits for fit in both] == [True, True]
        assert max(fit.estimate.total for fit in both) == found.together.total

    def test_settings_that_change_no_result_come_first(self, study7: Callable[..., Any]) -> None:
        pytest.importorskip("bitsandbytes")
        found = study7(room=32)
        assert [remedy.overrides for remedy in found.fits[1].remedies] == [
            ("eval.batch_size=4",), ("base.dtype=bfloat16",), ("base.quantization=nf4",)
        ]  # fmt: skip
        assert found.together.overrides == found.fits[1].remedies[0].overrides
        found = study7(room=16)
        assert [remedy.overrides for remedy in found.fits[1].remedies] == [
            ("eval.batch_size=2", "base.dtype=bfloat16"),
            ("eval.batch_size=8", "base.quantization=nf4"),
            ("base.dtype=bfloat16", "base.quantization=nf4"),
        ]

    def test_nf4_only_where_it_runs(
        self, study7: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object, **options: object) -> None:
            raise ClmoeError("the package bitsandbytes is not installed")

        monkeypatch.setattr(fit_module, "loading_options", refuse)
        found = study7(room=11)
        assert [fit.remedies for fit in found.fits] == [(), ()]
        assert found.together is None
        told = "base.quantization=nf4 was not tried: the package bitsandbytes is not installed"
        assert told in found.why
        assert told not in study7(room=64).why

    def test_bfloat16_only_where_it_runs(
        self, study7: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fit_module, "_runs_bfloat16", lambda device: False)
        for fit in study7(room=16).fits:
            assert all("base.dtype=bfloat16" not in r.overrides for r in fit.remedies)

    def test_doctor_says_it(
        self, seven_billion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("bitsandbytes")
        room = 16 * GIB
        monkeypatch.setattr(Machine, "room", lambda machine, device: room)
        base = [f"base.model={seven_billion}", "runtime.device=cpu"]

        def doctor(*more: str) -> Result:
            return pipeline.doctor(tmp_path, recipe="vqa_v2", overrides=[*base, *more])

        result = doctor()
        both = result.data["recipe"]["to_try_for_both"]
        assert any(
            note.startswith(f"training and evaluation fit with: {' '.join(both['overrides'])} (")
            for note in result.notes
        )
        again = doctor(*both["overrides"]).data["recipe"]
        assert (again["training"]["fits"], again["evaluation"]["fits"]) == (True, True)
        assert again["to_try_for_both"] is None
        room = GIB
        notes = " ".join(doctor().notes)
        assert "evaluation: no dtype, quantization, batch or checkpointing that runs" in notes
        assert "fits with" not in notes


def test_nothing_helps() -> None:
    found = studied("train.batch_size=4096", room=1)
    assert found.fits[0].remedies == ()
    assert found.together is None


def test_what_fits_needs_no_advice() -> None:
    found = studied()
    assert [fit.remedies for fit in found.fits] == [(), ()]
    assert found.together is None


def test_close_is_said_to_be_close() -> None:
    needed = studied().fits[0].estimate.total
    assert studied(room=needed - 1).fits[0].verdict == "does not fit"
    close = studied(room=needed).fits[0].verdict
    assert close == "fits, by less than the estimate's error of 15%"
    assert studied(room=int(needed * 1.16)).fits[0].verdict == "fits"


def test_auto_finds_the_largest_that_fits() -> None:
    whole = studied("train.batch_size=4096")
    room = whole.fits[0].estimate.total // 3
    found = studied("train.batch_size=4096", "train.micro_batch=auto", room=room)
    assert found.loads["training"].batch == 1024
    assert found.fits[0].fits
    assert "train.micro_batch=auto would begin near 1024" in found.why
    twice = replace(found.loads["training"], batch=2048)
    assert estimate_training(found.shape, twice).total > room


def test_prepared_data_give_the_tokens_and_the_pictures(runs: Path) -> None:
    result = pipeline.doctor(runs, recipe="shapes", overrides=["name=small"])
    assert "no data prepared" in " ".join(result.notes)  # other data than the run's own
    own = ["name=small", "data.tasks=recognition,location,count",
           "data.train_per_task=48", "data.val_per_task=8", "data.test_per_task=24"]  # fmt: skip
    result = pipeline.doctor(runs, recipe="shapes", overrides=own)
    assert "no data prepared" not in " ".join(result.notes)
    told = result.data["recipe"]["training"]
    assert 9 + 8 < told["tokens"] < 9 + 64
    assert told["parts"]["kept picture features"] < FEATURES_KEPT


def test_a_picture_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "image_tokens", lambda config: None)
    found = studied()
    assert found.loads["training"].image_tokens == ASSUMED_IMAGE_TOKENS
    assert found.loads["training"].kept_features == 0
    assert "image tokens depend on the picture; assumed 576" in found.why


def test_a_base_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ClmoeError, match="nobody/nothing is not on this machine") as caught:
        pipeline.doctor(tmp_path, recipe="shapes", overrides=["base.model=nobody/nothing"])
    assert caught.value.hint == "hf download nobody/nothing"


def test_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        pipeline.doctor(tmp_path, recipe="no-such-recipe", overrides=[])


def test_importing_it_is_light() -> None:
    code = "import sys, clmoe.stages.doctor; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

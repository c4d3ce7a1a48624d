"""Trainings of the built-in base that Accelerate shards (FSDP2) as the shipped file asks, on CPUs.

Accelerate shards on GPUs only, so it is told that the processes over gloo are GPUs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clmoe.baselines.registry import make_strategy
from clmoe.data.batches import Batch
from clmoe.errors import UsageError
from clmoe.model.adapter_file import is_sharded, save_adapter
from clmoe.model.backbone import load_backbone
from clmoe.model.config import ClmoeConfig
from clmoe.model.pictures import Pictures, make_prompter
from clmoe.model.tuner import attach
from clmoe.parallel.world import world
from clmoe.recipe.schema import Base, Train
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.loop import train_adapter
from clmoe.training.training_log import TrainingLog

FSDP2 = Path(__file__).parents[2] / "recipes" / "accelerate" / "fsdp2.yaml"
COLORS = ("red", "green", "blue", "yellow", "black", "white")


def shard_as_shipped() -> None:
    """Set what the launcher would set for `recipes/accelerate/fsdp2.yaml` in each process."""
    from accelerate import PartialState
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import DistributedType
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(FSDP2), "--main_process_port", "0", "-m", "clmoe_cli"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    ours = ("FSDP_", "ACCELERATE_")
    found = prepare_multi_gpu_env(args)
    os.environ |= {name: value for name, value in found.items() if name.startswith(ours)}
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def draw(folder: Path) -> None:
    """Six pictures."""
    for place, color in enumerate(COLORS):
        Image.new("RGB", (48, 48 - 8 * (place % 2)), color).save(folder / f"{place}.png")


def train(pictures: Path, *, kind: str = "none", **settings: Any) -> tuple[Any, TrainingLog]:
    """Two epochs over the pictures with what the recipe trains, in as many processes as there are.

    The last batch of an epoch has one row, so that a second process has none of its own.
    """
    backbone = load_backbone(Base())
    projector = [backbone.projector] if settings.pop("projector", False) else None
    config = ClmoeConfig(experts=4, r=8, alpha=16.0, init_seed=3, modules_to_save=projector)
    model = attach(backbone.model, config)
    shown, prompter = Pictures(backbone, root=pictures), make_prompter(backbone, suffix="")
    rows = [place % len(COLORS) for place in range(9)]

    def inputs(batch: Batch) -> dict[str, Tensor]:
        names = [f"{rows[row]}.png" for row in batch.rows]
        return shown.inputs(batch, names=names, train_projector=projector is not None)

    log = train_adapter(
        model,
        samples=[prompter.encode([("what color is it?", COLORS[r])], name=str(r)) for r in rows],
        inputs=inputs,
        settings=Train(**{"lr": 5e-3, "batch_size": 8, "epochs": 2, "clip": 0.5, **settings}),
        pad=backbone.tokenizer.pad_token_id,
        label="test",
        strategy=make_strategy(Settings.model_validate({"kind": kind}), kept=None),
    )
    return model, log


def train_shards(pictures: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Train with sharded parameters; the leading process saves adapter and losses.

    The second training is as that of a second task: Accelerate keeps its settings between them.
    """
    shard_as_shipped()
    train(pictures)
    model, log = train(pictures, **settings)
    assert is_sharded(model)
    assert all(type(p).__name__ == "DTensor" for p in model.parameters())
    save_adapter(model, folder / "adapter", write=world().leads)
    if world().leads:
        torch.save(log.losses, folder / "losses.pt")


def refuse_methods(pictures: Path, kinds: list[str], folder: Path) -> None:
    """Every process refuses these methods before anything is sharded."""
    shard_as_shipped()
    for kind in kinds:
        try:
            train(pictures, kind=kind)
        except UsageError as error:
            said = f"{error}\n{error.hint}\n"
            (folder / f"{kind}-{world().rank}").write_text(said, encoding="utf-8")

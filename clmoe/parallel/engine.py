"""Accelerate as the engine of a training: plain copies (DDP), FSDP2 or DeepSpeed, as configured.

`accelerate launch --config_file FILE -m clmoe_cli train` chooses by its file (see
`recipes/accelerate/`); whatever else comes of it than the file asked for is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from clmoe.errors import ClmoeError, UsageError
from clmoe.events import Note, emit
from clmoe.parallel.world import world


def make_engine(device: torch.device) -> Accelerator:
    """Return Accelerate for models on a device; their dtypes stay what they are.

    Raises:
        ClmoeError: It is another engine than was asked for.
    """
    engine = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    check_engine(engine)
    return engine


def prepare(
    engine: Accelerator, model: Any, optimizer: Any, *, micro_batch: int, clip: float
) -> tuple[Any, Any]:
    """Return model and optimizer as the engine runs them.

    Args:
        engine: From `make_engine`.
        model: What is called in the loop.
        optimizer: Over the model's trainable parameters.
        micro_batch: Samples at a time in a process (DeepSpeed wants to know).
        clip: Largest norm of the gradient (DeepSpeed clips by itself); 0: no clipping.
    """
    deepspeed = engine.distributed_type.value == "DEEPSPEED"
    if deepspeed:
        config = engine.state.deepspeed_plugin.deepspeed_config
        config |= deepspeed_sizes(micro_batch, processes=engine.num_processes)
        config["gradient_clipping"] = clip
    running, moving = engine.prepare(model, optimizer)
    assert deepspeed or _same(
        [p for group in moving.param_groups for p in group["params"]],
        [p for p in running.parameters() if p.requires_grad],
    ), "the optimizer moves other parameters than the model trains"
    return running, moving


def deepspeed_sizes(micro_batch: int, *, processes: int) -> dict[str, int]:
    """What DeepSpeed is told of a step, which it checks; the training loop accumulates itself.

    Accelerate keeps the configuration from one task to the next, so all of it is set each time.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "train_batch_size": micro_batch * processes,
    }


def refuse_shards(engine: Any, *, what: str) -> None:
    """Refuse an engine that does not leave whole parameters to every process, to what needs them.

    Raises:
        UsageError: The engine is FSDP or DeepSpeed.
    """
    kind = engine.distributed_type.value
    if kind in ("FSDP", "DEEPSPEED"):
        raise UsageError(
            f"{what} needs the whole parameters in every process, which {kind} does not promise",
            hint="train with plain copies: recipes/accelerate/multi_gpu.yaml, or --processes N",
        )


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return {id(one) for one in some} == {id(one) for one in others}


def can_resume(engine: Accelerator) -> bool:
    """Whether the loop's checkpoints hold the optimizer; DeepSpeed keeps it to itself."""
    if engine.distributed_type.value != "DEEPSPEED":
        return True
    emit(Note("DeepSpeed: no checkpoint is kept, an interrupted task is trained again"))
    return False


@contextmanager
def micro_batch(engine: Accelerator, model: Any, *, last: bool) -> Iterator[None]:
    """Accumulate the gradients of a micro-batch; the last one of a batch meets the others'."""
    engine.sync_gradients = last
    if last:
        yield
    else:
        with engine.no_sync(model):
            yield


def check_engine(engine: Any) -> None:
    """Compare what Accelerate set up with what its configuration asked for.

    Raises:
        ClmoeError: It is something else, such as plain copies where sharding was asked for.
    """
    flags = {"DEEPSPEED": "ACCELERATE_USE_DEEPSPEED", "FSDP": "ACCELERATE_USE_FSDP"}
    asked = [name for name, flag in flags.items() if os.environ.get(flag, "").lower() == "true"]
    if not asked:
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        several = "MULTI_GPU" if engine.device.type == "cuda" else "MULTI_CPU"
        asked = ["NO" if alone else several]
    found = engine.distributed_type.value
    if found not in asked or engine.num_processes != world().size:
        raise ClmoeError(
            f"{asked[0]} over {world().size} processes was asked for, but Accelerate made "
            f"{found} over {engine.num_processes} on {engine.device.type}",
            hint="FSDP and DeepSpeed need GPUs; on a CPU use `clmoe train --processes N`",
        )

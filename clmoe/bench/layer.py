"""`clmoe bench layer`: one adapted linear, and an MLP of three, beside plain and looped ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from clmoe.bench.contenders import LORA, OURS, PLAIN, Mixture, adapted, twin, wake
from clmoe.bench.machine import describe_machine, dtype_name, find_device, find_dtype
from clmoe.bench.measure import Measured, measure
from clmoe.bench.memory import memory_measure
from clmoe.bench.timing import Work
from clmoe.errors import UsageError

FORWARD, BOTH = "forward", "forward and backward"
LARGE = {"hidden": 4096, "intermediate": 11008, "tokens": 8192}  # LLaVA-1.5-7B's FFN
SMALL = {"hidden": 1024, "intermediate": 2752, "tokens": 256}


def bench_layer(
    *,
    hidden: int | None = None,
    intermediate: int | None = None,
    tokens: int | None = None,
    rank: int = 64,
    experts: int = 8,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int = 20,
    seconds: float = 30.0,
) -> dict[str, Any]:
    """Measure a linear [hidden -> intermediate] and an MLP of three.

    Args:
        hidden: Width of the model; None: LLaVA-1.5-7B's on a GPU, a smaller one on a CPU.
        intermediate: Width of its MLPs, likewise.
        tokens: Tokens in a run, likewise.
        rank: r, the same for all adapters.
        experts: n.
        dtype: Of the base; None: bfloat16 on a GPU, float32 on a CPU.
        device: None: a GPU where there is one.
        repeats: At most so many rounds.
        seconds: What all rounds may take together, half for the linear, half for the MLP.

    Returns:
        Settings, machine and figures as plain data.
    """
    where = find_device(device)
    kind = find_dtype(dtype, device=where)
    usual = LARGE if where.type == "cuda" else SMALL
    sizes = {
        "hidden": usual["hidden"] if hidden is None else hidden,
        "intermediate": usual["intermediate"] if intermediate is None else intermediate,
        "tokens": usual["tokens"] if tokens is None else tokens,
    }
    for name, size in sizes.items():
        if size < 2 or (name == "hidden" and size % 2):
            raise UsageError(f"--{name} {size} is not possible", hint="an even number, at least 2")
    base = host(sizes["hidden"], sizes["intermediate"], device=where, dtype=kind)
    blocks = {
        "linear": Mixture(rank, experts, targets=["up_proj"], routers="per-linear"),
        "mlp": Mixture(rank, experts),
    }
    measured = {
        name: measure(
            {
                contender: phases(part, tokens=sizes["tokens"], width=sizes["hidden"])
                for contender, part in parts(base, mixture, name).items()
            },
            reference=LORA, needed=OURS, samples=sizes["tokens"], device=where, dtype=kind,
            repeats=repeats, seconds=seconds / len(blocks), label=f"bench {name}",
        )
        for name, mixture in blocks.items()
    }  # fmt: skip
    return {
        "bench": "layer",
        "settings": {**sizes, "rank": rank, "experts": experts, "dtype": dtype_name(kind)},
        "environment": describe_machine(where),
        "memory_measure": memory_measure(where),
        "reference": LORA,
        "blocks": {name: _data(one) for name, one in measured.items()},
    }


def host(hidden: int, intermediate: int, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A Llama of one block, whose MLP is measured; its parameters are random and frozen."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(config)
    return model.to(dtype).requires_grad_(False)


def parts(base: Any, mixture: Mixture, block: str) -> dict[str, nn.Module]:
    """The linear or the MLP of every contender, by name."""
    found = {PLAIN: _part(twin(base), block)}
    for name, model in adapted(base, mixture):
        wake(model)
        found[name] = _part(model.get_base_model(), block)
    return found


def phases(part: nn.Module, *, tokens: int, width: int) -> dict[str, Work]:
    """Forward alone, and forward with backward, into the input and all that is trained."""
    weight = next(part.parameters())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, tokens, width, generator=generator).to(weight.device, weight.dtype)
    x.requires_grad_()
    with torch.no_grad():
        gradient = torch.ones_like(part(x))

    def forward() -> Tensor:
        out: Tensor = part(x)
        return out

    def both() -> None:
        forward().backward(gradient)  # type: ignore[no-untyped-call]

    def reset() -> None:
        x.grad = None
        part.zero_grad(set_to_none=True)

    return {FORWARD: Work(forward, reset), BOTH: Work(both, reset)}


def _part(model: Any, block: str) -> nn.Module:
    mlp: Any = model.get_decoder().layers[0].mlp
    found: nn.Module = mlp if block == "mlp" else mlp.up_proj
    return found


def _data(measured: Measured) -> dict[str, Any]:
    figures = measured.figures
    return {
        "rounds": measured.rounds,
        "left_out": list(measured.left_out),
        "matmul_flops_per_second": measured.matmul,
        "ratio": figures[OURS][BOTH].ratio.median,
        "rows": [
            {"name": name, **{phase: one.data() for phase, one in both.items()}}
            for name, both in figures.items()
        ],
    }

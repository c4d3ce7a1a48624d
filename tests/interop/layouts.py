"""Small adapter folders in the layouts of the released code, made from random experts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, VISION, LAYERS = 32, 48, 24, 2
FFN = {"gate_proj": (HIDDEN, INNER), "up_proj": (HIDDEN, INNER), "down_proj": (INNER, HIDDEN)}
ATTENTION = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (HIDDEN, HIDDEN))
BASE = "checkpoints/vicuna-7b"
LAYOUTS = ("official", "mcitlib", "easycl", "coin")


@dataclass
class Experts:
    """The numbers of an adapter: of each linear A_i [r/n, in], B_i [out, r/n] and W [n, in]."""

    a: dict[str, list[Tensor]] = field(default_factory=dict)
    b: dict[str, list[Tensor]] = field(default_factory=dict)
    router: dict[str, Tensor] = field(default_factory=dict)
    projector: dict[str, Tensor] = field(default_factory=dict)
    count: int = 4
    rank: int = 8
    alpha: float = 24.0


def random_experts(
    seed: int = 0, *, everything: bool = True, projector: bool = True, count: int = 4
) -> Experts:
    """Random experts for two decoder blocks; `a` and its like are keyed `L.mlp.gate_proj`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    found = Experts(count=count, rank=2 * count)
    for layer in range(LAYERS):
        kinds = {f"mlp.{name}": sizes for name, sizes in FFN.items()}
        if everything:
            kinds |= {f"self_attn.{name}": sizes for name, sizes in ATTENTION.items()}
        for name, (wide, tall) in kinds.items():
            path = f"{layer}.{name}"
            found.a[path] = [normal(2, wide) for _ in range(count)]
            found.b[path] = [normal(tall, 2) for _ in range(count)]
            found.router[path] = normal(count, wide)
    if projector:
        for index, wide in ((0, VISION), (2, HIDDEN)):
            found.projector[f"{index}.weight"] = normal(HIDDEN, wide)
            found.projector[f"{index}.bias"] = normal(HIDDEN)
    return found


def released_tensors(experts: Experts, layout: str) -> dict[str, Tensor]:
    """The experts by the names of a layout; the projector is not among them."""
    default = ".default" if layout == "mcitlib" else ""
    decoder = "model.language_model." if layout == "easycl" else "model."
    found: dict[str, Tensor] = {}
    for path in experts.a:
        start = f"base_model.model.{decoder}layers.{path}"
        for factor, parts in (("A", experts.a[path]), ("B", experts.b[path])):
            for i, tensor in enumerate(parts):
                name = f"{start}.lora_{factor}{default}.lora{factor}.{i}"
                found[f"{name}.weight"] = tensor
                if layout == "easycl":
                    found[f"{name}.mlp.weight"] = tensor.clone()
        found[f"{start}.lora_router{default}.weight"] = experts.router[path]
    return found


def released_config(experts: Experts, layout: str) -> dict[str, Any]:
    """`adapter_config.json` as the released code writes it."""
    return {
        "auto_mapping": None,
        "base_model_name_or_path": BASE,
        "bias": "none",
        "expert_num": experts.count,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": experts.alpha,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "MOE_LORA_CoIN" if layout == "coin" else "MOE_LORA_CLMoE",
        "r": experts.rank,
        "revision": None,
        "target_modules": sorted({path.rpartition(".")[2] for path in experts.a}),
        "task_embedding_dim": 64,
        "task_type": "CAUSAL_LM",
    }


def write_released(
    folder: Path,
    experts: Experts,
    layout: str = "official",
    *,
    tensors: dict[str, Tensor] | None = None,
    **changes: Any,
) -> Path:
    """Write a folder of one layout.

    Args:
        folder: Where to; made here.
        experts: The numbers.
        layout: One of `LAYOUTS`.
        tensors: What to write in place of the experts' tensors.
        changes: Fields of `adapter_config.json`.
    """
    folder.mkdir()
    config = released_config(experts, layout) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    content = released_tensors(experts, layout) if tensors is None else tensors
    if layout == "coin":
        save_file(content, folder / "adapter_model.safetensors")
    else:
        torch.save(content, folder / "adapter_model.bin")
    if experts.projector:
        names = {
            f"base_model.model.model.mm_projector.{n}": t for n, t in experts.projector.items()
        }
        torch.save(names, folder / "non_lora_trainables.bin")
    if layout in ("official", "coin"):
        sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
        base = {"_name_or_path": BASE, "model_type": "llava_llama", **sizes}
        (folder / "config.json").write_text(json.dumps(base))
    if layout == "easycl":
        (folder / "value_counts_location.txt").write_text("0:12\n1:9\n")
        (folder / "index_location.txt").write_text("0\n1\n")
        (folder / "not_aligned").mkdir()
        torch.save(content, folder / "not_aligned" / "adapter_model.bin")
    return folder

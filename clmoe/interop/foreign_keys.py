"""Names of tensors in the released code, and what they are called here.

Released: `base_model.model.model.layers.L.self_attn.q_proj.lora_A.loraA.i.weight`, the same with
`lora_B.loraB.i`, and `....lora_router.weight`; `base_model.model.model.mm_projector.{0,2}`. A name
may carry `.default` (PEFT's name of the adapter), and EasyCL saves each factor a second time as
`loraA.i.mlp.weight`. Here: the decoder is `model.language_model` and the projector
`model.multi_modal_projector`, as in the LLaVA of transformers 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from clmoe.model.adapter_info import PREFIX

Kind = Literal["A", "B", "router", "projector"]
FACTORS: tuple[Kind, Kind] = ("A", "B")

PROJECTOR = "model.multi_modal_projector"
PROJECTOR_TENSORS = tuple(
    f"{PROJECTOR}.linear_{number}.{what}" for number in (1, 2) for what in ("weight", "bias")
)

_LINEAR = (
    r"(?:model\.language_model\.|language_model\.model\.|model\.)layers\.(?P<layer>\d+)\."
    r"(?P<rest>[\w.]+?)"
)
_FACTOR = re.compile(
    _LINEAR + r"\.lora_(?P<factor>[AB])\.lora(?P=factor)\.(?P<expert>\d+)(?:\.mlp)?\.weight"
)
_ROUTER = re.compile(_LINEAR + r"\.lora_router\.weight")
_PROJECTOR = re.compile(
    r"(?:model\.)?(?:mm_projector\.(?P<index>[02])|multi_modal_projector\.linear_(?P<number>[12]))"
    r"\.(?P<what>weight|bias)"
)
_NUMBER_OF = {"0": "1", "2": "2"}


@dataclass(frozen=True)
class Place:
    """What a foreign tensor is.

    Attributes:
        kind: A factor "A" or "B" of one expert, a "router", or a tensor of the "projector".
        path: Path of the adapted linear (of the tensor, for the projector) in the base model here.
        expert: Index of the expert, from 0; 0 for the other kinds.
    """

    kind: Kind
    path: str
    expert: int = 0


def place_of(key: str) -> Place | None:
    """What a key stands for; None where it is unknown. EasyCL's second name is no other place."""
    name = ".".join(part for part in key.split(".") if part != "default").removeprefix(PREFIX)
    if found := _FACTOR.fullmatch(name):
        kind: Kind = "A" if found["factor"] == "A" else "B"
        return Place(kind, _path(found), int(found["expert"]))
    if found := _ROUTER.fullmatch(name):
        return Place("router", _path(found))
    if found := _PROJECTOR.fullmatch(name):
        number = found["number"] or _NUMBER_OF[found["index"]]
        return Place("projector", f"{PROJECTOR}.linear_{number}.{found['what']}")
    return None


def _path(found: re.Match[str]) -> str:
    return f"model.language_model.layers.{found['layer']}.{found['rest']}"

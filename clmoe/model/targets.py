"""Which linears carry experts, and which router each of them uses.

Only linears inside the decoder's blocks are ever considered: the decoder is found by the model's
own `get_decoder()`, because the blocks of a vision tower have MLPs with the same names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from clmoe.errors import ClmoeError

_MLP_NAMES = ("mlp", "feed_forward", "ffn")


@dataclass(frozen=True)
class TargetPlan:
    """The linears to adapt.

    Attributes:
        router_of: Path of each adapted linear -> path of the linear that holds its router, in model
            order.
        router_width: Path of each router's holder -> size of what that router reads.
        blocks: Paths of the modules (MLPs, attentions) whose input a shared router reads.
    """

    router_of: dict[str, str]
    router_width: dict[str, int]
    blocks: tuple[str, ...]


def decoder_blocks(model: Any) -> dict[str, nn.Module]:
    """Return the decoder's blocks by path in `model`, in order.

    Raises:
        ClmoeError: The model has no decoder, or its decoder no list of blocks.
    """
    if not hasattr(model, "get_decoder"):
        raise ClmoeError(
            f"{type(model).__name__} has no decoder to attach experts to (no get_decoder())",
            hint="use a decoder-only model of transformers",
        )
    decoder: nn.Module = model.get_decoder()
    root = next(path for path, module in model.named_modules() if module is decoder)
    lists = [
        (f"{root}.{name}".lstrip("."), child)
        for name, child in decoder.named_children()
        if isinstance(child, nn.ModuleList) and any(_linears(child))
    ]
    if len(lists) != 1:
        raise ClmoeError(
            f"the decoder {type(decoder).__name__} has {len(lists)} lists of blocks, not one; "
            f"its parts are {', '.join(name for name, _ in decoder.named_children())}",
            hint="supported are decoder-only models whose blocks are one list",
        )
    path, blocks = lists[0]
    return {f"{path}.{index}": block for index, block in enumerate(blocks)}


def resolve_targets(model: Any, *, targets: str | list[str], routers: str) -> TargetPlan:
    """Find the linears that `targets` means in this model, and their routers.

    Args:
        model: The base model, with or without adapters attached.
        targets: "ffn", "all-linear", or patterns. A pattern is compared, as a shell pattern, with a
            linear's last name ("q_proj"), its path inside the block ("mlp.*") and its whole path.
        routers: "per-block" or "per-linear".

    Raises:
        ClmoeError: Nothing matches, a pattern matches nothing, a block's MLP is not made of
            linears, or linears that should share a router stand in no module of their own.
    """
    blocks = decoder_blocks(model)
    hidden = int(model.config.get_text_config().hidden_size)
    if targets == "ffn":
        chosen = [
            f"{path}.{name}"
            for path, block in blocks.items()
            for name in _ffn(path, block, hidden=hidden)
        ]
    elif isinstance(targets, str) and targets != "all-linear":
        raise ClmoeError(
            f"adapter targets {targets!r} are not known",
            hint="use ffn, all-linear, or a list of patterns such as [q_proj, mlp.*]",
        )
    else:
        patterns = ["*"] if isinstance(targets, str) else list(targets)
        chosen = _matching(blocks, patterns)
    if routers == "per-linear":
        widths = {path: int(model.get_submodule(path).in_features) for path in chosen}
        return TargetPlan({path: path for path in chosen}, widths, ())
    return _shared(model, blocks, chosen, hidden=hidden)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, BaseTunerLayer):
        return isinstance(module.get_base_layer(), nn.Linear)
    return isinstance(module, nn.Linear)


def _linears(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the linears below a module by relative path, never those inside an adapted linear."""
    for name, child in module.named_children():
        if _is_linear(child):
            yield f"{prefix}{name}", child
        elif not isinstance(child, BaseTunerLayer):
            yield from _linears(child, f"{prefix}{name}.")


def _ffn(path: str, block: nn.Module, *, hidden: int) -> list[str]:
    """Return the relative paths of the linears of a block's one MLP."""
    candidates = {
        name: dict(_linears(child))
        for name, child in block.named_children()
        if not _is_linear(child) and "attn" not in name and "attention" not in name
    }
    candidates = {name: linears for name, linears in candidates.items() if linears}
    if len(candidates) > 1:  # a block may mix tokens in another way than by attention
        candidates = {n: linears for n, linears in candidates.items() if n in _MLP_NAMES}
    if len(candidates) == 1:
        name, linears = next(iter(candidates.items()))
        reads = {linear.in_features for linear in linears.values()}
        writes = {linear.out_features for linear in linears.values()}
        plain = all("." not in linear for linear in linears) and len(linears) in (2, 3)
        plain = plain and not _holds_matrices(block.get_submodule(name))
        if plain and hidden in reads and hidden in writes:
            return [f"{name}.{linear}" for linear in linears]
    parts = ", ".join(f"{name} ({type(child).__name__})" for name, child in block.named_children())
    raise ClmoeError(
        f"{path} has no MLP made of plain linears; its parts are {parts}",
        hint="name the linears in adapter.targets, e.g. [q_proj, v_proj]",
    )


def _holds_matrices(module: nn.Module) -> bool:
    """Whether a module has matrices of its own beside its linears, as fused experts are."""
    if _is_linear(module) or isinstance(module, BaseTunerLayer):
        return False
    own = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    return own or any(_holds_matrices(child) for child in module.children())


def _matching(blocks: dict[str, nn.Module], patterns: list[str]) -> list[str]:
    chosen: list[str] = []
    seen: set[str] = set()
    unused = set(patterns)
    for path, block in blocks.items():
        for relative, _ in _linears(block):
            full, last = f"{path}.{relative}", relative.rpartition(".")[2]
            seen.add(relative)
            hits = {
                pattern
                for pattern in patterns
                if any(fnmatch.fnmatchcase(name, pattern) for name in (last, relative, full))
            }
            unused -= hits
            if hits:
                chosen.append(full)
    if unused or not chosen:
        raise ClmoeError(
            f"adapter targets {sorted(unused)} match no linear of {len(blocks)} decoder blocks; "
            f"the linears of a block are {', '.join(sorted(seen))}"
        )
    return chosen


def _shared(
    model: Any, blocks: dict[str, nn.Module], chosen: list[str], *, hidden: int
) -> TargetPlan:
    """Give the linears of each module (MLP, attention) one router, held by the first that fits.

    The holder is the first linear that reads what the module reads, else the first one; the router
    itself always reads the module's input, of size `hidden`.
    """
    holder: dict[str, str] = {}
    for path in chosen:
        block = path.rpartition(".")[0]
        if block in blocks:
            raise ClmoeError(
                f"{path} stands directly in its decoder block, so no module's input is the MLP's",
                hint="use adapter.routers=per-linear",
            )
        reads_input = int(model.get_submodule(path).in_features) == hidden
        current = holder.get(block)
        if current is None or (
            reads_input and int(model.get_submodule(current).in_features) != hidden
        ):
            holder[block] = path
    router_of = {path: holder[path.rpartition(".")[0]] for path in chosen}
    return TargetPlan(router_of, dict.fromkeys(holder.values(), hidden), tuple(holder))

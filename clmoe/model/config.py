"""The configuration of the PEFT method `CLMOE`, stored as `adapter_config.json`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peft import PeftConfig

from clmoe.errors import ClmoeError

if TYPE_CHECKING:
    from clmoe.recipe.schema import Adapter


class MethodType(enum.StrEnum):
    """PEFT's name for this method; a string enum, as PEFT's own method names are."""

    CLMOE = "CLMOE"


@dataclass
class ClmoeConfig(PeftConfig):  # type: ignore[misc]
    """What an adapter is: how many experts, of which rank, on which linears, with which routers.

    Attributes:
        experts: Number of experts, n. With 1 there is no router and the layer is plain LoRA.
        r: Total rank of all experts together, r; n must divide it.
        alpha: Scaling numerator, alpha; the addition is scaled by alpha / r.
        dropout: Share of the experts' input zeroed in training, in [0, 1).
        targets: "ffn" (gate, up and down of every decoder block), "all-linear" (every linear of
            every decoder block), or a list of patterns (`clmoe.model.targets`).
        routers: "per-block" (the linears of one MLP share a router that reads the MLP's input,
            those of one attention a router that reads the attention's input) or "per-linear" (each
            linear has a router that reads its own input).
        router_std: Standard deviation of a new router's weights.
        init_seed: Seed of the initial weights.
        modules_to_save: Modules trained whole, in float32, and saved with the adapter, e.g. the
            projector.
        router_of: For each adapted linear the linear that holds its router, by path in the base
            model; filled when the adapter is attached. With n = 1 it only names the groups.
        target_modules: Stays None: PEFT reads it, but this method resolves `targets` itself, so
            that no vision tower is ever matched.
    """

    experts: int = 8
    r: int = 64
    alpha: float = 128.0
    dropout: float = 0.0
    targets: str | list[str] = "ffn"
    routers: str = "per-block"
    router_std: float = 0.02
    init_seed: int = 0
    modules_to_save: list[str] | None = None
    router_of: dict[str, str] | None = None
    target_modules: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ClmoeError: A value is out of range; the message gives it and what is allowed.
        """
        super().__post_init__()
        self.peft_type = MethodType.CLMOE
        if self.experts < 1 or self.r < 1 or self.r % self.experts:
            raise ClmoeError(
                f"rank {self.r} cannot be shared by {self.experts} experts",
                hint="choose a rank that is a multiple of the number of experts",
            )
        if self.routers not in ("per-block", "per-linear"):
            raise ClmoeError(f"routers is {self.routers!r}, not 'per-block' or 'per-linear'")
        if not 0.0 <= self.dropout < 1.0:
            raise ClmoeError(f"dropout is {self.dropout}, not in [0, 1)")
        if self.target_modules is not None:
            raise ClmoeError(
                "target_modules is not used by this method", hint="name the linears in `targets`"
            )

    @classmethod
    def from_recipe(
        cls,
        adapter: Adapter,
        *,
        base: str,
        seed: int = 0,
        modules_to_save: Sequence[str] = (),
    ) -> ClmoeConfig:
        """Return the configuration of a new adapter.

        Args:
            adapter: The recipe's section.
            base: Name of the base model, kept in the adapter's file.
            seed: Seed of the initial weights.
            modules_to_save: Modules to train whole, e.g. the projector's name.
        """
        targets = adapter.targets
        return cls(
            base_model_name_or_path=base,
            experts=adapter.experts,
            r=adapter.rank,
            alpha=adapter.alpha,
            dropout=adapter.dropout,
            targets=targets if isinstance(targets, str) else list(targets),
            routers=adapter.routers,
            router_std=adapter.router_std,
            init_seed=seed,
            modules_to_save=list(modules_to_save) or None,
        )

    @property
    def scaling(self) -> float:
        """The factor alpha / r of Equation 3."""
        return self.alpha / self.r

"""Equations 10 and 11: the role of each expert, and the vector of lambdas.

    lambda_i = 1 - gamma   if i is in E_t and not in E_pre   (task-specific)
    lambda_i = gamma       if i is in E_t and in E_pre       (task-shared)
    lambda_i = gamma       if i is not in E_t                (none)

E_pre is the union of E_1 .. E_{t-1}. Eq 12 weighs the old expert by lambda_i, so a specific
expert mostly takes the new weights and every other expert mostly keeps the old ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clmoe.errors import ClmoeError

Role = Literal["specific", "shared", "none"]

SINGLE_EXPERT = "single expert"
"""Name of the one set of roles of an adapter with n = 1, which has no router."""


@dataclass(frozen=True)
class ExpertRoles:
    """What a merge does with the n experts of one router.

    Attributes:
        roles: The role of each expert, n of them.
        lambdas: Eq 11: the weight of the old expert in Eq 12, n of them.
    """

    roles: tuple[Role, ...]
    lambdas: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses two lists of different length."""
        assert len(self.roles) == len(self.lambdas)


def expert_roles(
    selected: Collection[int], *, earlier: Collection[int], experts: int
) -> tuple[Role, ...]:
    """The roles of Eq 10.

    Args:
        selected: E_t, the experts this task uses most.
        earlier: E_pre, the union of E_1 .. E_{t-1}.
        experts: n.

    Returns:
        n roles: "specific", "shared" or "none".

    Raises:
        ClmoeError: An index is outside 0 .. n-1.
    """
    wrong = sorted({i for i in (*selected, *earlier) if not 0 <= i < experts})
    if wrong:
        raise ClmoeError(f"experts {wrong} do not exist: there are {experts}, counted from 0")
    new, old = set(selected), set(earlier)
    return tuple(
        "none" if i not in new else "shared" if i in old else "specific" for i in range(experts)
    )


def expert_lambdas(roles: Sequence[Role], *, gamma: float) -> tuple[float, ...]:
    """The vector of Eq 11: 1 - gamma for a specific expert, gamma for any other."""
    return tuple(1.0 - gamma if role == "specific" else gamma for role in roles)


def assign_roles(
    current: Mapping[str, Collection[int]],
    *,
    previous: Iterable[Mapping[str, Collection[int]]],
    experts: int,
    gamma: float,
) -> dict[str, ExpertRoles]:
    """Roles and lambdas of every router for task t.

    Args:
        current: E_t of each router.
        previous: The same for tasks 1 .. t-1; E_pre is their union.
        experts: n.
        gamma: The momentum; a recipe accepts (0.5, 1] unless told otherwise.

    Raises:
        ClmoeError: Two tasks have different routers, or an expert does not exist.
    """
    earlier: dict[str, set[int]] = {router: set() for router in current}
    for number, task in enumerate(previous, start=1):
        if task.keys() != earlier.keys():
            names = ", ".join(sorted(task.keys() ^ earlier.keys()))
            raise ClmoeError(
                f"task {number} and the current task have different routers: {names}",
                hint="both must come from the same base model and adapter; route both again",
            )
        for router, chosen in task.items():
            earlier[router] |= set(chosen)
    result: dict[str, ExpertRoles] = {}
    for router, chosen in current.items():
        roles = expert_roles(chosen, earlier=earlier[router], experts=experts)
        result[router] = ExpertRoles(roles, expert_lambdas(roles, gamma=gamma))
    return result


def single_expert_roles(*, gamma: float) -> dict[str, ExpertRoles]:
    """The roles for n = 1 and t > 1: the one expert is always shared, so momentum is uniform."""
    return {SINGLE_EXPERT: ExpertRoles(("shared",), (gamma,))}

"""Eq 10 and 11 by hand, and the properties they must have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmoe.errors import ClmoeError
from clmoe.method.expert_roles import (
    SINGLE_EXPERT,
    assign_roles,
    expert_lambdas,
    expert_roles,
    single_expert_roles,
)

experts_of_a_task = st.sets(st.integers(0, 7), min_size=1, max_size=4)


def test_roles_and_lambdas_by_hand() -> None:
    roles = expert_roles({1, 3}, earlier={0, 3}, experts=5)
    assert roles == ("none", "specific", "none", "shared", "none")
    assert expert_lambdas(roles, gamma=0.7) == (0.7, pytest.approx(0.3), 0.7, 0.7, 0.7)


def test_earlier_experts_are_the_union_of_all_tasks_not_the_last_one() -> None:
    tasks = [{"r": (0, 1)}, {"r": (2, 3)}]
    roles = assign_roles({"r": (0, 4)}, previous=tasks, experts=6, gamma=0.7)["r"].roles
    assert roles == ("shared", "none", "none", "none", "specific", "none")


def test_routers_are_apart() -> None:
    found = assign_roles(
        {"first": (0,), "second": (0,)},
        previous=[{"second": (0,), "first": (1,)}],
        experts=2,
        gamma=0.8,
    )
    assert found["first"].roles == ("specific", "none")
    assert found["first"].lambdas == (pytest.approx(0.2), 0.8)
    assert found["second"].roles == ("shared", "none")


@given(st.lists(experts_of_a_task, min_size=1, max_size=5), st.floats(0.51, 1.0))
def test_every_expert_has_the_lambda_of_equation_10(tasks: list[set[int]], gamma: float) -> None:
    *earlier, now = tasks
    found = assign_roles(
        {"r": now}, previous=[{"r": task} for task in earlier], experts=8, gamma=gamma
    )["r"]
    for i in range(8):
        in_now, in_earlier = i in now, any(i in task for task in earlier)
        expected = 1 - gamma if in_now and not in_earlier else gamma
        assert found.lambdas[i] == expected
        assert found.roles[i] == ("none" if not in_now else "shared" if in_earlier else "specific")


def test_gamma_one_gives_exact_ones_and_zeros() -> None:
    roles = expert_roles({0}, earlier=set(), experts=2)
    assert expert_lambdas(roles, gamma=1) == (0.0, 1.0)


def test_one_expert_is_shared_and_its_momentum_uniform() -> None:
    roles = single_expert_roles(gamma=0.7)[SINGLE_EXPERT]
    assert (roles.roles, roles.lambdas) == (("shared",), (0.7,))


def test_bad_input_is_named() -> None:
    with pytest.raises(ClmoeError, match=r"experts \[-1, 4\] do not exist"):
        expert_roles({4}, earlier={-1}, experts=4)
    with pytest.raises(ClmoeError, match="task 1 and the current task have different routers: b"):
        assign_roles({"a": (0,)}, previous=[{"a": (0,), "b": (1,)}], experts=2, gamma=0.7)

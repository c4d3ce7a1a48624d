"""Eq 12 against a slow version, bit for bit where it must be, and merges that must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.method.expert_roles import (
    SINGLE_EXPERT,
    ExpertRoles,
    assign_roles,
    expert_lambdas,
    expert_roles,
    single_expert_roles,
)
from clmoe.method.merge_report import MergeReport, same_bits
from clmoe.method.momentum import interpolate, merge_adapters

P = "base_model.model."
FIRST, SECOND = "layers.0.mlp.gate", "layers.10.mlp.gate"
ROUTER_OF = {FIRST: FIRST, "layers.0.mlp.down": FIRST, SECOND: SECOND}
FACTORS = [f"{P}{linear}.clmoe_{f}.weight" for linear in ROUTER_OF for f in "AB"]
WIDTH = 2  # rank 8 of 4 experts


def roles_for(gamma: float) -> dict[str, ExpertRoles]:
    """At the first router expert 0 is shared and 1 specific; at the second 3 is specific."""
    return assign_roles(
        {FIRST: (0, 1), SECOND: (3,)},
        previous=[{FIRST: (0,), SECOND: (1,)}, {FIRST: (2,), SECOND: (1,)}],
        experts=4,
        gamma=gamma,
    )


def expert(tensors: dict[str, Tensor], name: str, i: int) -> Tensor:
    part = slice(i * WIDTH, (i + 1) * WIDTH)
    return tensors[name][part] if "clmoe_A" in name else tensors[name][:, part]


def merged(out: Path) -> dict[str, Tensor]:
    return load_file(out / "adapter_model.safetensors")


class Case:
    """Two adapters and a place for the merge."""

    def __init__(self, write: Callable[..., Path], make: Callable[..., dict], root: Path) -> None:
        self.write, self.make, self.out = write, make, root / "out"
        self.old, self.new = make(1), make(2)
        self.roles = roles_for(0.7)

    def merge(self, *, gamma: float = 0.7, changes: dict | None = None, **options) -> MergeReport:
        count = len(list(self.out.parent.iterdir()))
        old = self.write(f"old{count}", self.old)
        new = self.write(f"new{count}", self.new, **(changes or {}))
        roles = options.pop("roles", None) or roles_for(gamma)
        return merge_adapters(
            old, current_dir=new, out_dir=self.out, roles=roles, gamma=gamma, **options
        )


@pytest.fixture
def case(write_adapter: Callable[..., Path], make_tensors: Callable[..., dict], tmp_path: Path):
    return Case(write_adapter, make_tensors, tmp_path)


def test_one_number_by_hand() -> None:
    old, new = torch.tensor([10.0]), torch.tensor([20.0])
    assert interpolate(old, current=new, weight=0.7).tolist() == pytest.approx([13.0])
    assert interpolate(old, current=new, weight=1.0 - 0.7).tolist() == pytest.approx([17.0])


def test_every_expert_of_every_linear_follows_equation_12(case: Case) -> None:
    case.merge()
    result, roles = merged(case.out), roles_for(0.7)
    for name in FACTORS:
        linear = name.removeprefix(P).rsplit(".clmoe", 1)[0]
        for i, weight in enumerate(roles[ROUTER_OF[linear]].lambdas):
            expected = weight * expert(case.old, name, i) + (1 - weight) * expert(case.new, name, i)
            assert torch.allclose(expert(result, name, i), expected, atol=1e-6), (name, i)
    assert roles[FIRST].roles == ("shared", "specific", "none", "none")
    assert roles[SECOND].lambdas == (0.7, 0.7, 0.7, pytest.approx(0.3))


@pytest.mark.parametrize("space", ["factors", "product"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gamma_one_is_bit_for_bit(case: Case, space: str, dtype: torch.dtype) -> None:
    case.old, case.new = case.make(1, dtype=dtype), case.make(2, dtype=dtype)
    # A source's bits, not only its values: expert 0 is kept, expert 1 replaced.
    case.old[FACTORS[0]][0, 0] = case.new[FACTORS[0]][2, 0] = -0.0
    case.merge(gamma=1.0, space=space)
    result, roles = merged(case.out), roles_for(1.0)
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    for name in FACTORS:
        linear = name.removeprefix(P).rsplit(".clmoe", 1)[0]
        for i, role in enumerate(roles[ROUTER_OF[linear]].roles):
            source = case.new if role == "specific" else case.old
            assert torch.equal(
                expert(result, name, i).contiguous().view(kind),
                expert(source, name, i).contiguous().view(kind),
            )


def test_bfloat16_is_computed_in_fp32_and_rounded_once(case: Case) -> None:
    case.old, case.new = (case.make(seed, dtype=torch.bfloat16) for seed in (1, 2))
    case.merge()
    result = merged(case.out)
    name = FACTORS[-1]
    old, new = expert(case.old, name, 0).float(), expert(case.new, name, 0).float()
    assert result[name].dtype == torch.bfloat16
    assert torch.equal(expert(result, name, 0), (new + 0.7 * (old - new)).bfloat16())


def test_product_space_merges_what_the_experts_compute(case: Case) -> None:
    report = case.merge(space="product")
    result, roles = merged(case.out), roles_for(0.7)
    loss = torch.zeros(4, dtype=torch.float64)
    whole = torch.zeros(4, dtype=torch.float64)
    for linear, router in ROUTER_OF.items():
        a, b = (f"{P}{linear}.clmoe_{f}.weight" for f in "AB")
        for i, weight in enumerate(roles[router].lambdas):
            product = [
                expert(source, b, i).double() @ expert(source, a, i).double()
                for source in (case.old, case.new, result)
            ]
            wanted = weight * product[0] + (1 - weight) * product[1]
            u, s, vh = torch.linalg.svd(wanted, full_matrices=False)
            best = (u[:, :WIDTH] * s[:WIDTH]) @ vh[:WIDTH]
            assert torch.allclose(product[2], best, atol=1e-4)
            if router == FIRST:
                loss[i] += s[WIDTH:].square().sum()
                whole[i] += s.square().sum()
    for change in report.changes[FIRST]:
        expected = float((loss[change.expert] / whole[change.expert]).sqrt())
        assert change.discarded == pytest.approx(expected, rel=1e-3)


def test_the_report_says_what_changed_and_by_how_much(case: Case) -> None:
    report = case.merge()
    result = merged(case.out)
    assert not report.first_task
    assert (report.factors.total, report.routers.total, report.extras.total) == (6, 2, 0)
    assert report.factors.differ_from_current == report.factors.differ_from_previous == 6
    assert (report.routers.differ_from_current, report.routers.differ_from_previous) == (0, 2)
    assert list(report.changes) == [FIRST, SECOND]
    for router, changes in report.changes.items():
        names = [
            n for n in FACTORS if ROUTER_OF[n.removeprefix(P).rsplit(".clmoe", 1)[0]] == router
        ]
        for i, change in enumerate(changes):
            assert (change.expert, change.role) == (i, case.roles[router].roles[i])
            assert change.weight == case.roles[router].lambdas[i]
            for source, found in (
                (case.old, change.from_previous),
                (case.new, change.from_current),
            ):
                apart = sum(
                    float((expert(result, n, i) - expert(source, n, i)).square().sum())
                    for n in names
                )
                size = sum(float(expert(source, n, i).square().sum()) for n in names)
                assert found == pytest.approx((apart / size) ** 0.5, rel=1e-4)
            assert change.discarded is None
    json.dumps(report.as_dict(), allow_nan=False)


def test_the_sign_of_zero_is_a_difference() -> None:
    assert same_bits(torch.tensor([1.0, -0.0]), torch.tensor([1.0, -0.0]))
    assert not same_bits(torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0]))


def test_a_change_from_nothing_has_no_ratio(case: Case) -> None:
    for name in FACTORS:
        case.old[name] = torch.zeros_like(case.old[name])
    report = case.merge()
    assert report.changes[FIRST][0].from_previous is None
    assert report.changes[FIRST][0].from_current == pytest.approx(0.7)


@pytest.mark.parametrize(("rule", "weight"), [("keep", 0.0), ("momentum", 0.7), ("previous", 1.0)])
def test_routers_follow_their_rule(case: Case, rule: str, weight: float) -> None:
    report = case.merge(routers=rule)
    name = f"{P}{FIRST}.clmoe_router.weight"
    expected = weight * case.old[name] + (1 - weight) * case.new[name]
    assert torch.allclose(merged(case.out)[name], expected, atol=1e-6)
    counts = report.routers
    assert (counts.differ_from_current == 0) == (rule == "keep")
    assert (counts.differ_from_previous == 0) == (rule == "previous")


@pytest.mark.parametrize(("rule", "weight"), [("keep", 0.0), ("momentum", 0.7)])
def test_a_trained_projector_follows_its_rule(case: Case, rule: str, weight: float) -> None:
    case.old, case.new = case.make(1, projector=True), case.make(2, projector=True)
    save_modules = {"modules_to_save": ["projector"]}
    old = case.write("old", case.old, **save_modules)
    new = case.write("new", case.new, **save_modules)
    report = merge_adapters(
        old, current_dir=new, out_dir=case.out, roles=case.roles, gamma=0.7, extras=rule
    )
    name = f"{P}projector.linear.weight"
    expected = weight * case.old[name] + (1 - weight) * case.new[name]
    assert torch.allclose(merged(case.out)[name], expected, atol=1e-6)
    assert report.extras.total == 1


def test_one_expert_has_uniform_momentum(case: Case) -> None:
    for tensors in (case.old, case.new):
        for name in [name for name in tensors if "router" in name]:
            del tensors[name]
    old, new = case.write("old", case.old, experts=1), case.write("new", case.new, experts=1)
    report = merge_adapters(
        old, current_dir=new, out_dir=case.out, roles=single_expert_roles(gamma=0.7), gamma=0.7
    )
    result = merged(case.out)
    for name in FACTORS:
        expected = 0.7 * case.old[name] + 0.3 * case.new[name]
        assert torch.allclose(result[name], expected, atol=1e-6)
    assert list(report.changes) == [SINGLE_EXPERT]
    assert report.routers.total == 0


def test_the_first_task_is_copied_byte_for_byte(case: Case) -> None:
    new = case.write("new", case.new)
    (new / "README.md").write_text("card")
    report = merge_adapters(None, current_dir=new, out_dir=case.out, roles={}, gamma=0.7)
    files = sorted(path.name for path in case.out.iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (case.out / name).read_bytes() == (new / name).read_bytes()
    assert report.first_task
    assert report.factors.differ_from_previous is None
    json.dumps(report.as_dict())


def test_the_file_is_what_the_library_would_write_and_the_rest_is_copied(case: Case) -> None:
    case.merge()
    path = case.out / "adapter_model.safetensors"
    assert path.read_bytes() == save(merged(case.out), metadata={"format": "pt"})
    config = json.loads((case.out / "adapter_config.json").read_text())
    assert config["experts"] == 4
    assert sorted(p.name for p in case.out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_merge_equal_to_phi_is_refused_with_likely_causes(case: Case) -> None:
    none = ("none",) * 4
    zero = {name: ExpertRoles(none, (0.0,) * 4) for name in (FIRST, SECOND)}
    with pytest.raises(ClmoeError, match="equals phi_t in all 6 tensors") as caught:
        case.merge(roles=zero)
    assert "every lambda is 0" in (caught.value.hint or "")
    assert not list(case.out.glob("*.safetensors*"))


@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize("space", ["factors", "product"])
def test_training_that_changed_nothing_is_refused(case: Case, gamma: float, space: str) -> None:
    case.new = {name: tensor.clone() for name, tensor in case.old.items()}
    with pytest.raises(ClmoeError, match="training on this task changed no expert") as caught:
        case.merge(gamma=gamma, space=space)
    assert "learning rate of 0" in (caught.value.hint or "")


def test_a_merge_equal_to_theta_is_refused_unless_gamma_is_one(case: Case) -> None:
    keep = expert_lambdas(expert_roles((), earlier=(), experts=4), gamma=1.0)
    ones = {name: ExpertRoles(("none",) * 4, keep) for name in (FIRST, SECOND)}
    with pytest.raises(ClmoeError, match=r"equals theta_\{t-1\} in all 6 tensors"):
        case.merge(roles=ones, gamma=0.9)
    report = case.merge(roles=ones, gamma=1.0)
    assert report.factors.differ_from_previous == 0


def test_a_value_that_is_not_finite_is_refused_and_leaves_nothing(case: Case) -> None:
    case.new[FACTORS[2]][0, 0] = torch.nan
    with pytest.raises(ClmoeError, match="layers.0.mlp.down.clmoe_A.weight of .* not a finite"):
        case.merge()
    assert not list(case.out.glob("*.safetensors*"))


def test_every_mismatch_of_the_two_adapters_is_listed(case: Case) -> None:
    name = f"{P}{SECOND}.clmoe_A.weight"
    case.new[name] = torch.zeros(8, 13)
    case.new[FACTORS[0]] = case.new[FACTORS[0]].half()
    with pytest.raises(ClmoeError) as caught:
        case.merge(changes={"alpha": 32.0})
    for part in (
        "adapter_config.json: alpha is 16.0 and 32.0",
        f"{name} is [8, 12] and [8, 13]",
        f"{FACTORS[0]} is F32 and F16",
    ):
        assert part in caught.value.message


def test_a_tensor_in_one_adapter_only_is_an_error(case: Case) -> None:
    case.new = case.make(2, projector=True)
    with pytest.raises(ClmoeError, match="projector.linear.weight is only in .*new"):
        case.merge(changes={"modules_to_save": ["projector"]})


def test_where_an_adapter_was_made_does_not_matter(case: Case) -> None:
    case.merge(
        changes={"base_model_name_or_path": "/elsewhere", "router_std": 0.1, "peft_version": "9"}
    )


@pytest.mark.parametrize("damage", ["missing", "unknown", "rank", "integer", "cut", "no file"])
def test_incomplete_adapters_are_refused(case: Case, damage: str) -> None:
    if damage == "missing":
        del case.new[FACTORS[1]]
        message = "layers.0.mlp.gate.clmoe_B.weight is missing"
    elif damage == "unknown":
        case.new[f"{P}stranger.weight"] = torch.zeros(2)
        message = "stranger.weight is unknown"
    elif damage == "rank":
        case.new[FACTORS[0]] = torch.zeros(6, 12)
        message = r"clmoe_A.weight is \[6, 12\], expected \[8, 'any'\]"
    elif damage == "integer":
        case.new[FACTORS[0]] = torch.zeros(8, 12, dtype=torch.int32)
        message = "clmoe_A.weight is I32, expected one of"
    else:
        message = "cannot be read"
    new = case.write("new", case.new)
    path = new / "adapter_model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "no file":
        path.unlink()
    with pytest.raises(ClmoeError, match=message):
        merge_adapters(None, current_dir=new, out_dir=case.out, roles={}, gamma=0.7)
    assert not case.out.exists()


def test_roles_must_fit_the_adapter(case: Case) -> None:
    wrong = {FIRST: ExpertRoles(("none",), (0.7,)), "other": case.roles[SECOND]}
    with pytest.raises(ClmoeError) as caught:
        case.merge(roles=wrong)
    for part in (
        f"no roles for {SECOND}",
        "other gates nothing",
        f"{FIRST} has roles for 1 experts, not 4",
    ):
        assert part in caught.value.message

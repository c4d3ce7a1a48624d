"""Rehearsal memory: how many examples of which task and group are kept, and which."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from clmoe.data.example import Example
from clmoe.data.memory import Memory, load_memory, remember, save_memory, take_in_turn
from clmoe.errors import DataError


def task(name: str, count: int, *, kinds: tuple[str, ...] = ("a",)) -> list[Example]:
    return [
        Example(
            question_id=f"{name}-{i}",
            task=name,
            split="train",
            image=f"{i}.png",
            question="what?",
            answer="this",
            answers=("this", "that"),
            kind=kinds[i % len(kinds)],
        )
        for i in range(count)
    ]


def after(
    counts: dict[str, int], *, size: int, policy: str = "equal", seed: int = 0
) -> list[Memory]:
    memories = [Memory()]
    for name, count in counts.items():
        memories.append(
            remember(
                memories[-1], task(name, count), task=name, size=size, policy=policy, seed=seed
            )  # type: ignore[arg-type]
        )
    return memories[1:]


def test_equal_shares_shrink_by_truncation() -> None:
    memories = after({"x": 100, "y": 100, "z": 100}, size=50)
    assert [Counter(e.task for e in m.examples) for m in memories] == [
        {"x": 50},
        {"x": 25, "y": 25},
        {"x": 16, "y": 16, "z": 16},
    ]
    assert memories[1].of("x") == memories[0].of("x")[:25]
    assert memories[2].of("x") == memories[0].of("x")[:16]
    assert memories[2].of("y") == memories[1].of("y")[:16]
    assert (memories[2].seen, memories[2].tasks) == (300, ("x", "y", "z"))


def test_a_small_task_gives_what_it_has() -> None:
    assert Counter(e.task for e in after({"x": 3, "y": 100}, size=20)[1].examples) == {
        "x": 3,
        "y": 10,
    }


def test_groups_are_balanced_in_every_prefix() -> None:
    examples = task("x", 90, kinds=("a", "a", "b", "a", "c", "a"))
    order = take_in_turn(examples, draw=random.Random(1))
    assert sorted(e.question_id for e in order) == sorted(e.question_id for e in examples)
    for end in range(1, 45):  # the rarer groups have 15 each
        counts = Counter(e.kind for e in order[:end])
        assert max(counts.values()) - min(counts.get(k, 0) for k in "abc") <= 1


def test_the_seed_decides_and_nothing_else() -> None:
    one, again, other = (after({"x": 100}, size=10, seed=s)[0] for s in (1, 1, 2))
    assert one == again
    assert one != other
    assert len({e.question_id for e in one.examples}) == 10


def test_reservoir_keeps_all_seen_alike() -> None:
    kept: Counter[str] = Counter()
    rounds = 400
    for seed in range(rounds):
        memory = after({"x": 30, "y": 10}, size=10, policy="reservoir", seed=seed)[-1]
        assert len(memory.examples) == 10
        kept.update(e.question_id for e in memory.examples)
    # Each of 40 examples is kept with probability 1/4; 400 rounds: sd of a share is 0.022.
    shares = [kept[f"x-{i}"] / rounds for i in range(30)]
    shares += [kept[f"y-{i}"] / rounds for i in range(10)]
    assert len(shares) == 40
    assert all(abs(share - 0.25) < 0.1 for share in shares)
    assert sum(shares[30:]) / 10 == pytest.approx(0.25, abs=0.03)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    memory = after({"x": 5, "y": 5}, size=4)[-1]
    save_memory(memory, tmp_path / "m.jsonl")
    assert load_memory(tmp_path / "m.jsonl") == memory
    assert "png" in (tmp_path / "m.jsonl").read_text()
    (tmp_path / "m.jsonl").write_text('{"seen": 1')
    with pytest.raises(DataError, match="not a readable memory"):
        load_memory(tmp_path / "m.jsonl")


def test_a_memory_that_cannot_be() -> None:
    with pytest.raises(DataError, match="no room for one example of each of 3 tasks") as caught:
        after({"x": 5, "y": 5, "z": 5}, size=2)
    assert caught.value.hint == "set strategy.memory to at least 3"
    memory = after({"x": 5}, size=2)[0]
    with pytest.raises(DataError, match="holds x already"):
        remember(memory, task("x", 2), task="x", size=2, policy="equal", seed=0)

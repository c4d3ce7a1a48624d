"""VQACL: prototypes follow their moving averages, are shown, and persist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clmoe.baselines.base import Task
from clmoe.baselines.vqacl import KINDS, VQACL, Prototypes, sample_features
from clmoe.errors import ClmoeError
from clmoe.recipe.schema import Strategy as Settings
from tests.baselines.test_replay import joint


def settings(**values: Any) -> Settings:
    return Settings.model_validate({"memory": 6, **values})


def test_moving_averages_by_hand() -> None:
    prototypes = Prototypes()
    for mean in (1.0, 2.0, 4.0):
        prototypes.follow("question", "a", torch.full((2,), mean), momentum=0.5)
        prototypes.follow("picture", "a", torch.full((2,), mean), momentum=0.25)
    # question: 1, 1.5, 2.75; picture: 1, 1.75, 3.4375
    assert prototypes.tensors["question/a"].tolist() == [2.75, 2.75]
    assert prototypes.tensors["picture/a"].tolist() == [3.4375, 3.4375]


def test_the_nearest_prototype_of_each_kind() -> None:
    prototypes = Prototypes(
        {"question/a": torch.zeros(2), "question/b": torch.ones(2), "picture/a": torch.zeros(2)}
    )
    features = torch.tensor([[0.4, 0.4], [0.6, 0.6]])
    assert prototypes.nearest("question", features).tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert prototypes.nearest("picture", features).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert torch.equal(Prototypes().nearest("question", features), features)


def test_two_more_inputs_before_every_sample(make_task: Callable[..., Task]) -> None:
    method = VQACL(settings())
    method.after_task(make_task("recognition", count=8))
    task = make_task(count=4)
    method.before_task(task)
    inputs, labels, part = joint(task, method)
    longer, more = method.extend(inputs, labels, part)
    assert longer["inputs_embeds"].shape[1] == inputs["inputs_embeds"].shape[1] + len(KINDS)
    assert torch.equal(longer["inputs_embeds"][:, 2:], inputs["inputs_embeds"])
    assert bool(longer["attention_mask"][:, :2].all())
    assert torch.equal(more[:, 2:], labels)
    assert (more[:, :2] == -100).all()
    assert not longer["inputs_embeds"].requires_grad


def test_a_step_moves_the_prototypes_of_its_samples(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    method = VQACL(settings(question_momentum=0.5, picture_momentum=0.3))
    method.after_task(make_task("recognition", count=8))
    task = make_task(count=4)
    method.before_task(task)
    inputs, labels, part = joint(task, method)
    found = sample_features(inputs["inputs_embeds"], part.batch, image_token_id=task.image_token_id)
    method.extend(inputs, labels, part)
    assert method.prototypes.tensors == {}
    method.after_step()
    first = {name: tensor.clone() for name, tensor in method.prototypes.tensors.items()}
    assert set(first) == {f"{kind}/{t}" for kind in KINDS for t in ("location", "recognition")}
    torch.testing.assert_close(first["question/location"], found["question"][[0, 2]].mean(dim=0))
    torch.testing.assert_close(first["picture/recognition"], found["picture"][[1, 3]].mean(dim=0))
    # The same samples again, with the prototypes off their means by one.
    method.restore({name: tensor + 1 for name, tensor in first.items()})
    method.extend(inputs, labels, part)
    method.after_step()
    for name, tensor in method.prototypes.tensors.items():
        momentum = 0.5 if name.startswith("question") else 0.3
        torch.testing.assert_close(tensor, first[name] + momentum)
    method.save(tmp_path / "kept")
    again = VQACL(settings(), kept=tmp_path / "kept")
    assert {n: t.tolist() for n, t in again.moving().items()} == {
        n: t.tolist() for n, t in method.moving().items()
    }


def test_features_are_means_over_question_and_picture(make_task: Callable[..., Task]) -> None:
    task = make_task(count=1)
    sample = task.encode(task.examples)[0]
    [(inputs, batch)] = list(task.batches(task.examples, [sample], size=1))
    found = sample_features(inputs["inputs_embeds"], batch, image_token_id=task.image_token_id)
    embeds = inputs["inputs_embeds"][0]
    question = [i for i, own in enumerate(sample.question) if own]
    picture = [i for i, token in enumerate(sample.input_ids) if token == task.image_token_id]
    assert len(picture) == 9
    torch.testing.assert_close(found["question"][0], embeds[question].mean(dim=0))
    torch.testing.assert_close(found["picture"][0], embeds[picture].mean(dim=0))


def test_a_base_that_takes_pixels_is_refused(make_task: Callable[..., Task]) -> None:
    task = make_task(count=4)
    method = VQACL(settings())
    method.after_task(make_task("recognition", count=8))
    _, labels, part = joint(task, method)
    with pytest.raises(ClmoeError, match="this base takes pixels"):
        method.extend({"input_ids": part.batch.input_ids}, labels, part)

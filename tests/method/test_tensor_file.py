"""The streaming writer against the library's own bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from clmoe.method.tensor_file import DTYPES, TensorFileWriter


def test_any_order_of_writing_gives_the_bytes_of_the_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "é half": torch.zeros(1, 1, 5, dtype=torch.float16),
        "wide": torch.rand(2, dtype=torch.float64),
        "single": torch.tensor(3.0),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    path = tmp_path / "x.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: DTYPES[tensor.dtype] for name, tensor in tensors.items()}
    with TensorFileWriter(path, shapes=shapes, dtypes=dtypes) as file:
        for name in reversed(list(tensors)):
            file.write(name, tensors[name])
        assert not path.exists()
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert path.read_bytes() == save(loaded, metadata={"format": "pt"})
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    writer = TensorFileWriter(path, shapes={"a": (2,)}, dtypes={"a": "F32"})
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError), writer:
        writer.write("a", torch.zeros(3))
    assert list(tmp_path.iterdir()) == []

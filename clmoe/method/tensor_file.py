"""Writes a safetensors file one tensor at a time, so that a large one never lies in memory.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON
header, the header, and the tensors' bytes at the offsets it states.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

_ALIGNMENT = 8
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ORDER = ("F64", "F32", "BF16", "F16")
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class TensorFileWriter:
    """A safetensors file of known names, shapes and dtypes, filled in any order.

    Used as a context manager: the file appears under its name only when the block ends well and
    every tensor was written; otherwise nothing is left.
    """

    def __init__(
        self, path: Path, *, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
    ) -> None:
        """Plans the file.

        Args:
            path: Where it will be.
            shapes: Of each tensor.
            dtypes: "F64", "F32", "F16" or "BF16" of each tensor.
        """
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._shapes, self._dtypes = dict(shapes), dict(dtypes)
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        # The library's order, widest dtype first, so that every tensor is aligned.
        for name in sorted(shapes, key=lambda name: (_ORDER.index(dtypes[name]), name)):
            start, count = end, 1
            for size in shapes[name]:
                count *= size
            end += count * _BYTES[dtypes[name]]
            self._offsets[name] = start
            header[name] = {
                "dtype": dtypes[name],
                "shape": list(shapes[name]),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        self._header = text + b" " * (-len(text) % _ALIGNMENT)
        self._missing = set(shapes)

    def __enter__(self) -> TensorFileWriter:
        """Opens the partial file and writes its header."""
        self._file: BinaryIO = self._partial.open("wb")
        self._file.write(len(self._header).to_bytes(8, "little") + self._header)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, which must have the planned shape and dtype."""
        assert name in self._missing
        assert tuple(tensor.shape) == self._shapes[name], (name, tensor.shape)
        assert DTYPES[tensor.dtype] == self._dtypes[name], (name, tensor.dtype)
        self._missing.remove(name)
        self._file.seek(8 + len(self._header) + self._offsets[name])
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._file.write(raw.numpy().tobytes())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Puts the complete file in place, or removes it."""
        self._file.close()
        if kind is not None:
            self._partial.unlink()
            return
        assert not self._missing, self._missing
        os.replace(self._partial, self._path)

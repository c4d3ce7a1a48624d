"""Writing a foreign adapter as an adapter folder of this project, which PEFT loads too."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from clmoe.errors import UsageError
from clmoe.interop.foreign import ForeignAdapter
from clmoe.interop.new_folder import new_folder
from clmoe.method.adapter_layout import read_layout
from clmoe.model.adapter_file import read_tensors
from clmoe.model.adapter_info import CONFIG_FILE, WEIGHTS_FILE
from clmoe.model.config import ClmoeConfig


def write_imported(adapter: ForeignAdapter, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and read them back strictly.

    Args:
        adapter: From `read_foreign`.
        folder: Where to; it must not exist.

    Raises:
        UsageError: Nobody says what the base model is.
        ClmoeError: The folder exists, or cannot be written; then nothing is left of it.
    """
    info = adapter.info
    if info.base is None:
        raise UsageError(
            f"{adapter.folder} does not say which base model it is for",
            hint=f"clmoe import {adapter.folder} --out {folder} --base NAME",
        )
    config = ClmoeConfig(
        base_model_name_or_path=info.base,
        experts=info.experts,
        r=info.rank,
        alpha=info.alpha,
        dropout=adapter.dropout,
        targets=info.targets if isinstance(info.targets, str) else list(info.targets),
        routers=info.routers,
        router_of=info.router_of,
        modules_to_save=list(info.modules_to_save) or None,
    )
    fields = config.to_dict() | {"inference_mode": True}
    with new_folder(folder) as partial:
        save_file(adapter.tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
        read_tensors(partial)
        read_layout(partial)

"""The shipped files for Accelerate's launcher: every key is one that the launcher knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
TYPES = {
    "multi_gpu": "MULTI_GPU",
    "two_machines": "MULTI_GPU",
    "fsdp2": "FSDP",
    "deepspeed_zero2": "DEEPSPEED",
    "deepspeed_zero3": "DEEPSPEED",
}


def test_there_is_a_file_for_each_engine() -> None:
    assert {path.stem for path in FILES} == set(TYPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_launcher_knows_every_key(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses unknown keys at the top
    assert config.distributed_type.value == TYPES[path.stem]
    assert config.mixed_precision == "no"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = vars(launch_command_parser().parse_args(["x.py"]))
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(content.get(section, {})) <= set(known), section


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_launcher_takes_its_values(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True)
    words = ["--config_file", str(path), "-m", "clmoe_cli", "train"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert args.num_processes == content["num_processes"]
    assert args.num_machines == content["num_machines"]
    assert args.mixed_precision == "no"
    kinds = (args.multi_gpu, args.use_fsdp, args.use_deepspeed)
    wanted = TYPES[path.stem]
    assert kinds == (wanted == "MULTI_GPU", wanted == "FSDP", wanted == "DEEPSPEED")
    assert (args.module, args.training_script) == (True, "clmoe_cli")
    for key, value in content.get("fsdp_config", {}).items():
        assert str(getattr(args, key)).lower() == str(value).lower(), key
    for key, value in content.get("deepspeed_config", {}).items():
        assert str(getattr(args, key)).lower() == str(value).lower(), key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_say_that_they_were_not_run(path: Path) -> None:
    assert "# Not run: no machine with several GPUs was at hand" in path.read_text("utf-8")

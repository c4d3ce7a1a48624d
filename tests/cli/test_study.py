"""`clmoe study` prints commands for a scheduler as they are, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any


def test_printed_commands_repeat_the_folder_and_stand_alone(
    clmoe_command: Callable[..., Any], pipeline: Any
) -> None:
    commands = ("clmoe run shapes --name a 'data.root=my files'", "clmoe run shapes --name b")
    pipeline.result = replace(
        pipeline.result, outcomes=(), tables=(), notes=commands, next_command=None
    )
    ran = clmoe_command("study", "x", "--print-commands")
    assert ran.out == "".join(f"{line}\n" for line in commands)
    ran = clmoe_command("study", "x", "--print-commands", "--runs", "my runs")
    assert ran.out.splitlines() == [
        line.replace("clmoe", "clmoe --runs 'my runs'") for line in commands
    ]
    again = clmoe_command("study", "x", "--print-commands", "--runs", "my runs", "--json").json
    assert again["data"]["commands"] == ran.out.splitlines()

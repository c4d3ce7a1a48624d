"""`python -m tests.parallel.failing`: the command `clmoe`, failing in the second process alone."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from clmoe.errors import DataError
from clmoe_cli.app import main

HOW = "CLMOE_TEST_FAILURE"


def fail(*_: Any, **__: Any) -> None:
    """What the second process does in place of training."""
    if os.environ[HOW] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ[HOW] == "memory":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 64 bytes")
    raise DataError("the second process stumbled", hint="look at it", problems=["a.jpg:1: torn"])


if __name__ == "__main__":
    if os.environ.get("RANK") == "1":
        import clmoe.stages.train

        clmoe.stages.train.train_adapter = fail  # type: ignore[assignment]
    sys.exit(main())

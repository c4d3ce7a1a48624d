"""What ``import clmoe`` does and does not do, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

REGISTERED = (
    "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as m;"
    "assert 'CLMOE' in {str(getattr(k, 'value', k)) for k in m}, list(m)"
)


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["import clmoe, peft", "import peft, clmoe", "import clmoe"])
def test_peft_knows_the_method(code: str) -> None:
    python(f"{code}; {REGISTERED}")


def test_import_is_light() -> None:
    python(
        "import sys, clmoe, clmoe.recipe.load, clmoe.runs.run;"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )


def test_unknown_names_are_attribute_errors() -> None:
    import clmoe

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clmoe.nothing  # noqa: B018

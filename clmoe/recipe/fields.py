"""What keys of a recipe are made of: a declaration, list-like values, a section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

STAGES = ("prepare", "train", "route", "merge", "index", "eval", "report")
Split = Literal["train", "val", "test"]


def key(
    default: Any,
    help_: str,
    *stages: str,
    symbol: str | None = None,
    neutral: Any = ...,
    **limits: Any,
) -> Any:
    """A key that changes the results of these stages.

    At its ``neutral`` value it is in no fingerprint, so that what was made before there was such a
    key stays fresh.
    """
    assert set(stages) <= set(STAGES)
    extra: dict[str, Any] = {"stages": list(stages), "symbol": symbol}
    if neutral is not ...:
        extra["neutral"] = neutral
    return Field(default, description=help_, json_schema_extra=extra, **limits)


def _split_commas(value: object) -> object:
    """A comma-separated string becomes a list, so that KEY=a,b works on a command line."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _or_commas(*words: str) -> BeforeValidator:
    return BeforeValidator(lambda value: value if value in words else _split_commas(value))


def _not_empty_not_twice(value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
    if isinstance(value, tuple):
        if not value:
            raise PydanticCustomError("empty", "the list is empty")
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise PydanticCustomError("twice", "named twice: {names}", {"names": ", ".join(twice)})
    return value


_Checked = AfterValidator(_not_empty_not_twice)
Names = Annotated[tuple[str, ...] | None, BeforeValidator(_split_commas), _Checked]
Splits = Annotated[tuple[Split, ...] | None, BeforeValidator(_split_commas), _Checked]
Order = Annotated[
    Literal["forward", "reverse"] | tuple[str, ...], _or_commas("forward", "reverse"), _Checked
]
Targets = Annotated[
    Literal["ffn", "all-linear"] | tuple[str, ...], _or_commas("ffn", "all-linear"), _Checked
]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )

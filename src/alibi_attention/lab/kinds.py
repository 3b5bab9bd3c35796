"""The kinds of values that settings have, each with its own words for one that is not of it."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.numerals import whole_number


def _by_thousands(value: Any) -> Any:
    """``"8K"`` as a flag has it; what else there is stays as it is."""
    try:
        return whole_number(value) if isinstance(value, str) else _no_truth(value)
    except ValueError:
        return value


def _no_truth(value: Any) -> Any:
    """The value; of true and false, which Python counts as 1 and 0, the word, which is no number."""
    return str(value).lower() if isinstance(value, bool) else value


def _at_least(minimum: float) -> AfterValidator:
    def check(value: float, info: ValidationInfo) -> float:
        # Said so that what is no number is refused, too.
        if not value >= minimum:
            remedy = f"raise it to {minimum} or more"
            raise LabError(_name(info), expected=f"at least {minimum}", got=f"{value}", remedy=remedy)
        return value

    return AfterValidator(check)


def _above_zero(value: float, info: ValidationInfo) -> float:
    if not value > 0:
        remedy = "leave it out to take the default"
        raise LabError(_name(info), expected="a number above 0", got=f"{value}", remedy=remedy)
    return value


def _below_one(value: float, info: ValidationInfo) -> float:
    if not 0.0 <= value < 1.0:
        expected = "a share from 0 up to, not including, 1"
        raise LabError(_name(info), expected=expected, got=f"{value}", remedy="such as 0.1")
    return value


def _up_to_half(value: float, info: ValidationInfo) -> float:
    if not 0.0 < value <= 0.5:
        remedy = "keep enough for training; 0.1 is the default"
        raise LabError(_name(info), expected="a share above 0 and up to 0.5", got=f"{value}", remedy=remedy)
    return value


def _a_seed(value: int, info: ValidationInfo) -> int:
    # What torch and NumPy take.
    if not 0 <= value < 1 << 64:
        expected = "a whole number from 0 up to, not including, 2^64"
        raise LabError(_name(info), expected=expected, got=f"{value}", remedy="such as 0, 1 and 2")
    return value


def _ascending(what: str, remedy: str) -> AfterValidator:
    def check(values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if values and (values[0] < 1 or any(a >= b for a, b in pairwise(values))):
            got = ",".join(map(str, values))
            raise LabError(_name(info), expected=f"ascending {what} of at least 1", got=got, remedy=remedy)
        if values:
            _not_absurd(values[-1], info)
        return values

    return AfterValidator(check)


def _a_pattern(value: str, info: ValidationInfo) -> str:
    try:
        re.compile(value)
    except re.error as error:
        got = f"{value!r} ({error})"
        raise LabError(_name(info), expected="a regular expression", got=got, remedy="such as '^ = [^=]'") from None
    return value


def _name(info: ValidationInfo) -> str:
    return info.field_name or "value"


# Beyond any machine, and below what NumPy and torch count with.
MOST = 10**12


def _not_absurd(value: int, info: ValidationInfo) -> int:
    if value > MOST:
        raise LabError(_name(info), expected=f"at most {MOST:,}", got=f"{value:,}", remedy="lower it")
    return value


Number = Annotated[int, BeforeValidator(_by_thousands)]
Real = Annotated[float, BeforeValidator(_no_truth)]
Count = Annotated[Number, _at_least(1), AfterValidator(_not_absurd)]
WholeNumber = Annotated[Number, _at_least(0), AfterValidator(_not_absurd)]
Seed = Annotated[int, BeforeValidator(_no_truth), AfterValidator(_a_seed)]
Positive = Annotated[Real, Field(allow_inf_nan=False), AfterValidator(_above_zero)]
NotNegative = Annotated[Real, Field(allow_inf_nan=False), _at_least(0)]
Share = Annotated[Real, AfterValidator(_below_one)]
HeldOutShare = Annotated[Real, AfterValidator(_up_to_half)]
Lengths = Annotated[
    tuple[Number, ...], _ascending("lengths", "list each length once, shortest first, such as 256,512,1024")
]
Ranks = Annotated[tuple[Number, ...], _ascending("ranks", "such as 20000,60000 for a vocabulary of 267744")]
Pattern = Annotated[str, AfterValidator(_a_pattern)]

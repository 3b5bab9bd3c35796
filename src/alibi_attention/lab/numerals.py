"""Numbers as flags and files may write them."""

from __future__ import annotations


def whole_number(text: str) -> int:
    """``"8192"`` or ``"8K"`` to 8192.

    Raises:
        ValueError: for anything else.
    """
    digits, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    return int(digits) * factor

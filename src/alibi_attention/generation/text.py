"""Pieces of text as they come, held back as long as what follows may change them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class ByteText:
    """Bytes to text: a character is given out when its last byte is there. What is no UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class TokenText:
    """Tokens of a vocabulary to text: given out up to the last whole character.

    A token's text depends on its neighbours (a leading blank, half a character), so a window of tokens is decoded
    again, and what it adds is given out. The window begins anew wherever the text has caught up.

    Args:
        decode: text of a list of tokens.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._given = 0  # tokens of the window whose text is out

    def push(self, token: int) -> str:
        self._tokens.append(token)
        before, now = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        # U+FFFD at the end: the rest of a character is still to come.
        if len(now) <= len(before) or now.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        piece = now[len(before) :]
        # The tokens just given out stay, as the context of the next.
        self._tokens = self._tokens[self._given :]
        self._given = len(self._tokens)
        return piece

    def end(self) -> str:
        return self._decode(self._tokens)[len(self._decode(self._tokens[: self._given])) :]


class WordText:
    """Words to text: a blank before each, but none at the beginning of a line.

    Args:
        decode: text of a token; a line feed is a token of its own.
    """

    def __init__(self, decode: Callable[[int], str]) -> None:
        self._decode = decode
        self._begins = False

    def push(self, token: int) -> str:
        word = self._decode(token)
        blank = "" if self._begins or word == "\n" else " "
        self._begins = word == "\n"
        return blank + word

    def end(self) -> str:
        return ""


class Stops:
    """Cuts a text at the first of some strings, wherever pieces begin and end.

    Args:
        strings: none of them empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.met = False

    def push(self, piece: str) -> str:
        """What can be given out now: nothing that may be the beginning of a stop."""
        if self.met:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._strings) if at >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when nothing more comes."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

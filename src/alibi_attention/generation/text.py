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


_MOST_HELD = 16
# A character of UTF-8 has four bytes at most: what may still become one are the last three tokens.
_UNFINISHED = 3


class TokenText:
    """Tokens of a vocabulary to text: given out up to the last whole character.

    A token's text depends on its neighbours (a leading blank, half a character), so a window of tokens is decoded
    again, and what it adds is given out. The window begins anew wherever the text has caught up, and at the latest
    after 16 tokens: so many without a whole character at their end are none that waiting would complete.

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
        if len(now) > len(before) and not now.endswith("\N{REPLACEMENT CHARACTER}"):
            return self._give(len(self._tokens), before, now)
        if len(self._tokens) - self._given < _MOST_HELD:
            return ""
        # Where no character is cut in two: there the text so far begins the whole text.
        latest = len(self._tokens) - _UNFINISHED
        cuts = [(cut, self._decode(self._tokens[:cut])) for cut in range(latest, latest - 4, -1)]
        cut, text = next((each for each in cuts if now.startswith(each[1])), cuts[0])
        if len(text) <= len(before):
            # Tokens without a text of their own, such as special ones: they are context for nothing.
            self._tokens = self._tokens[: self._given] + self._tokens[cut:]
            return ""
        return self._give(cut, before, text)

    def _give(self, cut: int, before: str, text: str) -> str:
        """What ``text``, that of the tokens up to ``cut``, adds; they stay, as the context of the next."""
        self._tokens, self._given = self._tokens[self._given :], cut - self._given
        return text[len(before) :]

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

    The first is the one that begins first, also where another ends sooner: of "abab" and "b", the text "abab" is cut
    before its first "a". Two that begin at one place cut alike, so the shorter need not wait for the longer.

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
        found = self._first(text)
        unsure = len(text) - max((_overlap(text, stop) for stop in self._strings), default=0)
        if found is not None and found <= unsure:
            return self._cut(text, found)
        # A stop found behind that waits with it: what begins before may yet become one, and would come first.
        self._held = text[unsure:]
        return text[:unsure]

    def end(self) -> str:
        """What was held back, when nothing more comes: up to a stop that waited for one before it."""
        rest, self._held = self._held, ""
        found = self._first(rest)
        return rest if found is None else self._cut(rest, found)

    def _first(self, text: str) -> int | None:
        return min((at for at in (text.find(stop) for stop in self._strings) if at >= 0), default=None)

    def _cut(self, text: str, at: int) -> str:
        self.met, self._held = True, ""
        return text[:at]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

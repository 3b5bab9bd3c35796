"""From text to tokens and back: bytes, a byte-level BPE, or whole words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alibi_attention.extras import installing
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.progress import Progress

SPECIAL = 2
"""Tokens before the first that text is made of, in a vocabulary of words: the separator, and the unknown word."""

SEPARATOR = 0
"""Stands between documents, in every vocabulary; as a byte it is NUL, which text does not hold."""

DEFAULT_BPE = 8192

# NUL is in no text, so that nothing a text says is taken for one of these.
_END = "\0"
_UNKNOWN = "\0unknown"
_NEWLINE = "\0newline"

# What an unknown word reads as, and what a line's end was called in runs of words before that.
_UNKNOWN_IN_TEXT = "<|unknown|>"
_OLDER_NEWLINE = "<|newline|>"

# Characters given to the tokenizer at a time.
_PIECE = 1 << 20


class Encoder(Protocol):
    """A vocabulary.

    Attributes:
        vocabulary: how many tokens.
        token_bytes: (vocabulary,) int64, bytes of text a token stands for; 1 for the separator. Of words, which may
            stand for any unknown one, it is a guess: `sizes` counts them.
        description: in words.
        serialized: what `load_encoder` makes it from again; None for bytes.
    """

    vocabulary: int
    token_bytes: NDArray[np.int64]
    description: str
    serialized: str | None

    def encode(self, text: bytes) -> NDArray[Any]: ...

    def sizes(self, text: bytes) -> NDArray[np.int64] | None:
        """(tokens,) bytes that each token of ``encode(text)`` stands for; None where ``token_bytes`` tells."""
        ...

    def decode(self, tokens: Iterable[int]) -> bytes: ...


class ByteEncoder:
    """Every byte is its own token."""

    vocabulary = 256
    description = "bytes"
    serialized: str | None = None

    def __init__(self) -> None:
        self.token_bytes = np.ones(256, dtype=np.int64)

    def encode(self, text: bytes) -> NDArray[Any]:
        return np.frombuffer(text, dtype=np.uint8)

    def sizes(self, text: bytes) -> NDArray[np.int64] | None:
        del text
        return None

    def decode(self, tokens: Iterable[int]) -> bytes:
        return bytes(int(token) for token in tokens)


class TrainedEncoder:
    """What the library `tokenizers` learned from the training text."""

    def __init__(self, serialized: str, kind: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(serialized)
        self.words = kind == "words"
        self._newline = _NEWLINE if self._tokenizer.id_to_token(SEPARATOR) == _END else _OLDER_NEWLINE
        self.serialized: str | None = serialized
        self.vocabulary = self._tokenizer.get_vocab_size()
        self.description = f"{'words' if self.words else 'byte-level BPE'}, {self.vocabulary:,} tokens"
        self.token_bytes = np.array([self._bytes(i) for i in range(self.vocabulary)], dtype=np.int64)

    def _bytes(self, token: int) -> int:
        text = str(self._tokenizer.id_to_token(token))
        if token == SEPARATOR or (self.words and text == self._newline):
            return 1
        # A word brings the space before it; a character of byte-level BPE is one byte.
        return len(text.encode()) + 1 if self.words else len(text)

    def encode(self, text: bytes) -> NDArray[Any]:
        ids: list[int] = []
        # A text of any length in pieces that end with a line, where no word is cut.
        for piece in _pieces(text.decode("utf-8")):
            ids += self._tokenizer.encode(piece, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint16 if self.vocabulary <= 1 << 16 else np.uint32)

    def sizes(self, text: bytes) -> NDArray[np.int64] | None:
        if not self.words:
            return None
        found: list[int] = []
        before = 0
        for piece in _pieces(text.decode("utf-8")):
            ends = [end for _, end in self._tokenizer.encode(piece, add_special_tokens=False).offsets]
            # A token stands for itself and what was passed over before it.
            sizes = [len(piece[a:b].encode()) for a, b in zip([0, *ends], [*ends, len(piece)], strict=True)]
            sizes[0] += before
            before = sizes.pop()
            found += sizes
        if found:
            found[-1] += before
        return np.array(found, dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> bytes:
        documents: list[list[int]] = [[]]
        for token in tokens:
            if token == SEPARATOR:
                documents.append([])
            else:
                documents[-1].append(int(token))
        return b"\0".join(self._decode(ids) for ids in documents)

    def _decode(self, ids: list[int]) -> bytes:
        if self.words:
            named = (str(self._tokenizer.id_to_token(i)) for i in ids)
            words = " ".join({self._newline: "\n", _UNKNOWN: _UNKNOWN_IN_TEXT}.get(name, name) for name in named)
            return words.replace(" \n ", "\n").encode()
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text.encode()


def make_encoder(config: ExperimentConfig, texts: Sequence[bytes], progress: Progress | None = None) -> Encoder:
    """The vocabulary of an experiment, learned from ``texts`` unless it is that of bytes.

    ``progress`` is told of the bytes that were read; silent by default.
    """
    if config.tokenizer == "bytes":
        return ByteEncoder()
    _require()
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    pieces = (progress or Progress()).through(
        (piece for text in texts for piece in _pieces(text.decode("utf-8"))),
        "Corpus: learning a vocabulary",
        total=sum(map(len, texts)),
        unit="bytes",
        size=lambda piece: len(piece.encode()),
    )
    if config.tokenizer == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=config.vocabulary or DEFAULT_BPE, special_tokens=[_END], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
        tokenizer.normalizer = normalizers.Replace("\n", f" {_NEWLINE} ")
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(
            vocab_size=config.vocabulary or (1 << 31) - 1, special_tokens=[_END, _UNKNOWN], show_progress=False
        )
    tokenizer.train_from_iterator(pieces, trainer)
    return TrainedEncoder(tokenizer.to_str(), config.tokenizer)


def load_encoder(kind: str, serialized: str | None) -> Encoder:
    """An encoder made once before, from what it kept as ``serialized``."""
    if kind == "bytes" or serialized is None:
        return ByteEncoder()
    _require()
    return TrainedEncoder(serialized, kind)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= _PIECE else text.find("\n", start + _PIECE) + 1 or len(text)
        yield text[start:end]
        start = end


def _require() -> None:
    if find_spec("tokenizers") is None:
        remedy = f"{installing('lab')}, or leave --tokenizer out for bytes"
        raise LabError("tokenizer", expected="the package tokenizers", got="none installed", remedy=remedy)

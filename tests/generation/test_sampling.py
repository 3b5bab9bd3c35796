from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alibi_attention import HorizonCache
from alibi_attention.generation.loop import Outcome, generate
from alibi_attention.generation.sampling import Sampling
from alibi_attention.generation.text import ByteText, Stops, TokenText
from alibi_attention.lab.errors import LabError

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))


def test_probabilities_are_the_definition() -> None:
    torch.testing.assert_close(Sampling().probabilities(LOGITS), torch.tensor([0.1, 0.4, 0.2, 0.3]))
    squared = torch.tensor([0.01, 0.16, 0.04, 0.09])
    torch.testing.assert_close(Sampling(temperature=0.5).probabilities(LOGITS), squared / squared.sum())
    torch.testing.assert_close(Sampling(top_k=2).probabilities(LOGITS), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(Sampling(top_p=0.6).probabilities(LOGITS), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(Sampling(top_p=0.75).probabilities(LOGITS), torch.tensor([0.0, 4 / 9, 2 / 9, 3 / 9]))
    torch.testing.assert_close(Sampling(top_p=1e-9).probabilities(LOGITS), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    # Of tokens as likely as each other k stay, too.
    assert int((Sampling(top_k=3).probabilities(torch.zeros(9)) > 0).sum()) == 3
    # top_p is taken of what temperature and top_k leave.
    both = Sampling(temperature=0.5, top_k=3, top_p=0.5).probabilities(LOGITS)
    torch.testing.assert_close(both, torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert Sampling(temperature=1e-30).probabilities(1e6 * LOGITS)[1] == 1.0


def test_choices_follow_the_seed_and_the_shares() -> None:
    sampling = Sampling()
    draws = [
        sampling.choose(LOGITS, generator) for generator in [torch.Generator().manual_seed(5)] for _ in range(4000)
    ]
    again = [sampling.choose(LOGITS, generator) for generator in [torch.Generator().manual_seed(5)] for _ in range(50)]
    assert draws[:50] == again
    for token, share in enumerate((0.1, 0.4, 0.2, 0.3)):
        # Six standard deviations of a binomial.
        assert abs(draws.count(token) / 4000 - share) < 6 * math.sqrt(share * (1 - share) / 4000)
    assert Sampling(temperature=0.0).choose(LOGITS, torch.Generator()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected 0 or more, got -1.0; 0 takes the likeliest token"),
        ({"temperature": math.nan}, "temperature: expected 0 or more, got nan"),
        ({"top_k": -1}, "top_k: expected 0 or more, got -1; 0 allows every token"),
        ({"top_p": 0.0}, "top_p: expected a probability above 0 and up to 1, got 0.0; 1 allows every token"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(LabError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


def test_logits_that_are_no_numbers() -> None:
    with pytest.raises(LabError, match="source: expected a model whose logits are numbers, got NaN or infinity"):
        Sampling().choose(torch.tensor([0.0, math.nan]), torch.Generator())
    with pytest.raises(LabError, match="source: expected a model whose logits are numbers, got NaN or infinity"):
        Sampling().choose(torch.tensor([0.0, math.inf]), torch.Generator())
    # What is ruled out is no fault; and a temperature that float32 takes for 0 is none either.
    for temperature in (1.0, 1e-300, 5e-324):
        assert Sampling(temperature=temperature).choose(torch.tensor([-math.inf, 3.0]), torch.Generator()) == 1


def test_bytes_become_whole_characters() -> None:
    reader = ByteText()
    pieces = [reader.push(byte) for byte in "aé€😀".encode()]
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert reader.push(0xE2) == ""
    assert reader.end() == "\N{REPLACEMENT CHARACTER}"
    assert ByteText().push(0xFF) == "\N{REPLACEMENT CHARACTER}"


def test_tokens_become_whole_characters() -> None:
    # A vocabulary in which a token may be part of a character, and the first token loses its blank.
    vocabulary = [b" a", b" b", "€".encode()[:2], "€".encode()[2:], b"\xff"]

    def decode(tokens: list[int]) -> str:
        return b"".join(vocabulary[token] for token in tokens).decode("utf-8", "replace").removeprefix(" ")

    reader = TokenText(decode)
    assert [reader.push(token) for token in (0, 1, 2, 3, 1)] == ["a", " b", "", "€", " b"]
    assert reader.push(4) == ""
    assert reader.end() == "\N{REPLACEMENT CHARACTER}"
    many = TokenText(decode)
    tokens = [0, 1, 2, 3] * 50
    assert "".join(map(many.push, tokens)) + many.end() == decode(tokens)


@pytest.mark.parametrize("lead", range(24))
def test_tokens_that_never_become_characters_are_given_out_all_the_same(lead: int) -> None:
    """A window decoded again for each token stays short, and no character behind it is lost, wherever it begins."""
    vocabulary = [b"\xff", b"\xc3", b"", *(bytes([byte]) for byte in "€😀a".encode())]
    asked: list[int] = []

    def decode(tokens: list[int]) -> str:
        asked.append(len(tokens))
        return b"".join(vocabulary[token] for token in tokens).decode("utf-8", "replace")

    character = [[3, 4, 5], [6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9]][lead % 3]
    # Bytes that are no UTF-8, characters among them, bytes that begin one and do not go on, tokens of no text at all.
    tokens = [0] * lead + character + [0] * 300 + character + [1] * 40 + character + [2] * 300 + [10] + [2] * 5
    reader = TokenText(decode)
    pieces = [reader.push(token) for token in tokens]
    ends = reader.end()
    assert max(asked) <= 48
    assert len(asked) < 4 * len(tokens)
    assert "".join(pieces) + ends == decode(tokens)
    # Three hundred of them do not wait for the end.
    assert sum(map(len, pieces[lead : lead + 150])) > 120


def test_stops_are_met_across_pieces() -> None:
    stops = Stops(["END", "\n\n"])
    assert [stops.push(piece) for piece in ("one E", "N", "T", "\n", "x\n", "\nrest", "more")] == [
        "one ", "", "ENT", "", "\nx", "", "",
    ]  # fmt: skip
    assert stops.met
    assert stops.end() == ""
    unmet = Stops(["END"])
    assert unmet.push("the EN") == "the "
    assert unmet.end() == "EN"
    assert not unmet.met
    first = Stops(["b", "ab"])
    assert first.push("xxab") == "xx"
    assert Stops([]).push("all") == "all"


def test_a_stop_waits_for_one_that_begins_before_it() -> None:
    for after, out, whole in (("ab", "", ""), ("x", "a", "a"), ("a", "", "a"), ("", "", "a")):
        stops = Stops(["abab", "b"])
        assert stops.push("a") + stops.push("b") == ""
        assert not stops.met
        pushed = stops.push(after)
        assert pushed == out
        assert pushed + stops.end() == whole
        assert stops.met


@given(
    st.text("ab", min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 5), st.sampled_from(["", "", "c"])), max_size=3),
    st.sets(st.integers(0, 12)),
)
def test_stops_cut_a_text_alike_however_it_comes(text: str, parts: list[tuple[int, int, str]], cuts: set[int]) -> None:
    # Parts of the text, so that stops overlap; some go on as it does not.
    strings = [text[at % len(text) :][:length] + more for at, length, more in parts]
    places = [at for at in map(text.find, strings) if at >= 0]
    for places_of_pieces in (cuts, range(len(text))):
        stops, bounds = Stops(strings), [0, *sorted(min(cut, len(text)) for cut in places_of_pieces), len(text)]
        pieces = [text[begin:end] for begin, end in itertools.pairwise(bounds)]
        out = "".join(map(stops.push, pieces)) + stops.end()
        assert out == text[: min(places, default=len(text))]
        assert stops.met == bool(places)


class Script:
    """A source that says what it is told to, a character for each token, and then ends or goes on with blanks."""

    name, longest, bytes_held, end = "script", None, 0, frozenset({10})

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def encode(self, prompt: str) -> list[int]:
        return list(prompt.encode())

    def text(self) -> ByteText:
        return ByteText()

    def read(self, tokens: list[int]) -> torch.Tensor:  # noqa: ARG002
        logits = torch.zeros(128)
        logits[ord(self._text[self._at])] = 1.0
        self._at += 1
        return logits

    def horizon_caches(self) -> list[HorizonCache]:
        return []


@pytest.mark.parametrize(
    ("text", "max_tokens", "written", "reason"),
    [
        ("xababx\n", None, "x", "stop"),
        ("xab\n", None, "xa", "stop"),  # nothing more comes that could complete the longer one
        ("xabab\n", 3, "xa", "stop"),
        ("xa\n", None, "xa", "end of text"),
        ("xa\n", 2, "xa", "length"),
    ],
)
def test_a_text_that_ends_while_a_stop_waits(text: str, max_tokens: int | None, written: str, reason: str) -> None:
    pieces: list[str] = []
    outcome = Outcome()
    generate(
        Script(text), ">", Sampling(temperature=0.0), outcome, write=pieces.append, max_tokens=max_tokens,
        stops=["abab", "b"],
    )  # fmt: skip
    assert "".join(pieces) == written
    assert outcome.reason == reason

"""What a trained decoder's attention looks like: where its mass is, and which keys and tiles it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from alibi_attention import Certificate, certify
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions.alibi import Alibi

# Columns of the attention matrix that are looked at together.
_COLUMNS = 64

Tick = Callable[[int], None]


class Mass(BaseModel):
    """Where the softmax mass of each head lies, by distance.

    Attributes:
        length: of the text, in tokens.
        edges: distances [edges[i], edges[i + 1]) are bin i: 0, 1, 2 to 3, 4 to 7 and so on.
        shares: [layer][head][bin], mean share of a query's mass, over the queries of the text's second half, which
            have keys at all the distances up to half its length.
        mean_distance: [layer][head], in tokens, of the same queries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    edges: tuple[int, ...]
    shares: tuple[tuple[tuple[float, ...], ...], ...]
    mean_distance: tuple[tuple[float, ...], ...]


class Horizon(BaseModel):
    """What the certificate keeps of one head at one length.

    Attributes:
        length, layer, head: where.
        slope: of the head, in nats per token.
        mean_window, max_window: keys a block of queries needs.
        kept_share: tiles needed over tiles visible.
        dropped_share: proved bound on the softmax mass any row loses to skipping.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    layer: int
    head: int
    slope: float
    mean_window: float
    max_window: int
    kept_share: float
    dropped_share: float


class Tiles(BaseModel):
    """Which tiles of one layer are computed.

    Attributes:
        length, layer: where.
        block_q, block_k: queries and keys of a tile.
        ranges: [head][block of queries] first key, end key, and whether the first tile is needed apart from these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    layer: int
    block_q: int
    block_k: int
    ranges: tuple[tuple[tuple[int, int, bool], ...], ...]


class Inside(BaseModel):
    """All of it for one method; the horizon is ALiBi's and empty for the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    variant: str | None
    tolerance: float | None
    mass: Mass
    horizon: tuple[Horizon, ...] = ()
    tiles: tuple[Tiles, ...] = ()


def inside_work(decoder: Decoder, lengths: Sequence[int]) -> int:
    """How often `look_inside` ticks."""
    return len(decoder.blocks) * (1 + (len(lengths) if isinstance(decoder.position, Alibi) else 0))


@torch.no_grad()
def look_inside(
    decoder: Decoder, method: str, tokens: Tensor, lengths: Sequence[int],
    *, mass_length: int, variant: str | None = None, tolerance: float | None = None, tick: Tick | None = None,
) -> Inside:  # fmt: skip
    """Look at every layer and head of a decoder on a text.

    Args:
        decoder: in evaluation mode.
        method: its name, for the record.
        tokens: (n,) int64, at least as long as the longest length.
        lengths: at which the horizon is certified, ascending; tiles are kept for the longest. None for a method that
            has no horizon.
        mass_length: at which attention mass is added up; the time grows with its square, memory with itself.
        variant: of the position method.
        tolerance: of the certificate; rounding level by default.
        tick: called with 1 after each layer, of the mass and of each length; may raise to stop.

    Raises:
        LabError: for a text or positions too short.
    """
    end = decoder.position.longest
    for argument, longest in (("lengths", max(lengths, default=0)), ("mass_length", mass_length)):
        if end is not None and longest > end:
            expected = f"at most {end:,}, where the positions of {method} end"
            raise LabError(argument, expected=expected, got=f"{longest:,}", remedy=f"lower it to {end}")
        if longest > len(tokens):
            expected = f"at most the {len(tokens):,} tokens of held-out text"
            remedy = "lower it, or use a larger corpus"
            raise LabError(argument, expected=expected, got=f"{longest:,}", remedy=remedy)
    mass = _mass(decoder, tokens[:mass_length], variant, tick)
    horizon: list[Horizon] = []
    tiles: list[Tiles] = []
    position = decoder.position
    if isinstance(position, Alibi):
        for length in lengths:
            with position.used_at(length, variant):
                slopes = position.slopes_for(length)
                inputs = attention_inputs(decoder, tokens[:length])
            for layer, (query, key) in enumerate(inputs):
                certificate = certify(query, key, slopes.detach(), tolerance=tolerance)
                tolerance = certificate.tolerance
                horizon += _horizon(certificate, slopes, length, layer)
                if length == lengths[-1]:
                    tiles.append(_tiles(certificate, length, layer))
                _tick(tick)
    return Inside(
        method=method, variant=variant, tolerance=tolerance if horizon else None, mass=mass, horizon=tuple(horizon),
        tiles=tuple(tiles),
    )  # fmt: skip


def attention_inputs(decoder: Decoder, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of every layer for a text (n,), each (1, heads, n, head_dim), before any rotation."""
    found: list[tuple[Tensor, Tensor]] = []
    with _attending(decoder, lambda query, key: found.append((query, key))):
        decoder.hidden(tokens.unsqueeze(0))
    return found


@contextmanager
def _attending(decoder: Decoder, see: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """While entered, every attention of the decoder is seen before it is computed."""
    attend = decoder.position.attend

    def attend_seen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        see(query, key)
        return attend(query, key, value)

    decoder.position.attend = attend_seen  # type: ignore[method-assign]
    try:
        yield
    finally:
        del decoder.position.attend


def bin_edges(length: int) -> tuple[int, ...]:
    """0, 1, 2, 4, 8, ... and the length."""
    edges = [0, 1]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return tuple(edges)


def _mass(decoder: Decoder, tokens: Tensor, variant: str | None, tick: Tick | None) -> Mass:
    length = len(tokens)
    edges = bin_edges(length)
    shares, means = [], []
    with decoder.position.used_at(length, variant):
        for query, key in attention_inputs(decoder, tokens):
            by_distance = mass_by_distance(decoder, query, key)
            shares.append([[float(head[a:b].sum()) for a, b in pairwise(edges)] for head in by_distance])
            means.append((by_distance @ torch.arange(length, dtype=torch.float64)).tolist())
            _tick(tick)
    return Mass.model_validate({"length": length, "edges": edges, "shares": shares, "mean_distance": means})


def mass_by_distance(decoder: Decoder, query: Tensor, key: Tensor) -> Tensor:
    """Mean mass at each distance over the queries of the second half, (heads, n) float64, for any position method.

    Nothing is known of how a method computes its scores: attending to values that are columns of the identity gives
    the columns of the attention matrix, a few at a time.
    """
    heads, length = query.shape[1:3]
    first = length // 2
    rows = torch.arange(first, length).unsqueeze(-1)
    total = torch.zeros(heads, length, dtype=torch.float64)
    for start in range(0, length, _COLUMNS):
        columns = torch.arange(start, min(start + _COLUMNS, length))
        value = torch.zeros(length, len(columns))
        value[columns, columns - start] = 1.0
        weights = decoder.position.attend(query, key, value.expand(1, heads, *value.shape))[0, :, first:]
        distances = (rows - columns).flatten()
        seen = distances >= 0
        total.index_add_(1, distances[seen], weights.double().flatten(1)[:, seen])
    return total / (length - first)


def _horizon(certificate: Certificate, slopes: Tensor, length: int, layer: int) -> list[Horizon]:
    windows = certificate.window[0]
    return [
        Horizon(
            length=length,
            layer=layer,
            head=head,
            slope=float(slopes[head]),
            mean_window=float(windows[head].double().mean()),
            max_window=int(windows[head].max()),
            kept_share=float(certificate.kept_share[head]),
            dropped_share=float(certificate.dropped_share[0, head].max()),
        )
        for head in range(len(windows))
    ]


def _tiles(certificate: Certificate, length: int, layer: int) -> Tiles:
    parts = (certificate.first_key[0], certificate.end_key[0], certificate.sink_keys[0])
    ranges = [list(zip(*(part[head].tolist() for part in parts), strict=True)) for head in range(len(parts[0]))]
    sizes = {"block_q": certificate.block_q, "block_k": certificate.block_k}
    return Tiles.model_validate({"length": length, "layer": layer, **sizes, "ranges": ranges})


def _tick(tick: Tick | None) -> None:
    if tick is not None:
        tick(1)

"""What a `HorizonCache` will allocate, told beforehand."""

from __future__ import annotations

import math
import random

import pytest
import torch

from alibi_attention import HorizonCache, alibi_slopes
from alibi_attention.cache.forecast import _read_on, bytes_after, reaches_of_caps, rooms_after
from alibi_attention.cache.run import PIECE, Run

DIM = 8


def read(length: int, chunk: int, slopes: torch.Tensor, kv_heads: int, cap: float, shift: float = 0.0) -> HorizonCache:
    """A cache in guaranteed mode after a text whose first keys have a mean of norm ``shift * cap``."""
    cache = HorizonCache("guaranteed", query_norm=cap, key_norm=cap)
    for at in range(0, length, chunk):
        tokens = min(chunk, length - at)
        key = torch.zeros(1, kv_heads, tokens, DIM)
        key[..., 0] = cap * shift
        key[:, :, : tokens // 2 * 2 : 2, 1] = cap * math.sqrt(1 - shift**2)
        key[:, :, 1 : tokens // 2 * 2 : 2, 1] = -cap * math.sqrt(1 - shift**2)
        cache.append(key, key)
        cache.attend(torch.zeros(1, len(slopes), tokens, DIM), slopes)
    return cache


@pytest.mark.parametrize("chunk", [1, 100, 512, 2000, 5000])
@pytest.mark.parametrize(("heads", "kv_heads", "stretch"), [(4, 4, 1.0), (8, 2, 1.0), (8, 8, 0.5), (1, 1, 4.0)])
def test_rooms_and_bytes_are_the_caches_own(heads: int, kv_heads: int, stretch: float, chunk: int) -> None:
    slopes = alibi_slopes(heads) * stretch
    bound = DIM**-0.5
    reaches = reaches_of_caps(bound, slopes, kv_heads)
    # Token by token only up to where heads of the steepest ring have begun to forget.
    for length in (300, 2000) if chunk == 1 else (1, 63, 1500, 4000, 10000):
        cache = read(length, chunk, slopes, kv_heads, 1.0)
        assert cache._store is not None
        rooms = [(len(ring.heads), ring.room) for ring in cache._store.rings]
        assert rooms_after(length, reaches, chunk) == rooms
        assert [ring.key.shape[2] for ring in cache._store.rings] == [room for _, room in rooms]
        assert bytes_after(length, reaches, DIM, torch.float32, chunk=chunk) == cache.bytes_held


def test_a_mean_key_widens_the_windows() -> None:
    slopes = alibi_slopes(4)
    for shift in (0.0, 0.5):
        cache = read(6000, 512, slopes, 4, 1.0, shift)
        reaches = reaches_of_caps(DIM**-0.5, slopes, 4, center=shift)
        assert bytes_after(6000, reaches, DIM, torch.float32) == cache.bytes_held
    assert all(
        wide > narrow
        for wide, narrow in zip(
            reaches_of_caps(4.0, slopes, 4, center=1.0), reaches_of_caps(4.0, slopes, 4), strict=True
        )
    )


def test_a_head_that_forgets_nothing() -> None:
    slopes = torch.tensor([0.5, 0.0])
    reaches = reaches_of_caps(DIM**-0.5, slopes, 2)
    assert reaches[1] == math.inf
    cache = read(5000, 512, slopes, 2, 1.0)
    assert bytes_after(5000, reaches, DIM, torch.float32) == cache.bytes_held
    # All of a group keep what one of it needs.
    assert reaches_of_caps(1.0, slopes, 1) == [math.inf]
    assert rooms_after(1000, [math.inf]) == [(1, 1024)]


def test_a_text_of_any_length_is_told_at_once() -> None:
    """Append by append it would never end."""
    reaches = reaches_of_caps(8.0, alibi_slopes(16), 16)
    assert rooms_after(10**12, reaches) == rooms_after(10**5, reaches)
    assert rooms_after(10**12 + 12345, reaches, 100) == rooms_after(10**5, reaches, 100)
    # Windows that no text fills, and those that none ever will.
    assert rooms_after(2**46, [1e13, math.inf], 100)[1][1] >= 2**46


def test_what_is_taken_at_once_is_what_every_step_would_give() -> None:
    draw = random.Random(0)
    for _ in range(200):
        reach, chunk = draw.choice([None, 0, 700, 5000, 20000]), draw.choice([1, 7, 64, 100, 512, 513, 3000])
        room, length = draw.choice([0, 1536, 3000]), draw.randrange(1, 40000 if chunk > 50 else 6000)
        step_by_step, at_once = Run(reach, room), Run(reach, room)
        while step_by_step.end < length:
            step_by_step.begin_at(step_by_step.first_needed(step_by_step.end))
            step_by_step.extend(min(chunk, length - step_by_step.end))
        _read_on(at_once, length, chunk)
        assert (at_once.end, at_once.room) == (length, step_by_step.room), (reach, chunk, room)


@pytest.mark.parametrize("chunk", [1, 7, 64, 300, 1024])
@pytest.mark.parametrize("reach", [0, 500, 1500, 4000])
def test_a_run_stays_in_its_buffer(reach: int, chunk: int) -> None:
    """And holds what it must; the buffer is bounded by what is held, and stays what it is."""
    run = Run(reach, 200)
    rooms = []
    for _ in range(0, 20000, chunk):
        start = run.first_needed(run.end)
        assert start % PIECE == 0
        assert start == 0 or start + 64 <= run.end - reach
        run.begin_at(start)
        at = run.extend(chunk)
        assert 0 <= run.offset <= at
        assert at + chunk == run.offset + run.held <= run.room
        rooms.append(run.room)
    assert min(run.end, reach) <= run.held <= run.most(chunk)
    assert rooms[-1] <= run.most(chunk) + max(512, run.most(chunk) // 4) + 63
    assert len(set(rooms[len(rooms) * 3 // 4 :])) == 1


class Copying(Run):
    """Counts the tokens that are copied from one place to another."""

    copied = 0

    def _slide(self) -> None:
        self.copied += self.held

    def _grow(self, room: int) -> None:
        self.copied += self.held
        super()._grow(room)


@pytest.mark.parametrize("chunk", [1, 100, 512, 3000])
@pytest.mark.parametrize("reach", [None, 20000, 60000])
def test_a_window_that_fills_has_a_quarter_to_spare_at_most(reach: int | None, chunk: int) -> None:
    """And the copies that come of it are so many a token, however long the text."""
    run = Copying(reach)
    while not run.start and run.end < 80000:
        run.begin_at(run.first_needed(run.end))
        run.extend(chunk)
        if not run.start:
            # A quarter of what was too small, or 256 tokens, in whole tiles.
            assert run.room <= 1.25 * run.held + 256 + 63
            # As many copies as a series of ratio 4/5 has of its first term.
            assert run.copied <= 5 * run.end
    assert run.end > (reach or 79999)
    # And once it is full: it moves back when it has come as far as an eighth of itself, or into a larger buffer.
    first, copied = run.end, run.copied
    if reach is not None:
        while run.end < 3 * reach:
            run.begin_at(run.first_needed(run.end))
            run.extend(chunk)
        assert run.copied - copied <= 8 * (run.end - first) + 2 * run.most(chunk)

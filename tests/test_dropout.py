"""The dropout generator: the published function, the right rate, and one mask for every backend and direction."""

from __future__ import annotations

import pytest
import torch

from alibi_attention import alibi_attention, alibi_slopes
from alibi_attention.dropout import keep_scale, philox

# Known answers of philox4x32-10 from the Random123 distribution (Salmon et al., SC 2011).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    seed = (key[1] << 32) | key[0]
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    got = philox(tuple(torch.tensor([c]) for c in counter), torch.tensor(signed))
    assert tuple(int(w) for w in got) == words


def _whole(p: float, rows: int = 64, columns: int = 131) -> torch.Tensor:
    index = [torch.arange(n) for n in (2, 3, rows, columns)]
    return keep_scale(torch.tensor(12345), p, 3, *index)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_rate_and_scale(p: float) -> None:
    scale = _whole(p)
    kept = scale > 0
    torch.testing.assert_close(scale[kept], torch.full_like(scale[kept], 1 / (1 - p)))
    spread = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 5 * spread


def test_a_tile_is_cut_from_the_whole() -> None:
    """Whatever tile a backend works on, it sees the same mask."""
    whole = _whole(0.3)
    for start, stop in ((0, 64), (1, 5), (3, 4), (66, 131), (130, 131)):
        tile = keep_scale(
            torch.tensor(12345),
            0.3,
            3,
            torch.tensor([1]),
            torch.tensor([2]),
            torch.arange(7, 20),
            torch.arange(start, stop),
        )
        assert torch.equal(tile[0, 0], whole[1, 2, 7:20, start:stop])


def test_rows_heads_and_batches_differ() -> None:
    kept = (_whole(0.5) > 0).flatten(0, 2)
    assert torch.unique(kept, dim=0).shape[0] == kept.shape[0]


def test_a_seed_reproduces_it_on_every_backend(backend: str) -> None:
    tensors = [torch.randn(2, 4, 150, 16) for _ in range(3)]
    results = []
    for name in (backend, "reference", backend):
        torch.manual_seed(11)
        results.append(alibi_attention(*tensors, alibi_slopes(4), dropout_p=0.5, backend=name))
    torch.testing.assert_close(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.allclose(results[0], alibi_attention(*tensors, alibi_slopes(4), dropout_p=0.5, backend=backend))


def test_expectation_is_the_undropped_output() -> None:
    tensors = [torch.randn(1, 1, 12, 8) for _ in range(3)]
    mean = sum(alibi_attention(*tensors, dropout_p=0.2) for _ in range(2000)) / 2000
    assert (mean - alibi_attention(*tensors)).abs().amax() < 0.15


def test_lse_is_taken_before_dropout() -> None:
    tensors = [torch.randn(1, 2, 30, 8) for _ in range(3)]
    lse = alibi_attention(*tensors, return_lse=True)[1]
    assert torch.equal(alibi_attention(*tensors, dropout_p=0.5, return_lse=True)[1], lse)

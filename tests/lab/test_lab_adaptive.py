from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alibi_attention.lab.adaptive import AdaptiveEmbedding
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape

CUTOFFS = (5, 12)


@pytest.fixture
def words() -> AdaptiveEmbedding:
    return AdaptiveEmbedding(30, 16, CUTOFFS).double()


def test_probabilities_are_torchs(words: AdaptiveEmbedding) -> None:
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 30, list(CUTOFFS), div_value=4.0).double()
    with torch.no_grad():
        theirs.head.weight.copy_(torch.cat((words.bands[0] @ words.projections[0].T, words.band_entries)))
        for band, tail in enumerate(theirs.tail, start=1):
            tail[0].weight.copy_(words.projections[band].T)
            tail[1].weight.copy_(words.bands[band])
    hidden = torch.randn(7, 16, dtype=torch.float64)
    ours = words.log_probabilities(hidden)
    # Ours are rounded to float32 where scores leave a projection.
    torch.testing.assert_close(ours.double(), theirs.log_prob(hidden), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(7))


def test_nats_are_those_of_the_probabilities(words: AdaptiveEmbedding) -> None:
    hidden = torch.randn(30, 16, dtype=torch.float64)
    targets = torch.arange(30)
    expected = F.nll_loss(words.log_probabilities(hidden), targets, reduction="none")
    torch.testing.assert_close(words.nats(hidden, targets), expected)
    only_frequent = words.nats(hidden[:3], targets[:3])
    torch.testing.assert_close(only_frequent, expected[:3])


def test_vectors_are_narrow_ones_projected(words: AdaptiveEmbedding) -> None:
    out = words(torch.tensor([[0, 4, 5], [11, 12, 29]]))
    assert out.shape == (2, 3, 16)
    for place, (band, row) in {(0, 0): (0, 0), (0, 1): (0, 4), (0, 2): (1, 0), (1, 0): (1, 6), (1, 2): (2, 17)}.items():
        torch.testing.assert_close(out[place], words.projections[band] @ words.bands[band][row])
    assert [band.shape[1] for band in words.bands] == [16, 4, 1]


def test_every_parameter_learns() -> None:
    decoder = Decoder(DecoderShape(8, 1, 2, 16), "alibi", seed=0, vocabulary=30, cutoffs=CUTOFFS)
    tokens = torch.arange(30).view(2, 15)
    decoder.nats(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_refusals() -> None:
    with pytest.raises(LabError) as error:
        AdaptiveEmbedding(10, 16, (5, 12))
    assert str(error.value) == (
        "cutoffs: expected ranks below the vocabulary of 10, got 5,12; "
        "lower the last one, or leave cutoffs out for a small vocabulary"
    )
    with pytest.raises(LabError) as error:
        AdaptiveEmbedding(30, 24, (5, 12))
    assert str(error.value) == (
        "width: expected a multiple of 16, so that 2 cutoffs leave whole widths, got 24; "
        "change it, or use fewer cutoffs"
    )

"""The certificate on what a trained model asks of it, not only on random numbers."""

from __future__ import annotations

import torch
from operator_cases import Case
from test_horizon import true_shares
from torch import Tensor

from alibi_attention import certify
from alibi_attention.lab.batches import Batches
from alibi_attention.lab.config import make_config
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.model import Decoder, build_decoder


def trained_decoder() -> tuple[Decoder, Tensor]:
    """A small decoder after some hundred steps on real text, and 1024 held-out bytes."""
    config = make_config({"length": 64, "layers": 2, "heads": 4, "width": 64, "steps": 100, "batch_size": 8})
    corpus = load_corpus(config)
    decoder = build_decoder(config, "alibi")
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    losses = []
    for batch in Batches(corpus.train, config, 0, config.steps):
        loss = decoder.nats(batch[:, :-1], batch[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    return decoder, torch.from_numpy(corpus.held_out[:1024].astype("int64"))[None]


def test_certificates_hold_on_a_trained_model() -> None:
    decoder, tokens = trained_decoder()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    attend = decoder.position.attend

    def record(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append((query.detach(), key.detach(), value.detach()))
        return attend(query, key, value)

    decoder.position.attend = record  # type: ignore[method-assign]
    with torch.no_grad():
        decoder(tokens)
    assert len(seen) == 2
    slopes = decoder.position.slopes
    empty = torch.empty(0)
    for query, key, value in seen:
        for tolerance in (2.0**-24, 1e-3):
            certificate = certify(query, key, slopes, tolerance=tolerance)
            case = Case(query, key, value, slopes, {"tolerance": tolerance}, empty, empty)
            assert (true_shares(case, certificate) <= certificate.dropped_share + 1e-18).all()
            assert (certificate.dropped_share <= tolerance).all()
            # The steepest of four heads, m = 1/4, has a horizon well inside 1024 tokens.
            assert certificate.kept_share[0] < 0.8

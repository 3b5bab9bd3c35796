"""Every position method reads on from a cache as it reads the whole, or says that it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alibi_attention import HorizonCache, KVCache
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape, PositionMethod, position_methods, split_name

SHAPE = DecoderShape(length=48, layers=2, heads=2, width=32)
VARIANTS = ["alibi:linear", "alibi:ntk", "alibi-learned:ntk", "rope:pi", "rope:yarn"]


def decoder_of(method: str) -> Decoder:
    """With parameters of positions that are not what they began as."""
    decoder = Decoder(SHAPE, method, seed=0).eval()
    with torch.no_grad():
        for parameter in decoder.position.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return decoder


@pytest.mark.parametrize("chunks", [(48,), (20, 1, 1, 19, 7), (1,) * 48])
@pytest.mark.parametrize("name", [*position_methods(), *VARIANTS])
def test_reading_on_is_reading_the_whole(name: str, chunks: tuple[int, ...]) -> None:
    method, variant = split_name(name)
    decoder = decoder_of(method)
    tokens = torch.randint(256, (2, 48), generator=torch.Generator().manual_seed(1))
    caches = [KVCache() for _ in decoder.blocks]
    with torch.no_grad(), decoder.position.used_at(96, variant):
        whole = decoder(tokens)
        parts = [decoder(part, caches) for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert whole.std() > 0.01


def test_prompts_longer_than_a_block_of_t5s(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of("t5")
    tokens = torch.randint(256, (1, 48))
    with torch.no_grad():
        whole = decoder(tokens)
        monkeypatch.setattr("alibi_attention.lab.positions.t5._ROWS", 7)
        caches = [KVCache() for _ in decoder.blocks]
        parts = [decoder(part, caches) for part in tokens.split((5, 43), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["alibi:dynamic", "rope:dynamic", "alibi-learned:dynamic"])
def test_what_changes_its_mind_about_the_past_is_refused(name: str) -> None:
    method, variant = split_name(name)
    decoder = decoder_of(method)
    with decoder.position.used_at(96, variant), pytest.raises(LabError) as error:
        decoder(torch.zeros(1, 4, dtype=torch.long), [KVCache() for _ in decoder.blocks])
    assert str(error.value) == (
        f"variant: expected a variant that leaves tokens already read alone, got {name}, which depends on how many "
        "there are; name another, or leave it out"
    )


def test_a_method_of_ones_own_needs_continue_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PositionMethod, "registry", dict(PositionMethod.registry))

    class Flat(position_methods()["alibi"]):  # type: ignore[misc]
        name = "flat"
        title = "flat"

        def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return super().attend(query / 2, key, value)

    with pytest.raises(LabError) as error:
        Decoder(SHAPE, "flat", seed=0)(torch.zeros(1, 4, dtype=torch.long), [KVCache(), KVCache()])
    assert str(error.value) == (
        "method: expected a method that can read on from a cache, got 'flat', whose class Flat has attend() and no "
        "continue_with(); name another, or add continue_with() to it"
    )


def test_positions_that_end_end_in_a_cache_too() -> None:
    decoder = decoder_of("learned")
    caches = [KVCache() for _ in decoder.blocks]
    with torch.no_grad():
        decoder(torch.zeros(1, 48, dtype=torch.long), caches)
        with pytest.raises(LabError, match="length: expected at most 48, the positions that were trained, got 49"):
            decoder(torch.zeros(1, 1, dtype=torch.long), caches)


def test_t5_lets_no_key_go() -> None:
    query, key, value = torch.randn(3, 1, 2, 4, 16)
    with pytest.raises(LabError, match="cache: expected one that keeps every key, got a HorizonCache"):
        decoder_of("t5").position.continue_with(HorizonCache(), query, key, value)

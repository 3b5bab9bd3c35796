from __future__ import annotations

import numpy as np
import pytest

from alibi_attention.lab.held_out import HeldOut
from alibi_attention.lab.intervals import mean_interval
from alibi_attention.lab.pairs import paired_difference
from alibi_attention.lab.scores import Evaluation, LossVerdict, RecallScore, RecallVerdict, Score
from alibi_attention.lab.verdicts import median_verdict, usable_by_perplexity, usable_by_recall

# Bits of four documents of 100 bytes each, and of one.
SIZES = (100, 100, 100, 100)


def score(length: int, *bits: float) -> Score:
    sizes = (100,) * len(bits)
    return Score(length=length, bits_per_byte=sum(bits) / sum(sizes), scored_bytes=sum(sizes), document_bits=bits,
                 document_bytes=sizes)  # fmt: skip


def flat(length: int, bits_per_byte: float) -> Score:
    """All documents alike, so that changes have no spread."""
    return score(length, *[100 * bits_per_byte] * 4)


def evaluation(*scores: Score, protocol: str = "windows") -> Evaluation:
    return Evaluation.model_validate({"name": "a", "title": "A", protocol: scores})


def usable(*scores: Score, train_length: int = 256) -> int | None:
    verdict = usable_by_perplexity([evaluation(*scores)], train_length)
    return None if verdict is None else verdict.length


def test_differences_are_by_document_and_seed() -> None:
    scores = [score(1, 200, 210, 220), score(1, 205, 215, 210)]
    others = [score(1, 190, 220, 200), score(1, 200, 200, 200)]
    found = paired_difference(scores, others)
    assert found is not None
    assert found.by_seed == pytest.approx((20 / 300, 30 / 300))
    assert found.mean == pytest.approx(50 / 600)
    assert found.interval == mean_interval([[10, -10, 20], [5, 15, 10]], (100, 100, 100))
    assert paired_difference([score(1, 200)], [score(1, 200, 210)]) is None
    impossible = Score(length=1, bits_per_byte=None, scored_bytes=0)
    assert paired_difference([impossible], [impossible]) is None


def test_usable_by_perplexity_follows_the_lengths() -> None:
    assert usable(flat(128, 2.2), flat(256, 2.0), flat(512, 2.01), flat(1024, 1.9)) == 1024
    assert usable(flat(256, 2.0), flat(512, 2.0199)) == 512
    assert usable(flat(256, 2.0), flat(512, 2.03), flat(1024, 1.0)) == 256
    impossible = Score(length=512, bits_per_byte=None, scored_bytes=0, note="ends")
    assert usable(flat(256, 2.0), impossible) == 256
    assert usable(flat(256, 2.0), flat(512, float("nan"))) == 256
    assert usable(flat(256, 2.0), train_length=100) is None
    assert usable_by_perplexity([Evaluation(name="a", title="A")], 256) is None


def test_a_loss_that_frequencies_have_too_tells_nothing() -> None:
    level = evaluation(flat(256, 4.8), flat(512, 4.8))
    for unigram, length in ((4.9, 512), (4.8, None), (4.0, None), (None, 512)):
        verdict = usable_by_perplexity([level.model_copy(update={"unigram_bits": unigram})], 256)
        assert verdict == LossVerdict(protocol="windows", length=length)
    assert LossVerdict(protocol="windows", length=None).words == "not learned"


def test_bits_of_frequencies() -> None:
    # Half a, a quarter b and a quarter c: 1.5 bits a token.
    tokens = np.array([0, 0, 1, 2, 0, 1, 0, 2], dtype=np.uint8)
    one = HeldOut(tokens, np.zeros(1, dtype=np.int64), np.array([1, 1, 1]))
    assert one.unigram_bits() == pytest.approx(1.5)
    # Twelve bytes.
    wider = HeldOut(tokens, np.zeros(1, dtype=np.int64), np.array([1, 3, 1]))
    assert wider.unigram_bits() == pytest.approx(1.5 * 8 / 12)
    sized = HeldOut(tokens, np.zeros(1, dtype=np.int64), np.zeros(3, dtype=np.int64), sizes=np.full(8, 200, np.uint8))
    assert sized.unigram_bits() == pytest.approx(1.5 / 200)


def test_usable_by_perplexity_must_be_sure() -> None:
    # Half a percent worse on the whole, but in documents that differ: it may as well be more than one.
    trained = score(256, 200, 200, 200, 200)
    assert usable(trained, score(512, 201, 201, 201, 201)) == 512
    assert usable(trained, score(512, 198, 198, 198, 210)) == 256
    # Of one document there is no interval.
    assert usable(score(256, 200), score(512, 201)) == 512
    # Seeds that differ count as documents do.
    seeds = [evaluation(trained, flat(512, bits)) for bits in (1.99, 1.99, 2.05)]
    verdict = usable_by_perplexity(seeds, 256)
    assert verdict is not None
    assert verdict.length == 256


def test_usable_by_perplexity_says_what_it_judged() -> None:
    everything = evaluation(flat(256, 2.0), flat(512, 1.0)).model_dump()
    worse = (flat(256, 2.0), flat(512, 3.0))
    for protocol in ("targets", "sliding"):
        everything[protocol] = worse
        verdict = usable_by_perplexity([Evaluation.model_validate(everything)], 256)
        assert verdict == LossVerdict(protocol=protocol, length=256)


def recalls(*cells: tuple[int, int, int]) -> list[RecallScore]:
    return [RecallScore(length=n, distance=d, asked=32, recalled=r) for n, d, r in cells]


# Of 32, 22 are surely half.
GOOD = (256, 32, 32), (256, 253, 22), (512, 32, 22), (512, 509, 29)


def test_usable_by_recall_looks_at_every_distance() -> None:
    found = usable_by_recall(recalls(*GOOD), 256)
    assert found == RecallVerdict(nearest=32, nearest_share=1.0, learned=True, length=512, distance=509)
    assert found.words == "512 (509 away)"
    more = recalls(*GOOD, (1024, 32, 32), (1024, 1021, 21), (2048, 2045, 32))
    found = usable_by_recall(more, 256)
    assert found is not None
    assert (found.length, found.failed_distance, found.failed_share) == (512, 1021, 21 / 32)
    # The beginning of the window known, and not its middle: the worst distance is told.
    middle = recalls(*GOOD, (1024, 32, 32), (1024, 128, 21), (1024, 253, 9), (1024, 512, 10), (1024, 1021, 32))
    found = usable_by_recall(middle, 256)
    assert found is not None
    assert (found.length, found.failed_distance, found.failed_share) == (512, 253, 9 / 32)
    unasked = RecallScore(length=1024, distance=1021, asked=0, recalled=0, note="ends")
    found = usable_by_recall([*recalls(*GOOD), unasked], 256)
    assert found is not None
    assert (found.length, found.failed_distance, found.failed_share) == (512, 1021, None)
    found = usable_by_recall([*recalls(*GOOD, (1024, 32, 0)), unasked], 256)
    assert found is not None
    assert (found.failed_distance, found.failed_share) == (1021, None)
    assert usable_by_recall([], 256) is None
    assert usable_by_recall([unasked], 256) is None


def test_what_was_not_learned_is_not_what_does_not_reach() -> None:
    short = usable_by_recall(recalls((256, 32, 28), (256, 253, 8), (512, 32, 28), (512, 509, 28)), 256)
    assert short is not None
    assert short.learned
    assert short.length is None
    assert short.words == "not recalled from 253: 25%"
    unsure = usable_by_recall(recalls((256, 32, 28), (256, 253, 20)), 256)
    assert unsure is not None
    assert unsure.words == "not surely recalled from 253: 62%"
    # What a longer window happens to recall does not help.
    never = usable_by_recall(recalls((128, 32, 28), (256, 32, 8), (256, 253, 8), (512, 32, 28), (512, 509, 28)), 256)
    assert never is not None
    assert not never.learned
    assert never.words == "not learned: 25% at 32"
    untaught = usable_by_recall(recalls((256, 32, 0)), 256, taught=False)
    assert untaught is not None
    assert untaught.words == "not taught: 0% at 32"
    # Where no length inside the trained one was evaluated: the shortest.
    first = usable_by_recall(recalls((512, 32, 8), (512, 509, 28)), 256)
    assert first == RecallVerdict(nearest=32, nearest_share=0.25, learned=False)


def test_the_median_seed_decides() -> None:
    learned = usable_by_recall(recalls(*GOOD), 256)
    short = usable_by_recall(recalls((256, 32, 28), (256, 253, 8)), 256)
    never = usable_by_recall(recalls((256, 32, 8), (256, 253, 8)), 256)
    assert median_verdict([learned, never, short]) == short
    assert median_verdict([learned, never, learned]) == learned
    # Of two the worse.
    assert median_verdict([learned, never]) == never
    assert median_verdict([learned, None]) is None

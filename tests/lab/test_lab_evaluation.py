from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from lab_cases import TINY, of_bytes

from alibi_attention.lab.config import PROTOCOLS, ExperimentConfig, Protocol, make_config
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.ends import Ends, sliding_ends, target_ends
from alibi_attention.lab.evaluation import evaluate_ends, evaluate_windows, window_work
from alibi_attention.lab.held_out import HeldOut, segment_starts
from alibi_attention.lab.intervals import effective_number, mean_interval, wilson_interval
from alibi_attention.lab.masking import evaluate_masked
from alibi_attention.lab.model import Decoder, build_decoder
from alibi_attention.lab.positions import DecoderShape, position_methods
from alibi_attention.lab.protocols import held_out_of, protocol_lengths, protocol_work, run_protocol
from alibi_attention.lab.recall import evaluate_recall
from alibi_attention.lab.scores import RecallScore, Score

SHAPE = DecoderShape(length=8, layers=1, heads=2, width=16)


@pytest.mark.parametrize(
    ("stream", "segment", "budget"), [(1000, 64, 640), (65, 64, 640), (500, 64, 10), (130, 64, 999)]
)
def test_segments_are_disjoint_and_spread(stream: int, segment: int, budget: int) -> None:
    starts = segment_starts(stream, segment, budget)
    assert len(starts) == max(1, min(round(budget / segment), (stream - 1) // segment))
    assert all(b - a >= segment for a, b in pairwise(starts))
    assert starts[0] == 0
    assert starts[-1] + segment + 1 <= stream
    if len(starts) > 1:
        assert starts[-1] + segment + 1 == stream


@pytest.mark.parametrize("method", position_methods())
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_products_in_bfloat16_change_scores_little(method: str, protocol: Protocol) -> None:
    sizes = {**TINY, "length": 64, "eval_lengths": (64, 128), "eval_tokens": 2048, "width": 32, "recall_trials": 4}
    config = make_config({**sizes, "methods": (method,), "protocols": ("all",)})
    corpus, decoder = load_corpus(config), build_decoder(config, method).eval()
    with torch.no_grad():
        # As far apart as trained ones.
        decoder.embedding.weight *= 20
        for parameter in decoder.position.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    exact, rounded = (
        [
            each
            for found in run_protocol(protocol, decoder, corpus, settings, None, lambda _: None)
            for each in found.scores
        ]
        for settings in (config, config.model_copy(update={"eval_precision": "bf16"}))
    )
    assert len(exact) == len(rounded)
    if protocol == "recall":
        for one, other in zip(exact, rounded, strict=True):
            assert isinstance(one, RecallScore)
            assert isinstance(other, RecallScore)
            assert (one.length, one.distance, one.asked) == (other.length, other.distance, other.asked)
            assert abs(one.recalled - other.recalled) <= 1
        return
    for one, other in zip(exact, rounded, strict=True):
        assert isinstance(one, Score)
        assert isinstance(other, Score)
        if one.bits_per_byte is None:
            assert other.bits_per_byte is None
            continue
        assert other.bits_per_byte == pytest.approx(one.bits_per_byte, abs=0.02)
        assert other.bits_per_byte != one.bits_per_byte


def bits_one_at_a_time(decoder: Decoder, stream: np.ndarray, first: int, target: int) -> float:
    """-log2 p of one byte after the context from ``first`` on."""
    context = torch.from_numpy(stream[first:target].astype(np.int64))
    with torch.no_grad():
        logits = decoder(context[None])[0, -1].double()
    return -logits.log_softmax(-1)[int(stream[target])].item() / math.log(2)


def test_agrees_with_one_prediction_at_a_time() -> None:
    decoder = Decoder(SHAPE, "rope", seed=0)
    stream = np.random.default_rng(0).integers(0, 256, size=120, dtype=np.uint8)
    held_out = HeldOut(stream, np.array([0, 30, 100]), np.ones(256, dtype=np.int64))
    # 24 is no divisor of 40: the last window of a segment is then 16 long.
    lengths = (8, 24, 40)
    scores = evaluate_windows(decoder, held_out, lengths, budget=80)
    starts = segment_starts(len(stream), 40, 80)
    assert len(starts) == 2
    for length, score in zip(lengths, scores, strict=True):
        bits, documents, places = [], [], []
        for start in starts:
            for position in range(start, start + 40):
                first = start + (position - start) // length * length
                bits.append(bits_one_at_a_time(decoder, stream, first, position + 1))
                documents.append(int(position + 1 >= 30) + int(position + 1 >= 100))
                places.append((position - start) % length)
        assert score.length == length
        assert score.scored_bytes == score.scored_tokens == len(bits) == 80
        assert score.bits_per_byte == pytest.approx(np.mean(bits), abs=1e-5)
        assert score.perplexity == pytest.approx(2 ** np.mean(bits), rel=1e-5)
        by_document = [sum(b for b, d in zip(bits, documents, strict=True) if d == n) for n in range(3)]
        assert score.document_bits == pytest.approx(by_document, abs=1e-4)
        assert score.document_bytes == tuple(documents.count(n) for n in range(3))
        low, high = score.interval or (0, 0)
        assert low < score.bits_per_byte < high
        assert [bin_.first for bin_ in score.by_position][:4] == [0, 1, 2, 4]
        assert score.by_position[-1].end == length
        for bin_ in score.by_position:
            inside = [b for b, place in zip(bits, places, strict=True) if bin_.first <= place < bin_.end]
            assert bin_.bits_per_byte == pytest.approx(np.mean(inside), abs=1e-5)


def test_bits_per_byte_count_the_bytes_of_tokens() -> None:
    decoder = Decoder(SHAPE, "rope", seed=0)
    stream = np.random.default_rng(0).integers(0, 256, size=41, dtype=np.uint8)
    sizes = np.arange(256, dtype=np.int64) % 5 + 1
    plain = evaluate_windows(decoder, of_bytes(stream), (40,), 40)[0]
    sized = evaluate_windows(decoder, HeldOut(stream, np.zeros(1, np.int64), sizes), (40,), 40)[0]
    count = sizes[stream[1:]].sum()
    assert sized.scored_bytes == count
    assert sized.bits_per_byte == pytest.approx(plain.bits_per_byte * 40 / count)
    assert sized.perplexity == plain.perplexity
    # Where a token does not always stand for as much, what counts is what stands there.
    there = np.arange(41, dtype=np.uint32) % 7
    counted = evaluate_windows(decoder, HeldOut(stream, np.zeros(1, np.int64), sizes, there), (40,), 40)[0]
    assert counted.scored_bytes == there[1:].sum()
    assert counted.bits_per_byte == pytest.approx(plain.bits_per_byte * 40 / there[1:].sum())


def test_sliding_window_gives_every_token_its_context() -> None:
    decoder = Decoder(SHAPE, "rope", seed=0)
    stream = np.random.default_rng(0).integers(0, 256, size=100, dtype=np.uint8)
    for length, stride, step in ((8, 2, 2), (16, 4, 4), (16, 5, 5), (8, 5, 5), (8, 0, 2), (16, 0, 4)):
        ends = sliding_ends(of_bytes(stream), (8, 16), 64, stride, length)
        assert ends.scored == step
        score = evaluate_ends(decoder, of_bytes(stream), length, ends)
        bits = []
        for end in ends.ends:
            for target in range(end - step + 1, end + 1):
                assert target - (end - length) >= length - step  # the context it has
                bits.append(bits_one_at_a_time(decoder, stream, end - length, target))
        assert score.bits_per_byte == pytest.approx(np.mean(bits), abs=1e-5)


def scored_at(ends: Ends) -> list[int]:
    return sorted(t for end in ends.ends for t in range(end - ends.scored + 1, end + 1))


@pytest.mark.parametrize(
    ("lengths", "stride", "strides"),
    [
        ((16, 64, 256), 0, (4, 16, 64)),
        # Quarters that do not divide one another: powers of two below them.
        ((16, 24, 100), 0, (4, 4, 16)),
        ((16, 64, 256), 10, (10, 10, 10)),
        # Longer than the shortest window: what divides it.
        ((16, 64, 256), 40, (10, 40, 40)),
    ],
)
def test_all_lengths_slide_over_the_same_tokens(
    lengths: tuple[int, ...], stride: int, strides: tuple[int, ...]
) -> None:
    held_out, budget = of_bytes(np.zeros(5000, dtype=np.uint8)), 2048
    found = [sliding_ends(held_out, lengths, budget, stride, length) for length in lengths]
    assert tuple(ends.scored for ends in found) == strides
    assert scored_at(found[0]) == scored_at(found[1]) == scored_at(found[2])
    assert len(set(scored_at(found[0]))) == len(scored_at(found[0]))
    for length, ends in zip(lengths, found, strict=True):
        assert min(ends.ends) >= length
        assert max(ends.ends) < 5000
        # The budget is what is read; where a stride is no quarter, at the longest length.
        if not stride or length == lengths[-1]:
            assert length * len(ends.ends) <= 1.6 * budget
    assert len(found[-1].ends) == budget // lengths[-1]


def test_fixed_targets_are_the_same_with_more_before_them() -> None:
    decoder = Decoder(SHAPE, "rope", seed=0)
    stream = np.random.default_rng(0).integers(0, 256, size=200, dtype=np.uint8)
    ends = target_ends(of_bytes(stream), (8, 32), 64, 3)
    assert len(ends.ends) == 8
    assert len(set(scored_at(ends))) == 24
    assert min(ends.ends) < 60
    assert max(ends.ends) > 175
    for length in (8, 32):
        score = evaluate_ends(decoder, of_bytes(stream), length, ends)
        bits = [bits_one_at_a_time(decoder, stream, end - length, end - back) for end in ends.ends for back in range(3)]
        assert score.bits_per_byte == pytest.approx(np.mean(bits), abs=1e-5)
        assert score.scored_tokens == 24
        assert score.whole_context == 1.0


def test_fixed_targets_are_as_many_as_the_budget_reads_on_average() -> None:
    held_out = of_bytes(np.zeros(1 << 20, dtype=np.uint8))
    # As the default: eight lengths of 131,072 tokens.
    ends = target_ends(held_out, tuple(64 << i for i in range(8)), 131_072, 32)
    assert len(ends.ends) == 64
    assert len(target_ends(held_out, (1 << 16,), 131_072, 32).ends) == 8


def test_fixed_targets_have_their_context_in_one_document() -> None:
    # Short documents but for two, which have room for a window of 50.
    lengths = [20, 80, 30, 30, 100, 20]
    starts = np.cumsum([0, *(n + 1 for n in lengths)])[:-1]
    tokens = np.concatenate([np.append(np.full(n, 100 + i, np.uint8), 0) for i, n in enumerate(lengths)])[:-1]
    held_out = HeldOut(tokens, starts, np.ones(256, np.int64))
    ends = target_ends(held_out, (10, 50), 400, 3)
    assert len(ends.ends) == 13
    for end in ends.ends:
        assert set(tokens[end - 50 : end + 1].tolist()) in ({101}, {104})
    assert {int(tokens[end]) for end in ends.ends} == {101, 104}
    decoder = Decoder(SHAPE, "alibi", seed=0)
    assert evaluate_ends(decoder, held_out, 50, ends).whole_context == 1.0
    # More than there is room for: the rest is spread over all the text, and said.
    ends = target_ends(held_out, (10, 50), 1200, 3)
    assert len(ends.ends) == 40
    assert len(set(scored_at(ends))) == 120
    share = evaluate_ends(decoder, held_out, 50, ends).whole_context
    assert share == pytest.approx(np.mean([len(set(tokens[e - 50 : e + 1].tolist())) == 1 for e in ends.ends]))
    assert 0.5 < share < 1.0
    # None has any: as before.
    assert len(target_ends(held_out, (10, 120), 130, 3).ends) == 8


@pytest.mark.parametrize("size", [33, 34, 50, 1000])
def test_short_text_is_used_as_far_as_it_goes(size: int) -> None:
    held_out = of_bytes(np.zeros(size, dtype=np.uint8))
    sliding = [sliding_ends(held_out, (8, 32), 64, 0, n) for n in (8, 32)]
    for ends in (target_ends(held_out, (8, 32), 64, 3), *sliding):
        assert ends.ends
        assert all(32 <= end < size for end in ends.ends)
    assert scored_at(sliding[0]) == scored_at(sliding[1])
    assert len(scored_at(sliding[0])) == {33: 1, 34: 2, 50: 16, 1000: 16}[size]


def test_a_variant_is_set_up_for_each_length() -> None:
    decoder = Decoder(SHAPE, "alibi", seed=0)
    stream = np.random.default_rng(0).integers(0, 256, size=65, dtype=np.uint8)
    plain = evaluate_windows(decoder, of_bytes(stream), (8, 64), 64)
    scaled = evaluate_windows(decoder, of_bytes(stream), (8, 64), 64, variant="linear")
    assert plain[0] == scaled[0]
    assert plain[1].bits_per_byte != scaled[1].bits_per_byte
    flat = Decoder(SHAPE, "alibi", seed=0)
    flat.position.slopes /= 8
    again = evaluate_windows(flat, of_bytes(stream), (64,), 64)[0]
    assert again.bits_per_byte == pytest.approx(scaled[1].bits_per_byte)


def test_positions_that_end_are_reported() -> None:
    decoder = Decoder(SHAPE, "learned", seed=0)
    held_out = of_bytes(np.random.default_rng(0).integers(0, 256, size=200, dtype=np.uint8))
    ticked: list[int] = []
    first, second = evaluate_windows(decoder, held_out, (8, 16), 64, tick=ticked.append)
    assert first.bits_per_byte is not None
    assert first.note is None
    assert (second.bits_per_byte, second.note, second.scored_bytes) == (None, "its positions end at 8", 0)
    assert sum(ticked) == window_work(held_out, (8, 16), 64)
    ends = target_ends(held_out, (8, 16), 64, 3)
    assert evaluate_ends(decoder, held_out, 16, ends).note == "its positions end at 8"


def test_ticks_and_may_stop() -> None:
    decoder = Decoder(SHAPE, "alibi", seed=0)
    stream = np.zeros(100, dtype=np.uint8)
    ticks: list[int] = []
    evaluate_windows(decoder, of_bytes(stream), (8, 16), 48, tick=ticks.append)
    assert ticks == [16] * 6
    assert sum(ticks) == window_work(of_bytes(stream), (8, 16), 48)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_windows(decoder, of_bytes(stream), (8, 16), 48, tick=stop)


MakeConfig = Callable[..., ExperimentConfig]


def at_once(config: ExperimentConfig, decoder: Decoder) -> dict[str, list[Score] | list[RecallScore]]:
    """Scores by protocol, all lengths in one call wherever there is such a call."""
    corpus = load_corpus(config)
    held_out, lengths, budget = held_out_of(corpus), config.eval_lengths, config.eval_tokens
    if config.objective == "masked":
        return {"windows": evaluate_masked(decoder, held_out, lengths, budget, config.mask_share)}
    sliding = [(n, sliding_ends(held_out, lengths, budget, config.stride, n)) for n in lengths]
    targets = target_ends(held_out, config.window_lengths, budget, config.targets)
    return {
        "windows": evaluate_windows(decoder, held_out, lengths, budget),
        "sliding": [evaluate_ends(decoder, held_out, n, ends) for n, ends in sliding],
        "targets": [evaluate_ends(decoder, held_out, n, targets) for n in config.window_lengths],
        "recall": evaluate_recall(
            decoder, held_out, corpus.encoder, lengths, budget=budget, most=config.recall_trials, seed=config.seed
        ),
    }


@pytest.mark.parametrize("method", ["alibi", "learned"])
@pytest.mark.parametrize("changes", [{"protocols": ["all"], "recall_trials": 8}, {"objective": "masked"}])
def test_a_length_alone_comes_to_what_it_comes_to_among_all(
    tiny: MakeConfig, method: str, changes: dict[str, object]
) -> None:
    config = tiny(methods=(method,), **changes)
    decoder, corpus = build_decoder(config, method).eval(), load_corpus(config)
    held_out = held_out_of(corpus)
    for protocol, whole in at_once(config, decoder).items():
        lengths = protocol_lengths(protocol, config)
        found: list[Score | RecallScore] = []
        # In another order, and each on its own.
        for length in sorted(lengths, reverse=True):
            ticked: list[int] = []
            ((at, scores),) = run_protocol(protocol, decoder, corpus, config, None, ticked.append, [length])
            assert at == length
            assert sum(ticked) == protocol_work(protocol, held_out, config, [length])
            found[:0] = scores
        assert found == whole
        total = sum(protocol_work(protocol, held_out, config, [length]) for length in lengths)
        assert protocol_work(protocol, held_out, config) == total


def test_uniform_predictions_cost_eight_bits() -> None:
    decoder = Decoder(SHAPE, "alibi", seed=0)
    torch.nn.init.zeros_(decoder.embedding.weight)
    stream = np.random.default_rng(1).integers(0, 256, size=100, dtype=np.uint8)
    assert [score.bits_per_byte for score in evaluate_windows(decoder, of_bytes(stream), (8, 32), 64)] == pytest.approx(
        [8.0, 8.0]
    )


# Certainty


def test_an_interval_is_about_documents() -> None:
    generator = np.random.default_rng(3)
    sizes = generator.integers(50, 500, size=200)
    rates = generator.normal(2.0, 0.3, size=200)
    low, high = mean_interval(rates * sizes, sizes) or (0, 0)
    # Resampling documents, an independent construction.
    drawn = generator.multinomial(200, np.full(200, 1 / 200), size=4000)
    resampled = np.quantile(drawn @ (rates * sizes) / (drawn @ sizes), (0.025, 0.975))
    assert (low, high) == pytest.approx(tuple(resampled), abs=0.1 * (high - low))
    assert mean_interval([1.0], [2]) is None
    # Of 1.02 documents there is nothing to be said.
    assert mean_interval([99.0, 1.0], [99, 1]) is None
    for impossible in (math.inf, -math.inf, math.nan, 1e200):
        for seeds in ([], [[1.0, 2.0, 3.0]], [[math.inf, 1.0, 2.0]]):
            assert all(map(math.isnan, mean_interval([[impossible, 1.0, 2.0], *seeds], [1, 1, 1]) or (0.0,)))


def test_an_interval_is_students() -> None:
    """Documents of one size and one seed are a sample like any other; so are seeds whose documents are all alike."""
    values = np.array([3.0, 5.0, 4.0, 9.0])
    spread = 3.182446 * values.std(ddof=1) / 2.0
    assert mean_interval(10 * values, [10] * 4) == pytest.approx((5.25 - spread, 5.25 + spread))
    levels = np.array([1.0, 2.0, 4.0])
    spread = 4.302653 * levels.std(ddof=1) / math.sqrt(3)
    apart = np.repeat(100 * levels[:, None], 400, 1)
    assert mean_interval(apart, [100] * 400) == pytest.approx((7 / 3 - spread, 7 / 3 + spread))
    assert mean_interval(np.full((3, 400), 200.0), [100] * 400) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("both", [0.0, 3.0], ids=["apart", "together"])
@pytest.mark.parametrize("documents", [0.01, 0.3, 3.0], ids=["alike", "like seeds", "differing"])
@pytest.mark.parametrize("seeds", [1, 2, 3, 8])
def test_an_interval_holds_the_truth_in_nineteen_of_twenty_cases(seeds: int, documents: float, both: float) -> None:
    """Of sizes as texts have them, where the largest of 25 is a fifth of all.

    ``both`` is what a document costs one seed alone, which counts twice.
    """
    generator = np.random.default_rng(seeds)
    of_seeds = 1.0 if seeds > 1 else 0.0
    texts, cases, held = 20, 100, 0
    for _ in range(texts):
        sizes = np.exp(generator.normal(0.0, 1.0, size=25)) * 1000
        for _ in range(cases):
            rates = documents * generator.normal(size=25) + of_seeds * generator.normal(size=(seeds, 1))
            rates = rates + both * generator.normal(size=(seeds, 25))
            low, high = mean_interval(rates * sizes, sizes) or (0.0, 0.0)
            held += low <= 0.0 <= high
    # By three deviations of a share of 2,000; two sources of doubt alike are held for a little more than they are.
    assert 0.935 <= held / (texts * cases) <= (1.0 if seeds > 1 else 0.965)


def test_one_document_that_is_most_of_the_text_is_not_many() -> None:
    assert effective_number([100] * 30) == pytest.approx(30)
    assert effective_number([7000, *[100] * 30]) == pytest.approx(1e4**2 / (7000**2 + 30 * 100**2))
    rates = np.array([2.5, *[2.0, 2.2] * 15])
    sizes = np.array([7000, *[100] * 30])
    low, high = mean_interval(rates * sizes, sizes) or (0, 0)
    # Without it the mean is 2.1: what one document does cannot be told from it alone.
    assert low < 2.1 < 2.38 < high


def test_wilson_is_the_formula() -> None:
    # Brown, Cai and DasGupta (2001) invert the score test; so does this, by bisection.
    def rejected(p: float, share: float, n: int) -> bool:
        return abs(share - p) > 1.959964 * math.sqrt(p * (1 - p) / n)

    for successes, trials in ((0, 8), (3, 10), (64, 64), (500, 1000)):
        low, high = wilson_interval(successes, trials)
        share = successes / trials
        for edge, inward in ((low, 1e-6), (high, -1e-6)):
            assert not rejected(min(max(edge + inward, 1e-12), 1 - 1e-12), share, trials)
            if 0 < edge < 1:
                assert rejected(edge - inward, share, trials)

"""ALiBi against RoPE: that what is timed is what it is called, the arithmetic of the table, and what is refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alibi_attention import alibi_attention, build_alibi_bias
from alibi_attention.backends import native
from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.inputs import Inputs, make_inputs
from alibi_attention.bench.timing import Samples, Settings
from alibi_attention.bench.versus.contestants import (
    TIMED,
    Contestant,
    contestants,
    make_call,
    make_trial,
    prices,
    timed_as,
)
from alibi_attention.bench.versus.memory import caches, peak_of
from alibi_attention.bench.versus.notes import notes
from alibi_attention.bench.versus.page import fill_page, page_text, table_text
from alibi_attention.bench.versus.results import (
    Comparison,
    Memory,
    Phase,
    Quality,
    Speed,
    Timed,
    Trained,
    Usable,
    read_comparison,
)
from alibi_attention.bench.versus.run import Plan, check, compare, open_bare
from alibi_attention.bench.versus.shares import shares
from alibi_attention.lab.positions import PositionMethod, position_methods
from alibi_attention.lab.positions.rope import plain_rates, rotate, rotation

HEADS, HEAD_DIM, LENGTH = 2, 8, 20
BARE = Path(__file__).parents[2] / "build/bare/_alibi_cpu_without_bias.so"


def contestant(name: str) -> Contestant:
    both = [*contestants(TIMED, bare=True), *contestants(TIMED, bare=False)]
    return next(each for each in both if each.name == name)


def call_of(name: str, phase: Phase) -> tuple[Callable[[], Any], Inputs]:
    trial = make_trial(phase, LENGTH, HEADS, HEAD_DIM)
    inputs = make_inputs(trial, sys.maxsize)
    return make_call(contestant(name), trial, inputs, None), inputs


def turned(x: Tensor, start: int = 0) -> Tensor:
    return rotate(x, *rotation(plain_rates(HEAD_DIM), x.shape[-2], start=start))


def neighbours_apart(x: Tensor) -> Tensor:
    """Dimensions 0, 2, 4, ... then 1, 3, 5, ...: pairs of neighbours become pairs half a head apart."""
    return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)


def expected(name: str, phase: Phase, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The output a contestant is called by, from the definition."""
    rows = query.shape[-2]
    mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)[-rows:]
    if name.startswith("alibi"):
        mask = build_alibi_bias(HEADS, LENGTH)[:, -rows:]
    if name.startswith("rope"):
        start = LENGTH - rows
        if name != "rope":
            query, key = neighbours_apart(query), neighbours_apart(key)
        # The keys of a cache were turned when they came.
        query, key = turned(query, start), key if phase == "decode" else turned(key)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


EXACT = ["zero-slopes", "sdpa", "alibi-dense", "alibi", "alibi-sdpa", "rope", "rope-complex", "rope-ours"]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_outputs_are_what_the_names_say(name: str, phase: Phase) -> None:
    call, inputs = call_of(name, phase)
    group = inputs.groups[0]
    assert group.query.shape == (1, HEADS, 1 if phase == "decode" else LENGTH, HEAD_DIM)
    with torch.no_grad():
        torch.testing.assert_close(
            call(), expected(name, phase, group.query, group.key, group.value), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", EXACT)
def test_gradients_are_what_the_names_say(name: str) -> None:
    call, inputs = call_of(name, "training")
    group = inputs.groups[0]
    tensors = (group.query, group.key, group.value)
    wanted = torch.autograd.grad(expected(name, "training", *tensors), tensors, group.grad)
    for found, want in zip(call(), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_t5_trains_its_table_too() -> None:
    assert [tuple(gradient.shape) for gradient in call_of("t5", "training")[0]()][3:] == [(32, HEADS)]
    assert call_of("t5", "decode")[0]().shape == (1, HEADS, 1, HEAD_DIM)


def test_every_price_is_between_contestants_there_are() -> None:
    for bare in (False, True):
        there = {each.name for each in contestants(TIMED, bare=bare)}
        for price in prices(TIMED, bare=bare):
            assert {*price.with_, price.without} <= there
    assert [each.without for each in prices(["alibi"], bare=False)] == ["zero-slopes", "sdpa"]
    assert [(each.with_, each.without) for each in prices(["rope"], bare=False)][1] == (("rope-ours",), "zero-slopes")
    assert {each.method for each in contestants(["rope"], bare=False)} == {"", "rope"}


def test_whose_attention_a_method_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: timed_as(name) for name in position_methods()}
    assert found == {
        "alibi": "alibi", "alibi-interleaved": "alibi", "alibi-learned": "alibi", "learned": "", "nope": "",
        "rope": "rope", "sinusoidal": "", "t5": "t5",
    }  # fmt: skip
    monkeypatch.setattr(PositionMethod, "registry", dict(PositionMethod.registry))

    class Other(position_methods()["rope"]):  # type: ignore[misc]
        name = "other"
        title = "other"

        def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return query + key + value

    assert timed_as("other") is None
    found_by_table = comparison(methods=["alibi", "other"], titles={"alibi": "ALiBi", "other": "other"})
    found_by_table.timed_as["other"] = None
    found_by_table.position_parameters["other"] = 0
    assert row(found_by_table, "cost of positions, prefill at 2K")[1] == "—"
    assert row(found_by_table, "attention, prefill at 2K, every key")[1] == "—"


# Kernels of another build


def test_other_kernels_are_used_until_they_are_not() -> None:
    query = torch.randn(1, 1, 8, 8)
    plain = alibi_attention(query, query, query, backend="cpu")
    native.use(native.Native(*(lambda _: 2,) * 4, "none"))
    try:
        with pytest.raises(MemoryError):
            alibi_attention(query, query, query, backend="cpu")
    finally:
        native.use(None)
    assert torch.equal(alibi_attention(query, query, query, backend="cpu"), plain)


def test_kernels_with_a_bias_are_not_taken_for_bare_ones(tmp_path: Path) -> None:
    own = Path(native.__file__).with_name("_alibi_cpu.so")
    if own.is_file():
        with pytest.raises(BenchError) as error:
            open_bare(own)
        assert str(error.value) == (
            f"bare: expected the kernels without the bias, got {own}, whose kernels have one; build it with: make bare"
        )
    with pytest.raises(BenchError, match=r"^bare: expected the kernels without the bias, got .* \(no such file\); "):
        open_bare(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("text", encoding="utf-8")
    with pytest.raises(BenchError, match=r"^bare: expected the kernels without the bias, got .*does not load"):
        open_bare(tmp_path / "text.so")


def test_rope_runs_on_bare_kernels_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [each.name for each in contestants(["rope"], bare=True)]
    assert names == ["bare", "zero-slopes", "sdpa", "rope", "rope-complex", "rope-bare"]
    assert [(each.with_, each.without) for each in prices(["rope"], bare=True)][1] == (("rope-bare",), "bare")
    used: list[Any] = []
    monkeypatch.setattr(native, "use", used.append)
    library = native.Native(*(lambda _: 2,) * 4, "none")
    trial = make_trial("prefill", LENGTH, HEADS, HEAD_DIM)
    inputs = make_inputs(trial, sys.maxsize)
    with torch.no_grad():
        outputs = [make_call(contestant(name), trial, inputs, library)() for name in ("rope-bare", "rope-ours")]
    assert used == [library, None]
    assert torch.equal(*outputs)


@pytest.mark.skipif(not BARE.is_file(), reason="make bare builds it")
@pytest.mark.parametrize("phase", ["training", "prefill", "decode"])
def test_bare_kernels_have_no_bias_and_nothing_else_is_missing(phase: Phase) -> None:
    library = open_bare(BARE)
    trial = make_trial(phase, 300, HEADS, HEAD_DIM)
    inputs = make_inputs(trial, sys.maxsize)
    try:
        with torch.set_grad_enabled(phase == "training"):
            bare, zero = (make_call(contestant(n), trial, inputs, library)() for n in ("bare", "zero-slopes"))
            steep = make_call(contestant("alibi-dense"), trial, inputs, library)()
    finally:
        native.use(None)
    pairs = zip(bare, zero, strict=True) if phase == "training" else [(bare, zero)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    # ALiBi does not run them.
    first = steep[0] if phase == "training" else steep
    assert not torch.allclose(first, bare[0] if phase == "training" else bare, atol=1e-3)


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_peak_memory_counts_the_turned_copies() -> None:
    found = {name: peak_of(contestant(name), "prefill", 8192, 2, 64) for name in ("sdpa", "rope-complex")}
    assert not any(memory.note for memory in found.values()), found
    size = 8192 * 2 * 64 * 4
    assert found["sdpa"].outputs == found["rope-complex"].outputs == size
    # Turned queries and keys, at the least.
    assert (found["rope-complex"].peak or 0) - (found["sdpa"].peak or 0) > 1.8 * size


def test_caches_hold_what_they_say() -> None:
    plain, full, forgetting = caches(4096, 2, 8)
    assert (plain.name, plain.peak) == ("keys", 2 * 4096 * 2 * 8 * 4)
    assert (full.peak or 0) >= (plain.peak or 0)
    assert forgetting.peak
    assert {memory.method for memory in (full, forgetting)} == {"alibi"}


# The table


def timed(name: str, method: str, *seconds: float | None) -> Timed:
    return Timed(name, name, method, Samples(seconds=list(seconds)))


def comparison(**changes: Any) -> Comparison:
    speed = Speed("prefill", 2048, kept_share=0.5)
    speed.timed = [
        timed("bare", "", 0.9, 0.9, 0.9, 0.9, 0.9),
        timed("zero-slopes", "", 1.0, 1.0, 1.0, 1.0, 1.0),
        timed("sdpa", "", 1.5, 1.5, 1.5, 1.5, None),
        timed("alibi-dense", "alibi", 1.0, 1.0, 1.0, 1.8, 1.0),
        timed("alibi", "alibi", 0.5, 0.5, 0.5, 0.5, 0.5),
        timed("alibi-sdpa", "alibi", 2.0, 2.0, 2.0, 2.0, 2.0),
        timed("rope", "rope", 3.0, 3.0, 3.0, 3.0, 3.0),
        timed("rope-complex", "rope", 2.0, 2.0, 2.0, 2.0, 2.0),
        Timed("rope-ours", "rope-ours", "rope", None, "failed: MemoryError: none"),
    ]
    machine = {
        "processor": "P", "virtual": False, "threads": 2, "cores": 2, "memory": 1 << 33, "memory_available": 1 << 32,
        "system": "S", "alibi_attention": "0", "commit": None,
        "instruction_set": {"torch": "x", "alibi_attention": "y"}, "torch": "2", "python": "3", "switches": {},
        "date": "now", "load": 0.1,
    }  # fmt: skip
    settings = {"heads": 8, "head_dim": 64, "lengths": [2048], "bare": True, "repeats": 5, "least": 0.2}
    values: dict[str, Any] = {
        "machine": machine, "settings": settings, "methods": ["alibi", "rope", "nope"], "speed": [speed],
        "titles": {"alibi": "ALiBi", "rope": "RoPE", "nope": "NoPE"}, "status": "complete",
        "timed_as": {"alibi": "alibi", "rope": "rope", "nope": ""},
        "position_parameters": {"alibi": 0, "rope": 0, "nope": 0},
    }  # fmt: skip
    return Comparison(**{**values, **changes})


def row(found: Comparison, start: str) -> list[str]:
    lines = [line for line in table_text(found).splitlines() if line.startswith(f"| {start}")]
    assert len(lines) == 1, (start, table_text(found))
    return [cell.strip() for cell in lines[0].strip("|").split("|")][1:]


def test_shares_are_taken_round_by_round() -> None:
    found = comparison()
    by_title = {share.price.title: share for share in shares(found, found.speed[0])}
    kernel = by_title["this library's kernel"]
    # 1 - 0.9 / 1.0, and in one round 1 - 0.9 / 1.8.
    assert (kernel.low, kernel.middle, kernel.high) == pytest.approx((0.1, 0.1, 0.1))
    # Of two ways to turn, the faster; four rounds measured both.
    assert by_title["plain torch before SDPA"].with_.name == "rope-complex"
    assert by_title["plain torch before SDPA"].middle == pytest.approx(0.25)
    # What failed has no price.
    assert "plain torch before this library's kernel" not in by_title


def test_the_table_has_a_row_for_every_question() -> None:
    found = comparison()
    assert row(found, "position parameters") == ["0", "0", "0"]
    share = row(found, "cost of positions, prefill at 2K")
    assert share == ["10.0% (10.0% to 10.0%)", "25.0% (25.0% to 25.0%)", "nothing in attention"]
    # The fastest way that computes every key, of every method; NoPE's is SDPA.
    dense = [cell.partition(" (")[0] for cell in row(found, "attention, prefill at 2K, every key")]
    assert dense == ["1,000 ms", "2,000 ms", "1,500 ms"]
    assert row(found, "attention, prefill at 2K, within the horizon") == ["500 ms (±0.0%)", "—", "—"]


def test_without_bare_kernels_slopes_of_zero_are_no_price() -> None:
    found = comparison()
    found.settings["bare"] = False
    found.speed[0].timed = found.speed[0].timed[1:]
    # The row bias in SDPA: 1 - 1.5 / 2.
    assert row(found, "cost of positions, prefill at 2K")[0] == "25.0% (25.0% to 25.0%)"
    assert any("slopes of zero take no work away" in note for note in notes(found))
    assert not any("slopes of zero" in note for note in notes(comparison()))


def test_rows_of_memory() -> None:
    mib = 1 << 20
    found = comparison(
        memory=[
            Memory("prefill", 32768, "sdpa", "", "", 64 * mib),
            Memory("prefill", 32768, "alibi-dense", "", "alibi", 70 * mib),
            Memory("prefill", 32768, "alibi", "", "alibi", 80 * mib),
            Memory("prefill", 32768, "rope", "", "rope", None, note="killed"),
            Memory("cache", 32768, "keys", "", "", 128 * mib),
            Memory("cache", 32768, "alibi-dense", "", "alibi", 129 * mib),
            Memory("cache", 32768, "alibi", "", "alibi", 40 * mib),
        ]
    )
    assert row(found, "peak memory of prefill at 32K") == ["70 MiB", "—", "64 MiB"]
    assert row(found, "cache of one layer after 32K") == ["129 MiB; 40 MiB within the horizon", "128 MiB", "128 MiB"]
    assert "killed" in page_text(found)


def quality(**changes: Any) -> Trained:
    values: dict[str, Any] = {"protocol": "sliding", "reference": "ALiBi"}
    trained = Trained("next", 256, 4, 8, 128, 900, 1_843_200, "byte", "texts", [0, 1], **{**values, **changes})
    trained.quality = [
        Quality("alibi", "ALiBi", 256, 1.0, 2.1, 2.0, 2.2, documents=23),
        Quality("rope", "RoPE", 256, 1.0, 2.0, 1.9, 2.1, -0.1, -0.125, -0.075, documents=23),
        Quality("alibi", "ALiBi", 1024, 4.0, 2.05, 1.95, 2.15, documents=9),
        Quality("alibi:ntk", "ALiBi, NTK", 1024, 4.0, 2.06),
        Quality("rope", "RoPE", 1024, 4.0, 3.0, difference=0.95),
        Quality("rope:pi", "RoPE, position interpolation", 1024, 4.0, 2.5),
        Quality("rope:yarn", "RoPE, YaRN", 1024, 4.0, 2.25),
        Quality("nope", "NoPE", 1024, 4.0, None, note="no luck"),
    ]
    trained.usable = [
        Usable("alibi", "ALiBi", "1,024", "256 (253 away)"),
        Usable("alibi:ntk", "ALiBi, NTK", "1,024", "1,024 (1,021 away)"),
        Usable("rope", "RoPE", "256", "not recalled from 253: 28%"),
        Usable("rope:pi", "RoPE, position interpolation", "256"),
        Usable("rope:yarn", "RoPE, YaRN", "512", "256 (253 away)"),
        Usable("nope", "NoPE"),
    ]
    return trained


def test_rows_of_trained_models() -> None:
    found = comparison(trained=[quality()])
    start = "bits per byte, decoder, sliding window, at"
    # Those of others with what lies between them and ALiBi, whose interval is paired.
    assert row(found, f"{start} the trained 256") == [
        "2.100 (2.000 to 2.200)", "2.000, −0.100 (−0.125 to −0.075)", "—",
    ]  # fmt: skip
    assert row(found, f"{start} 1K, 4 times that") == ["2.050 (1.950 to 2.150)", "3.000, +0.950", "no luck"]
    # None is chosen by the text that is scored.
    assert row(found, f"{start} 1K, scaled without training") == [
        "2.060 with NTK", "2.500 with position interpolation; 2.250 with YaRN", "—",
    ]  # fmt: skip
    usable = "usable length by perplexity, decoder, sliding window"
    assert row(found, f"{usable} |") == ["1,024", "256", "—"]
    assert row(found, f"{usable}, scaled")[1] == "256 with position interpolation; 512 with YaRN"
    assert row(found, "usable length by recall, decoder |") == ["256 (253 away)", "not recalled from 253: 28%", "—"]
    assert row(found, "usable length by recall, decoder, scaled") == [
        "1,024 (1,021 away) with NTK", "256 (253 away) with YaRN", "—",
    ]  # fmt: skip
    about = next(note for note in notes(found) if note.startswith("Decoders: "))
    assert about == (
        "Decoders: 4 layers of width 128, 8 heads, 1.8 million bytes of texts at length 256, 2 seeds. Bits are by a "
        "sliding window, of 9 documents at the least. Intervals are 95%, over documents and seeds. After a comma, that "
        "less the bits of ALiBi at the same length, paired by document and seed: below 0 is better than it."
    )
    assert not any("was not measured" in note for note in notes(found))


def test_what_was_not_measured_of_trained_models_is_said() -> None:
    trained = quality(protocol="windows")
    trained.usable = [Usable(each.name, each.title, each.by_loss) for each in trained.usable]
    found = comparison(trained=[trained])
    assert row(found, "bits per byte, decoder, windows, at the trained 256")[0] == "2.100 (2.000 to 2.200)"
    assert not any("usable length by recall" in line for line in table_text(found).splitlines())
    assert "Whether the decoders recall anything from far away was not measured." in notes(found)
    assert any("windows that do not overlap, where part of what is gained" in note for note in notes(found))


def test_one_of_a_kind_is_told_as_one() -> None:
    trained = Trained("masked", 16, 1, 1, 16, 3, 96, "byte", "texts", [0])
    (about,) = (note for note in notes(comparison(trained=[trained])) if note.startswith("Encoders"))
    assert about.startswith(
        "Encoders, trained by masked prediction: 1 layer of width 16, 1 head, 96 bytes of texts at length 16, 1 seed. "
    )


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = comparison(trained=[quality()], memory=[Memory("prefill", 8, "sdpa", "", "", 3)])
    found.write(tmp_path / "versus.json")
    assert read_comparison(tmp_path / "versus.json") == found
    for text, got in (("{", "no JSON"), ("{}", "of version None"), ('{"schema_version": 2}', "'speed'")):
        (tmp_path / "other.json").write_text(text, encoding="utf-8")
        with pytest.raises(BenchError, match=rf"^table: expected .*{got}"):
            read_comparison(tmp_path / "other.json")
    with pytest.raises(BenchError, match=r"^table: expected a comparison, got .* \(No such file or directory\)"):
        read_comparison(tmp_path / "none.json")


def test_a_page_is_filled_where_it_says(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- versus -->\nold\n<!-- end of versus -->\nB\n", encoding="utf-8")
    fill_page(comparison(), page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# A\n<!-- versus -->\n\n|  | ALiBi | RoPE | NoPE |\n")
    assert text.endswith("\n<!-- end of versus -->\nB\n")
    assert "old" not in text
    fill_page(comparison(), page)
    assert page.read_text(encoding="utf-8") == text
    page.write_text("# A\n<!-- versus -->\n", encoding="utf-8")
    with pytest.raises(BenchError, match=r"^page: expected a page that marks the place of the table, got "):
        fill_page(comparison(), page)
    with pytest.raises(BenchError, match=r"^page: expected a page in Markdown, got .* \(No such file or directory\)"):
        fill_page(comparison(), tmp_path / "none.md")


# A whole comparison


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "methods": ["alibi", "rope", "learned"], "phases": ["training", "decode"], "lengths": [16, 48],
        "memory_length": None, "heads": 2, "head_dim": 8, "threads": 1,
        "settings": Settings(repeats=3, least=0.001, budget=1.0),
    }  # fmt: skip
    return Plan(**{**values, **changes})


def test_a_comparison_is_measured_in_turn_and_kept(tmp_path: Path) -> None:
    threads, said = torch.get_num_threads(), []
    found = compare(plan(), tmp_path / "versus.json", say=said.append, goes_on=lambda: None)
    assert torch.get_num_threads() == threads
    assert said == ["training at 16", "training at 48", "decode at 16", "decode at 48"]
    assert read_comparison(tmp_path / "versus.json").speed == found.speed
    assert found.status == "complete"
    for speed in found.speed:
        assert [each.name for each in speed.timed] == ["zero-slopes", "sdpa", *EXACT[2:]]
        assert all(each.samples and len(each.samples.seconds) == 3 for each in speed.timed)
        assert len(shares(found, speed)) == 4
    # 48 positions of width 16; the others have none.
    assert found.position_parameters == {"alibi": 0, "rope": 0, "learned": 48 * 16}
    with pytest.raises(BenchError, match=r"^output: expected a new folder, got .*, which exists; choose another"):
        compare(plan(), tmp_path / "versus.json", say=said.append, goes_on=lambda: None)


def test_what_was_measured_before_a_stop_is_kept(tmp_path: Path) -> None:
    calls = 0

    def goes_on() -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(plan(), tmp_path / "versus.json", say=lambda _: None, goes_on=goes_on)
    found = read_comparison(tmp_path / "versus.json")
    assert found.status == "incomplete"
    assert found.speed[0].timed[0].seconds is not None
    assert "Stopped before everything was measured." in page_text(found)


def test_a_contestant_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("alibi_attention.bench.versus.contestants.rotate", fail)
    found = compare(plan(phases=["prefill"], lengths=[16]), tmp_path / "versus.json", say=lambda _: None,
                    goes_on=lambda: None)  # fmt: skip
    rope, other = found.speed[0].find("rope"), found.speed[0].find("rope-complex")
    assert rope is not None
    assert rope.refused == "failed: RuntimeError: no kernel"
    assert other is not None
    assert other.seconds is not None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"methods": ["nope"]}, "methods: expected a method that does something in attention, got nope; "
         "name one of alibi, rope, t5"),
        ({"lengths": [64, 32]}, "lengths: expected ascending lengths of at least 1, got 64,32; such as 512,2K,8K"),
        ({"lengths": []}, "lengths: expected ascending lengths of at least 1, got ; such as 512,2K,8K"),
        ({"memory_length": -5}, "memory-length: expected a length of at least 1, or 0, got -5; "
         "such as 32K; 0 measures none"),
        ({"heads": 0}, "heads: expected at least 1, got 0; 8 is the default"),
        ({"head_dim": 7}, "head-dim: expected an even width, whose pairs are turned, got 7; such as 64"),
        ({"memory_length": 1 << 30}, "lengths: expected at most half of the memory that is free, 8.0 GiB, "
         "got 256.0 GiB of inputs; give shorter ones"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BenchError) as error:
        check(plan(**changes))
    assert str(error.value) == complaint

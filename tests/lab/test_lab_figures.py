"""Results as figures."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from lab_cases import RESULTS, evaluation, result

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.figures import draw_figure, save_figures

MakeConfig = Callable[..., ExperimentConfig]


def test_figure_has_a_labelled_line_for_each_method(tiny: MakeConfig) -> None:
    axes = draw_figure(RESULTS, tiny(length=256)).axes[0]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    for outcome in RESULTS:
        assert list(lines[outcome.title].get_xdata()) == [256, 512, 1024]
        assert list(lines[outcome.title].get_ydata()) == [score.bits_per_byte for score in outcome.scores]
    colours = {title: lines[title].get_color() for title in ("ALiBi", "RoPE")}
    assert len(set(colours.values())) == 2
    texts = {text.get_text(): text for text in axes.texts}
    finding = "Change in bits per byte from 256 to 1,024: ALiBi −0.039, RoPE +2.520"
    assert set(texts) == {"ALiBi", "RoPE", "training length", finding}
    assert axes.get_title(loc="left") == "Trained at 256 bytes, evaluated at longer lengths"
    assert all(texts[title].get_color() == colour for title, colour in colours.items())


def test_a_change_of_nothing_has_no_sign(tiny: MakeConfig) -> None:
    level = [result("a", "A", 2.0, 2.0004), result("b", "B", 2.0, 1.9996)]
    axes = draw_figure(level, tiny(length=256)).axes[0]
    assert "Change in bits per byte from 256 to 512: A 0.000, B 0.000" in {text.get_text() for text in axes.texts}
    assert draw_figure(level, tiny(length=2048)).axes[0].get_title(loc="left").startswith("Trained at 2,048 bytes")


def test_labels_of_lines_that_end_together_stand_apart(tiny: MakeConfig) -> None:
    close = [result("a", "A", 2.0, 3.0), result("b", "B", 1.0, 3.001), result("c", "C", 4.0, 3.002)]
    axes = draw_figure(close, tiny(length=256)).axes[0]
    heights = sorted(text.xy[1] for text in axes.texts if text.get_text() in "ABC")
    low, high = axes.get_ylim()
    assert all(b - a > 0.04 * (high - low) for a, b in pairwise(heights))


def test_the_finding_fits_above_the_axes(tiny: MakeConfig) -> None:
    names = ("ALiBi", "RoPE", "sinusoidal", "T5 bias")
    for unit in ("next", "masked"):
        results = [result(name, name, 2.0 + 0.1 * i, 2.0 + 0.2 * i) for i, name in enumerate(names)]
        many = [
            r.model_copy(update={"evaluations": tuple(e.model_copy(update={"objective": unit}) for e in r.evaluations)})
            for r in results
        ]
        figure = draw_figure(many, tiny(length=256))
        figure.draw_without_rendering()
        (text,) = [text for text in figure.axes[0].texts if text.get_text().startswith("Change in ")]
        assert text.get_window_extent().x1 <= figure.bbox.width


def test_many_lines_are_named_in_a_legend(tiny: MakeConfig) -> None:
    variants = [evaluation(f"rope:{i}", f"RoPE {i}", 2.0, 2.0 + i) for i in range(7)]
    many = [RESULTS[0].model_copy(update={"evaluations": tuple(variants)}), result("learned", "learned", 2.5, None)]
    figure = draw_figure(many, tiny(length=256))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*(f"RoPE {i}" for i in range(7)), "learned"]
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.height
    lines = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("RoPE")]
    # One colour for a method, dashes for its variants.
    assert len({line.get_color() for line in lines}) == 1
    assert [line.get_linestyle() for line in lines[:4]] == ["-", "--", ":", "-."]


def test_figures_are_the_same_every_time(tiny: MakeConfig, tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_figures(RESULTS, tiny(length=256), [tmp_path / f"{name}.svg"])
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()

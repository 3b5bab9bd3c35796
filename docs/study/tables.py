"""The tables of docs/study/README.md, from the studies' numbers: ``python docs/study/tables.py`` fills them.

Each stands between two marks, ``<!-- table: NAME -->`` and ``<!-- end of table -->``. Needs nothing beyond Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

STUDY = Path(__file__).parent
NONE = "\N{EN DASH}"
# As the page calls them, where that is not as a report does.
TWICE = ("alibi", "alibi-learned", "rope", "t5", "sinusoidal", "learned", "nope")
WHO = {"alibi": "ALiBi", "alibi-learned": "learned slopes", "rope": "RoPE", "t5": "T5 bias", "nope": "NoPE"}


@cache
def numbers(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((STUDY / folder / "summary.json").read_text(encoding="utf-8"))
    return found


def evaluation(folder: str, name: str) -> dict[str, Any]:
    return next(each for each in numbers(folder)["evaluations"] if each["name"] == name)


def point(folder: str, name: str, protocol: str, length: int) -> dict[str, Any]:
    points: list[dict[str, Any]] = evaluation(folder, name)["losses"][protocol]
    return next(each for each in points if each["length"] == length)


def asked(folder: str, name: str, length: int) -> list[dict[str, Any]]:
    """In windows of a length, from near to far; none where positions end before."""
    points = [each for each in evaluation(folder, name)["recall"] if each["length"] == length]
    return [each for each in points if each["by_seed"][0]["share"] is not None]


def shares(values: Sequence[float]) -> str:
    found = [f"{100 * value:.0f}" for value in values]
    return f"{', '.join(found if len(set(found)) > 1 else found[:1])}%"


def recalled(folder: str, name: str, length: int) -> str:
    """By seed, from the worst distance, and in brackets from the beginning of the window."""
    points = asked(folder, name, length)
    if not points:
        return NONE
    by_distance = [[seed["share"] for seed in each["by_seed"]] for each in points]
    least, far = shares([min(seed) for seed in zip(*by_distance, strict=True)]), shares(by_distance[-1])
    return least if least == far else f"{least} ({far})"


def main_table(folder: str, lengths: Sequence[int], windows: Sequence[int]) -> list[list[str]]:
    rows = [["", *(f"bits at {n:,}" for n in lengths), *(f"recalled in {n:,}" for n in windows)]]
    for each in numbers(folder)["evaluations"]:
        bits = [point(folder, each["name"], "sliding", length)["mean"] for length in lengths]
        found = [recalled(folder, each["name"], length) for length in windows]
        rows.append([each["title"], *(NONE if value is None else f"{value:.2f}" for value in bits), *found])
    return rows


def difference(value: dict[str, Any] | None) -> str:
    if value is None:
        return NONE
    low, high = value["interval"]
    return f"{value['mean']:+.3f} ({low:.3f} to {high:.3f})".replace("-", "\N{MINUS SIGN}")


def shorter_table() -> list[list[str]]:
    compared = numbers("512")["shorter"]["methods"]
    by_method = {name: {row["method"]: row for row in rows} for name, rows in compared.items()}
    head = ["trained at 512", "at 256", "ALiBi at 256, less this at 512"]
    rows = [["bits per byte in windows of 512 bytes", *(f"{word}: {head[0]}" if not i else head[i]
             for word in ("overlapping", "not overlapping") for i in range(3))]]  # fmt: skip
    for method in ("alibi", "alibi-learned", "sinusoidal", "rope", "t5", "learned"):
        row = [evaluation("512", method)["title"]]
        for protocol in ("sliding", "windows"):
            found = by_method[protocol][method]
            row += [NONE if found[of] is None else f"{found[of]:.3f}" for of in ("longer", "shorter")]
            row.append(difference(found["claim"]))
        rows.append(row)
    return rows


def text_table() -> list[list[str]]:
    lengths = (256, 512, 4096)
    rows = [["bits per byte, each seed", *(f"{length:,}" for length in lengths)]]
    for protocol, word in (("sliding", "sliding window"), ("windows", "windows that do not overlap")):
        for name in ("alibi", "rope"):
            bits = [point("256/text", name, protocol, length)["by_seed"] for length in lengths]
            rows.append([f"{WHO[name]}, {word}", *(", ".join(f"{value:.3f}" for value in some) for some in bits)])
    return rows


def twice_table() -> list[list[str]]:
    """Two seeds on either processor, the other one first."""
    rows = [["", "at 256", "at 4,096", "recalled, 509 away", "1,021", "4,093", "the last, scaled (NTK; YaRN)"]]
    for name in TWICE:
        scaled = {"alibi": "alibi:ntk", "alibi-learned": "alibi-learned:ntk", "rope": "rope:yarn"}.get(name)
        for seed in (0, 1):
            row = [f"{WHO.get(name, name)}, seed {seed}"]
            for length in (256, 4096):
                both = [point(folder, name, "sliding", length)["by_seed"] for folder in ("256/again", "256")]
                row.append(", ".join(f"{bits[seed]:.3f}" for bits in both) if all(both) else "")
            # What is not learned, or not read beyond its length, has nothing to say of distance.
            far = [(name, 512), (name, 1024), (name, 4096)] if name not in ("sinusoidal", "learned", "nope") else []
            cells = [twice(*each, seed) for each in (*far, *([(scaled, 4096)] if scaled else []))]
            rows.append([*row, *cells, *([""] * (4 - len(cells)))])
    return rows


def twice(name: str, length: int, seed: int) -> str:
    found = [asked(folder, name, length)[-1]["by_seed"][seed] for folder in ("256/again", "256")]
    return f"{found[0]['recalled']}, {found[1]['recalled']} of {found[0]['asked']}"


def rates_table() -> list[list[str]]:
    """Seed 0 at other learning rates; the study's own between them."""
    rows = [["seed 0, learning rate", "bits at 512", "at 1,024", "at 8,192", "recalled in 512", "recalled in 1,024"]]
    for method in ("alibi", "rope"):
        for rate in ("0.001", "0.002", "0.004"):
            name = "run-seed-0.json" if rate == "0.002" else f"rates/run-{method}-{rate}.json"
            run = json.loads((STUDY / "512" / name).read_text(encoding="utf-8"))
            (result,) = (each for each in run["results"] if each["method"] == method)
            scores = result["evaluations"][0]
            bits = {score["length"]: score["bits_per_byte"] for score in scores["sliding"]}
            found = [_least_and_farthest(scores["recall"], length) for length in (512, 1024)]
            rows.append([f"{WHO[method]}, {rate}", *(f"{bits[n]:.3f}" for n in (512, 1024, 8192)), *found])
    return rows


def _least_and_farthest(recall: Sequence[dict[str, Any]], length: int) -> str:
    counts = [each["recalled"] / each["asked"] for each in recall if each["length"] == length]
    least, far = shares([min(counts)]), shares(counts[-1:])
    return least if least == far else f"{least} ({far})"


def far_table() -> list[list[str]]:
    lengths = (256, 4096, 65536)
    rows = [["bits per byte at", *(f"{length:,}" for length in lengths)]]
    for each in numbers("256/far")["evaluations"]:
        bits = [point("256/far", each["name"], "windows", length)["mean"] for length in lengths]
        if all(bits):
            rows.append([each["title"], *(f"{value:.3f}" for value in bits)])
    return rows


def tables() -> dict[str, str]:
    found = {
        "256": main_table("256", (256, 1024, 4096), (256, 512, 1024, 4096)),
        "512": main_table("512", (512, 2048, 8192), (512, 1024, 2048, 8192)),
        "shorter": shorter_table(),
        "text": text_table(),
        "twice": twice_table(),
        "rates": rates_table(),
        "far": far_table(),
    }
    return {name: _markdown(rows) for name, rows in found.items()}


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in (head, rule, *body))


def filled(page: str) -> str:
    """The page with every table made anew."""
    for name, table in tables().items():
        mark = f"<!-- table: {name} -->\n"
        if page.count(mark) != 1:
            raise SystemExit(f"error: page: expected {mark.strip()} once, got it {page.count(mark)} times.")
        pattern = re.escape(mark) + r".*?(?=<!-- end of table -->)"
        page = re.sub(pattern, lambda _, text=mark + table + "\n": text, page, count=1, flags=re.DOTALL)
    return page


def main() -> None:
    readme = STUDY / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

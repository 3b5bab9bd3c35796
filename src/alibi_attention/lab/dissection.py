"""Looking inside a model of a run folder, kept as data and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.files import read_json, write_json
from alibi_attention.lab.inside import Inside, inside_work, look_inside
from alibi_attention.lab.inside_figures import save_inside_figures
from alibi_attention.lab.positions import full_title, split_name
from alibi_attention.lab.positions.alibi import Alibi
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.schema import SCHEMA_VERSION
from alibi_attention.lab.trained import load_trained, read_run

_FILE = "inside.json"

LENGTHS = (1024, 2048, 4096, 8192)
"""Where the horizon is certified by default."""

MASS_LENGTH = 1024
"""Where attention mass is added up by default."""


def dissect_run(
    root: Path, name: str, lengths: Sequence[int] | None = None, folder: Path | None = None, *,
    mass_length: int | None = None, tolerance: float | None = None, progress: Progress | None = None,
) -> tuple[Inside, Path]:  # fmt: skip
    """Look inside one method of a run, on the beginning of its held-out text, and write what is found.

    Args:
        root: of the run.
        name: ``"alibi"`` or ``"alibi:ntk"``.
        lengths, mass_length, tolerance: as in `look_inside`. The first and the last are of the horizon, which ALiBi's
            methods have alone: `LENGTHS` by default, and refused for others. The second is `MASS_LENGTH` by default,
            or where the method's positions end, if that is sooner.
        folder: gets ``inside.json`` and the figures; by default the run's own, where `alibi report` finds them.
        progress: told of the corpus, and of each layer; silent by default.

    Returns:
        What is found, and the folder.

    Raises:
        LabError: for a run, a method or lengths that cannot be used.
    """
    asked = LENGTHS if lengths is None else lengths
    if not asked or list(asked) != sorted(set(asked)) or asked[0] < 1:
        got, remedy = ",".join(map(str, asked)) or "none", "such as 1024,2048,4096"
        raise LabError("lengths", expected="ascending lengths of at least 1", got=got, remedy=remedy)
    if mass_length is not None and mass_length < 1:
        raise LabError("mass_length", expected="at least 1", got=f"{mass_length}", remedy=f"such as {MASS_LENGTH}")
    method, variant = split_name(name)
    folder = folder or RunFolder(root).inside(method, variant)
    if read_run(RunFolder(root)).objective != "next":
        expected = "a decoder, whose attention is looked at by how far back it goes"
        got = f"{root}, an encoder trained by masked prediction"
        raise LabError("run", expected=expected, got=got, remedy="name a run with --objective next")
    decoder, _ = load_trained(root, method)
    if not isinstance(decoder.position, Alibi):
        for argument, given in (("lengths", lengths), ("tolerance", tolerance)):
            if given is not None:
                expected = f"nothing for {full_title(name)}, which has no horizon to certify"
                shown = f"{given}" if argument == "tolerance" else ",".join(map(str, asked))
                raise LabError(argument, expected=expected, got=shown, remedy="leave it out")
        asked = ()
    if mass_length is None:
        mass_length = min(MASS_LENGTH, decoder.position.longest or MASS_LENGTH)
    progress = progress or Progress()
    corpus = load_corpus(RunFolder(root).read_config(older=True), progress)
    RunFolder(root).refuse_changed_corpus(corpus)
    tokens = torch.from_numpy(corpus.held_out[: max((*asked, mass_length))].astype(np.int64))
    with progress:
        progress.start(f"{full_title(name)}: looking inside", total=inside_work(decoder, asked), unit="")
        inside = look_inside(
            decoder, method, tokens, asked, mass_length=mass_length, variant=variant, tolerance=tolerance,
            tick=progress.advance,
        )  # fmt: skip
    write_json(folder / _FILE, {"schema_version": SCHEMA_VERSION, **inside.model_dump(mode="json")})
    save_inside_figures(inside, folder)
    return inside, folder


def read_inside(folder: Path) -> Inside | None:
    """What `dissect_run` wrote there; None where it did not.

    Raises:
        LabError: for a file that is damaged, or of another version.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        value = read_json(path)
        if value.pop("schema_version") == SCHEMA_VERSION:
            return Inside.model_validate(value)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        pass
    remedy = "run alibi dissect again, or delete this file"
    raise LabError("inside", expected="a file as this version writes it", got=str(path), remedy=remedy)

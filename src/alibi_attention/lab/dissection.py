"""Looking inside a model of a run folder, kept as data and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.files import write_json
from alibi_attention.lab.inside import Inside, look_inside
from alibi_attention.lab.inside_figures import save_inside_figures
from alibi_attention.lab.positions import split_name
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.schema import SCHEMA_VERSION
from alibi_attention.lab.trained import load_trained, read_run


def dissect_run(
    root: Path, name: str, lengths: Sequence[int], folder: Path, *, mass_length: int, tolerance: float | None = None
) -> Inside:
    """Look inside one method of a run, on the beginning of its held-out text, and write what is found.

    Args:
        root: of the run.
        name: ``"alibi"`` or ``"alibi:ntk"``.
        lengths, mass_length, tolerance: as in `look_inside`.
        folder: gets ``inside.json`` and the figures.

    Raises:
        LabError: for a run, a method or lengths that cannot be used.
    """
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1 or mass_length < 1:
        got = ",".join(map(str, lengths)) + f" and a mass length of {mass_length}"
        remedy = "such as 1024,2048,4096"
        raise LabError("lengths", expected="ascending lengths of at least 1", got=got, remedy=remedy)
    method, variant = split_name(name)
    if read_run(RunFolder(root)).objective != "next":
        expected = "a decoder, whose attention is looked at by how far back it goes"
        got = f"{root}, an encoder trained by masked prediction"
        raise LabError("run", expected=expected, got=got, remedy="name a run with --objective next")
    decoder, _ = load_trained(root, method)
    corpus = load_corpus(RunFolder(root).read_config(older=True))
    RunFolder(root).refuse_changed_corpus(corpus)
    tokens = torch.from_numpy(corpus.held_out[: max(*lengths, mass_length)].astype(np.int64))
    inside = look_inside(
        decoder, method, tokens, lengths, mass_length=mass_length, variant=variant, tolerance=tolerance
    )
    write_json(folder / "inside.json", {"schema_version": SCHEMA_VERSION, **inside.model_dump(mode="json")})
    save_inside_figures(inside, folder)
    return inside

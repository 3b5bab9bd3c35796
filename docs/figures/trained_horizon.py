"""What a trained model's heads need: the certified horizon on real queries and keys.

    python docs/figures/trained_horizon.py RUN_FOLDER [LENGTH]

RUN_FOLDER is one that `alibi extrapolate` wrote, with ALiBi among its methods. Held-out text of LENGTH bytes (8192 by
default) goes through the model; for each layer and head the script prints the mean number of keys a block of 128
queries needs, the share of tiles computed, and the largest share of softmax mass that the rest can hold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from alibi_attention import Certificate, certify
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.trained import load_trained, read_run


def certificates(root: Path, length: int) -> list[Certificate]:
    """One for each layer."""
    decoder, _ = load_trained(root, "alibi")
    tokens = torch.from_numpy(load_corpus(read_run(RunFolder(root))).held_out[:length].astype("int64"))[None]
    found: list[Certificate] = []
    attend = decoder.position.attend

    def certify_and_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found.append(certify(query, key, decoder.position.slopes))
        return attend(query, key, value)

    decoder.position.attend = certify_and_attend
    with torch.no_grad():
        decoder.hidden(tokens)
    return found


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    found = certificates(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 8192)
    for layer, certificate in enumerate(found):
        windows = "  ".join(f"{w:5.0f}" for w in certificate.window.double().mean((0, 2)).tolist())
        print(f"layer {layer}: keys by head  {windows}   tiles {certificate.kept_share.mean().item():.1%}")
    kept = sum(c.kept_share.mean().item() for c in found) / len(found)
    dropped = max(c.dropped_share.max().item() for c in found)
    print(f"all layers: {kept:.1%} of the visible tiles; share of mass dropped at most {dropped:.3g}")


if __name__ == "__main__":
    main()

"""How well llama.cpp agrees with a decoder of the laboratory: the figures of docs/export.md.

    pip install llama-cpp-python
    python docs/figures/llama_agreement.py RUN_FOLDER

RUN_FOLDER is one of `alibi extrapolate` over bytes, with ALiBi; without it a small decoder of random weights is taken.
It is exported as GGUF, read by llama.cpp on a CPU in one thread, and compared on the held-out part of the run's corpus:
every logit, the likeliest byte at every position, and a greedy continuation. llama.cpp computes GELU by the tanh
approximation whatever it was trained with, so the decoder is compared with that too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from alibi_attention.integrations.export import write_gguf
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.model import Decoder
from alibi_attention.lab.positions import DecoderShape
from alibi_attention.lab.runs import RunFolder
from alibi_attention.lab.trained import load_trained, read_run, weights_of

PROMPT, GREEDY = 256, 100


def random_decoder() -> Decoder:
    """Untrained, with logits of the size of a trained one's."""
    decoder = Decoder(DecoderShape(256, 4, 8, 128), "alibi", seed=0).eval()
    with torch.no_grad():
        decoder.embedding.weight.mul_(40)  # type: ignore[union-attr, operator]
    return decoder


def logits_here(decoder: Decoder, ids: list[int], *, tanh: bool) -> Tensor:
    """(tokens, 256) in float64."""
    before = [block.activation for block in decoder.blocks]
    for block in decoder.blocks:
        block.activation = "gelu-tanh" if tanh else block.activation  # type: ignore[assignment]
    out: Tensor = decoder.double()(torch.tensor([ids]))[0]
    for block, activation in zip(decoder.blocks, before, strict=True):
        block.activation = activation
    return out


def logits_there(path: Path, ids: list[int], *, exact_cache: bool) -> tuple[Tensor, list[int]]:
    """llama.cpp's (tokens, 256), and what it goes on with greedily after the first of the tokens."""
    import llama_cpp

    kind = llama_cpp.GGML_TYPE_F32 if exact_cache else llama_cpp.GGML_TYPE_F16
    llama = llama_cpp.Llama(
        str(path), n_ctx=len(ids) + 1, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1,
        type_k=kind, type_v=kind,
    )  # fmt: skip
    llama.eval(ids)
    scores = torch.tensor(llama.scores[: len(ids)], dtype=torch.float64)
    llama.reset()
    text = ids[:PROMPT]
    llama.eval(text)
    while len(text) < PROMPT + GREEDY:
        text.append(int(llama.scores[len(text) - 1].argmax()))
        llama.eval(text[-1:])
    return scores, text[PROMPT:]


def greedy_here(decoder: Decoder, ids: list[int]) -> list[int]:
    text = torch.tensor([ids[:PROMPT]])
    while text.shape[1] < PROMPT + GREEDY:
        text = torch.cat([text, decoder(text)[:, -1:].argmax(-1)], dim=1)
    tokens: list[int] = text[0, PROMPT:].tolist()
    return tokens


def main() -> None:
    import llama_cpp

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=8064)
    given = parser.parse_args()
    if given.run is None:
        decoder = random_decoder()
        ids = torch.randint(1, 256, (given.tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    else:
        decoder, _ = load_trained(given.run, "alibi")
        ids = load_corpus(read_run(RunFolder(given.run))).held_out[: given.tokens].tolist()
    print(f"llama-cpp-python {llama_cpp.__version__}, {given.run or 'random weights'}, {len(ids):,} tokens")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = write_gguf(weights_of(decoder, len(ids) + 1, "agreement"), Path(folder) / "out")
        own = logits_here(decoder, ids, tanh=False)
        approximated = logits_here(decoder, ids, tanh=True)
        greedy = greedy_here(decoder, ids)
        print(f"largest logit {own.abs().max():.1f}; tanh for the erf GELU moves logits by {gap(own, approximated)}")
        for exact_cache in (True, False):
            scores, continued = logits_there(path, ids, exact_cache=exact_cache)
            same = sum(a == b for a, b in zip(continued, greedy, strict=True))
            print(f"keys and values in float{32 if exact_cache else 16}: {same} of {GREEDY} greedy bytes the same")
            for name, want in (("as trained", own), ("with tanh ", approximated)):
                share = float((scores.argmax(-1) == want.argmax(-1)).double().mean())
                print(f"  {name}  logits differ by {gap(scores, want)}, likeliest byte the same at {share:.2%}")


def gap(a: Tensor, b: Tensor) -> str:
    return f"{float((a - b).abs().max()):.2g} at most"


if __name__ == "__main__":
    main()

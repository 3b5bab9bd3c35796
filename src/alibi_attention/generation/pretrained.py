"""Text from a Transformers directory with ALiBi, run through this library's operator."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alibi_attention import HorizonCache, KVCache
from alibi_attention.extras import installing
from alibi_attention.generation.source import CacheKind, reason_of
from alibi_attention.generation.text import TokenText
from alibi_attention.lab.errors import LabError

_DTYPES = ("float32", "bfloat16", "float16")


def _check_device(device: str) -> None:
    """Before weights are read. What a machine does not have fails in several ways: torch asserts it has CUDA."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise _no_device(device, error) from None


def _no_device(device: str, error: Exception) -> LabError:
    got = f"{device} ({reason_of(error)})"
    return LabError("device", expected="a device of this machine", got=got, remedy="use cpu")


def _refuse_other_weights(path: Path, info: dict[str, Any]) -> None:
    """Transformers draws at random what a folder lacks, drops what it has too many, and says so only to listeners."""
    lacking = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    lacking += [
        f"{name} is {tuple(there)}, not {tuple(wanted)}" for name, there, wanted in sorted(info["mismatched_keys"])
    ]
    lacking += [f"{name} has no place in the model" for name in sorted(info["unexpected_keys"])]
    if lacking:
        more = f", and {len(lacking) - 3:,} more" if len(lacking) > 3 else ""
        got = f"{path} ({', '.join(lacking[:3])}{more})"
        expected = "the weights that its config.json speaks of"
        raise LabError("source", expected=expected, got=got, remedy="save the whole model into the folder")


def _refuse_by_config(path: Path, transformers: Any) -> None:
    """For a model whose code lies in its folder, which Transformers alone would ask about, or call unreadable, and for
    one after `replace_positions`, which has ALiBi and none of the families that are taken."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Said better by who reads the rest.
        return
    if not isinstance(config, dict):
        return
    if "alibi_positions" in config:
        raise LabError(
            "source", expected="a BLOOM, an MPT or a Falcon with alibi=true",
            got=f"{path} ({config.get('model_type')} after replace_positions)",
            remedy="in Python load it, call replace_positions(model), and use its own generate()",
        )  # fmt: skip
    if "auto_map" not in config:
        return
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in transformers.CONFIG_MAPPING:
        return
    name = f"model_type {kind!r}, whose" if kind is not None else "without a model_type, whose"
    raise LabError(
        "source", expected="a model whose code is in Transformers", got=f"{path} ({name} code is in the folder)",
        remedy="it is not run; BLOOM, MPT and Falcon with alibi=true are taken",
    )  # fmt: skip


class PretrainedSource:
    """A causal language model and its tokenizer.

    Raises:
        LabError: for a model or tokenizer that does not load, or a model that our operator does not serve.
    """

    def __init__(self, path: Path, cache: CacheKind, device: str, dtype: str | None) -> None:
        if dtype is not None and dtype not in _DTYPES:
            remedy = "leave it out to take that of the weights"
            raise LabError("dtype", expected=f"one of {', '.join(_DTYPES)}", got=dtype, remedy=remedy)
        _check_device(device)
        # Transformers is loaded by these alone.
        try:
            ours = importlib.import_module("alibi_attention.integrations.transformers")
        except ImportError as error:
            # A version that was not tested is refused so: "..., found VERSION; REMEDY".
            complaint, _, remedy = str(error).partition("; ")
            got, remedy = complaint.rpartition("found ")[2], remedy or installing("transformers")
            raise LabError("transformers", expected="a version that was tested", got=got, remedy=remedy) from None
        transformers = importlib.import_module("transformers")
        # Its bars and tables would stand between the text and its figures.
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        _refuse_by_config(path, transformers)
        # Never asked about, least of all where a prompt comes from the keyboard: code of a folder is not run.
        safely = {"trust_remote_code": False}
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, **safely)
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True, **safely
            )
        # Whatever is wrong with a file: safetensors and tokenizers raise kinds of their own.
        except Exception as error:
            bare = path.is_dir() and not any(path.glob("*token*"))
            got = f"{path} ({'no tokenizer there' if bare else reason_of(error)})"
            expected = "a causal language model and its tokenizer"
            raise LabError("source", expected=expected, got=got, remedy="save both into the folder") from None
        _refuse_other_weights(path, info)
        try:
            # Rounded biases drift ever farther from the line, and a cache that forgets relies on it.
            self._model: Any = ours.enable(model, falcon_rounding=cache == "full").eval().to(device)
        except ValueError as error:
            got = f"{path} ({error})"
            remedy = "BLOOM, MPT and Falcon with alibi=true are"
            raise LabError("source", expected="a model with ALiBi", got=got, remedy=remedy) from None
        except RuntimeError as error:
            raise _no_device(device, error) from None
        make = ours.horizon_cache if cache == "horizon" else ours.kv_cache
        self._cache: Any = make(self._model)
        # What generate() goes by: generation_config.json, or where there is none what config.json says.
        settings = self._model.generation_config
        ends = settings.eos_token_id
        self.end = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        begin = self._model.config.bos_token_id if settings.bos_token_id is None else settings.bos_token_id
        self._begin = min(self.end, default=0) if begin is None else begin
        self._path = path
        self.name = f"{path} ({self._model.config.model_type})"

    def encode(self, prompt: str) -> list[int]:
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            # Bytes of a command line that are no text come as halves of characters, which no tokenizer takes.
            remedy = "convert it with `iconv -t utf-8`"
            raise LabError("prompt", expected="UTF-8 text", got="another encoding", remedy=remedy) from None
        tokens: list[int] = self._tokenizer(prompt)["input_ids"] if prompt else []
        tokens = tokens or [self._begin]
        known = self._model.get_input_embeddings().num_embeddings
        if max(tokens) >= known:
            raise LabError(
                "source", expected=f"a tokenizer of the model's {known:,} tokens",
                got=f"{self._path}, whose tokenizer makes token {max(tokens):,} of the prompt",
                remedy="save the tokenizer the model was trained with into the folder",
            )  # fmt: skip
        return tokens

    def text(self) -> TokenText:
        return TokenText(lambda tokens: self._tokenizer.decode(tokens, skip_special_tokens=True))

    def read(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[0, -1]
        return logits

    @property
    def longest(self) -> None:
        return None

    def _layers(self) -> list[KVCache | HorizonCache]:
        return [layer.cache for layer in self._cache.layers]

    @property
    def bytes_held(self) -> int:
        return sum(cache.bytes_held for cache in self._layers())

    def horizon_caches(self) -> list[HorizonCache]:
        return [cache for cache in self._layers() if isinstance(cache, HorizonCache)]

"""Weights and resumable states as safetensors with a JSON header: nothing is ever pickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.files import replacing

# A safetensors header maps strings to strings; ours is one JSON text under this key.
_HEADER = "alibi_attention"

# In that text, because safetensors writes several keys in an order that differs from time to time.
_CHECKSUM = "sha256"


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header, with a checksum of both, as one file that is either whole or absent."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**header, _CHECKSUM: _checksum(contiguous, header)}
    with replacing(path) as temporary:
        # Not `save_file`, which makes files that only their owner may read.
        temporary.write_bytes(save(contiguous, metadata={_HEADER: json.dumps(header)}))


def _checksum(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """sha256 over the header and, in the order of their names, every tensor's name, type, shape and bytes."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because NumPy has no bfloat16.
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote; what it wrote before it added a checksum is not checked for one.

    Raises:
        LabError: if the file is damaged or is not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            # Cloned into memory of torch's own alignment, in which kernels take the same path as before the pause.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        wanted = header.pop(_CHECKSUM, None)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        remedy = "name the folder of a run in which this method was trained"
        raise LabError("run", expected="a file that can be read", got=f"{path} ({error.strerror or error})",
                       remedy=remedy) from None  # fmt: skip
    if wanted is not None and wanted != _checksum(tensors, header):
        raise _damaged(path, "its checksum is another: something in it changed after it was written")
    return tensors, header


def _damaged(path: Path, why: str) -> LabError:
    remedy = "delete this file and run alibi extrapolate --resume on its run: its method is then trained from the start"
    return LabError("resume", expected="a whole file of this program", got=f"{path} ({why})", remedy=remedy)


def load_weights(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put tensors, read from ``path``, into a module.

    Raises:
        LabError: if they are not those of this module.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        got = f"{path} ({' '.join(str(error).split())[:200]})"
        remedy = "use the run's own config.json and files, or start a new run"
        raise LabError("run", expected="weights of this configuration", got=got, remedy=remedy) from None


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, header: dict[str, Any]) -> None:
    """Weights as ``model.<name>`` and what the optimiser keeps for each as ``optimizer.<entry>.<name>``."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{entry}.{name}"] = value
    save_tensors(path, tensors, header)


def restore_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put the ``model.`` tensors of `save_state` into the model."""
    prefix = "model."
    model.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the ``optimizer.`` tensors of `save_state` into a fresh optimiser over the same model."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, entry, name = key.split(".", 2)
        if kind == "optimizer":
            # AdamW keeps its step count on the CPU wherever the parameters are.
            device = tensor.device if entry == "step" else parameters[name].device
            # A copy: processes that train together are handed the same tensors, in memory they share.
            optimizer.state[parameters[name]][entry] = tensor.to(device, copy=True)

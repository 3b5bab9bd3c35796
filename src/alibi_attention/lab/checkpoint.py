"""Weights and resumable states as safetensors with a JSON header: nothing is ever pickled."""

from __future__ import annotations

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


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header as one file that is either whole or absent."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # Not `save_file`, which makes files that only their owner may read.
        temporary.write_bytes(save(contiguous, metadata={_HEADER: json.dumps(header)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        LabError: if the file is damaged or is not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            # Cloned into memory of torch's own alignment, in which kernels take the same path as before the pause.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError) as error:
        remedy = "delete this file and --resume again: its method is then trained from the start"
        got = f"{path} ({error})"
        raise LabError("resume", expected="a whole file of this program", got=got, remedy=remedy) from None
    except OSError as error:
        remedy = "name the folder of a run in which this method was trained"
        raise LabError("run", expected="a file that can be read", got=f"{path} ({error.strerror or error})",
                       remedy=remedy) from None  # fmt: skip


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

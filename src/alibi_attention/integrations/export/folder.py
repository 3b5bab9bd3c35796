"""Folders that are either whole or absent, and what every model folder holds besides weights."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``output`` that takes its name when the block ends well, and vanishes otherwise.

    An empty folder stays the one it is, for whoever stands in it or has mounted something there: the temporary folder
    is inside, and what it holds is moved up.

    Raises:
        ValueError: if ``output`` exists (unless it is an empty folder, and still is in the end), or cannot be made or
            written.
    """
    temporary = None
    try:
        is_there = output.exists()
        if is_there and (not output.is_dir() or any(output.iterdir())):
            raise _exists(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = output if is_there else output.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=beside))
        temporary.chmod(0o755)
        yield temporary
        if is_there:
            # What came in the meantime is not written over.
            if any(path.name != temporary.name for path in output.iterdir()):
                raise _exists(output)
            for written in sorted(temporary.iterdir()):
                written.replace(output / written.name)
        else:
            temporary.replace(output)
    except OSError as error:
        raise ValueError(
            f"output: expected a folder that can be made and written, got {output} ({error.strerror or error}); "
            "choose another"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _exists(output: Path) -> ValueError:
    return ValueError(f"output: expected a new or empty folder, got {output}, which exists; choose another")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    # "pt" tells Transformers whose tensors they are. (`save_file` makes files that only their owner may read.)
    (folder / "model.safetensors").write_bytes(save(contiguous, metadata={"format": "pt"}))

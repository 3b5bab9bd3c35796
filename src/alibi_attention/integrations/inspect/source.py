"""Where a configuration comes from: a file, a folder, or a name on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def read_config(source: str) -> Any:
    """The contents of a config.json.

    Args:
        source: the file, a folder that holds it, or ``owner/name`` on the Hub, which is asked only where neither such
            a path nor a folder ``owner`` exists.

    Raises:
        ValueError: if there is none, or it is not JSON.
    """
    path = Path(source)
    try:
        is_folder, is_there, holds_it = path.is_dir(), path.exists(), (path / "config.json").is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ValueError(f"expected a file or folder, got {source} ({error.strerror}); name a config.json") from None
    if is_folder:
        path = path / "config.json"
        if not holds_it:
            raise ValueError(f"expected a folder with a config.json, got {source}; name a model's folder or file")
    elif not is_there:
        path = _from_hub(source)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"expected JSON, got {path} ({error}); restore it from the model it belongs to") from None
    except RecursionError:
        raise ValueError(
            f"expected JSON, got {path}, nested too deeply; restore it from the model it belongs to"
        ) from None


def _from_hub(name: str) -> Path:
    # The name of something in a folder that is here is a slip, not a question to the Hub.
    if not _HUB_NAME.fullmatch(name) or Path(name).parent.is_dir():
        raise ValueError(f"expected a file or folder, got {name}, which does not exist; name a config.json")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(
            f"expected a file or folder, got {name}, which does not exist; to look for a model of this name on the "
            "Hugging Face Hub, pip install huggingface_hub"
        ) from None
    try:
        return Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"expected a file, a folder or a model on the Hugging Face Hub, got {name} ({reason}); check the name and "
            "the connection"
        ) from None

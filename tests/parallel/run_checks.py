"""All checks, run in every process of a group: ``run_checks.py RANK STORE FOLDER``."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

import parallel_checks  # noqa: F401
import torch
import torch.distributed as dist
from process_checks import CHECKS, PROCESSES

if importlib.util.find_spec("transformers") is not None:
    import transformers_checks  # noqa: F401


def main(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    found: dict[str, str | None] = {}
    for name, function in CHECKS.items():
        try:
            function(rank)
            found[name] = None
        except BaseException:
            found[name] = traceback.format_exc()
            # Others may wait for this process: there is no going on.
            break
        finally:
            Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

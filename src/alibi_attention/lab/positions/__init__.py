"""Position methods for one and the same decoder. A new one is one class in one module of this folder."""

from __future__ import annotations

import importlib
import pkgutil

from alibi_attention.lab.positions.base import Cache, DecoderShape, PositionMethod

__all__ = ["Cache", "DecoderShape", "PositionMethod", "position_methods"]


def position_methods() -> dict[str, type[PositionMethod]]:
    """Every position method by its name, found by looking through the modules of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(PositionMethod.registry.items()))

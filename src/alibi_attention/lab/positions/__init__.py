"""Position methods for one and the same decoder. A new one is one class in one module of this folder."""

from __future__ import annotations

import importlib
import pkgutil

from alibi_attention.lab.errors import LabError
from alibi_attention.lab.positions.base import Cache, DecoderShape, PositionMethod

__all__ = ["Cache", "DecoderShape", "PositionMethod", "full_title", "position_methods", "split_name"]


def position_methods() -> dict[str, type[PositionMethod]]:
    """Every position method by its name, found by looking through the modules of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(PositionMethod.registry.items()))


def split_name(name: str) -> tuple[str, str | None]:
    """``"rope:yarn"`` to ``("rope", "yarn")``, ``"rope"`` to ``("rope", None)``.

    Raises:
        LabError: for a method or a variant that does not exist.
    """
    known = position_methods()
    method, colon, variant = name.partition(":")
    if method not in known or (colon and variant not in known[method].variants):
        every = [f"{m}:{v}" for m in known for v in known[m].variants] if colon else list(known)
        expected = "names of variants" if colon else "names of position methods"
        argument = "variants" if colon else "methods"
        raise LabError(argument, expected=expected, got=repr(name), remedy=f"choose from {', '.join(every)}")
    return method, variant or None


def full_title(name: str) -> str:
    """``"rope:yarn"`` to ``"RoPE, YaRN"``."""
    method, variant = split_name(name)
    cls = position_methods()[method]
    return cls.title if variant is None else f"{cls.title}, {cls.variants[variant]}"

"""How an optional package is had."""

from __future__ import annotations


def installing(extra: str) -> str:
    """The command for an extra, as errors name it. The package is on no index yet: from a checkout."""
    return f"pip install -c constraints.txt '.[{extra}]' in a checkout of alibi-attention"

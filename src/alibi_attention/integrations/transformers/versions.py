"""Which versions of Transformers are known to work; importing this refuses the others."""

from __future__ import annotations

from importlib import metadata

from alibi_attention.extras import installing

TESTED_VERSIONS = ("5.23.0",)


def check(version: str | None) -> None:
    """Refuse a version nobody tried: what is replaced are the insides of Transformers, which change without notice.

    Raises:
        ImportError: for None (not installed) and for a version that is not in TESTED_VERSIONS.
    """
    tested = ", ".join(TESTED_VERSIONS)
    if version is None:
        raise ImportError(
            "alibi_attention.integrations.transformers: expected Transformers to be installed, found none; "
            + installing("transformers")
        )
    if version not in TESTED_VERSIONS:
        raise ImportError(
            f"alibi_attention.integrations.transformers: expected a tested version of Transformers ({tested}), "
            f"found {version}; pip install 'transformers=={TESTED_VERSIONS[-1]}'"
        )


def installed() -> str | None:
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return None


check(installed())

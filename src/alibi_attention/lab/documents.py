"""Documents, each once, their division into training and held-out ones, and the data sets they may come from."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alibi_attention.extras import installing
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError

# What the package datasets calls the reader of a file, by its suffix, and what that one is told besides.
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".parquet": ("parquet", {}),
    # Rows of several lines, as --document-start makes documents of them, keep their lines apart.
    ".txt": ("text", {"keep_linebreaks": True}),
}


@dataclass(frozen=True)
class Document:
    """One text and the name it is known by: its path below what the user named."""

    name: str
    text: bytes

    @property
    def key(self) -> str:
        """Decides the split: a hash of the name, so that it depends neither on the machine nor on the file order."""
        return hashlib.sha256(self.name.encode()).hexdigest()


def split_documents(
    documents: Sequence[Document], share: float, groups: Sequence[int] | None = None
) -> tuple[list[Document], list[Document]]:
    """Hold out whole groups of documents, in the order of their keys, until they make up ``share`` of the bytes.

    A group that would take more than twice the share is left for training, so that one giant cannot take the training
    text away; where every group is as large as that, the smallest is held out.

    Args:
        documents: at least two.
        share: of all bytes, in (0, 1).
        groups: a number for each document; equal numbers stay on one side. Each document is its own group by default.

    Returns:
        Training documents and held-out documents, neither empty, both group by group in the order of their keys.
    """
    members: dict[int, list[Document]] = {}
    for number, document in zip(groups or range(len(documents)), documents, strict=True):
        members.setdefault(number, []).append(document)
    # The key of a group is that of its first name, which does not depend on the order documents were found in.
    families = [sorted(family, key=lambda d: d.name) for family in members.values()]
    ranked = sorted(families, key=lambda family: family[0].key)
    sizes = [sum(len(document.text) for document in family) for family in ranked]
    target = share * sum(sizes)
    chosen: list[int] = []
    size = 0
    for i, family_size in enumerate(sizes):
        if size < target and size + family_size <= 2 * target:
            chosen.append(i)
            size += family_size
    chosen = chosen or [sizes.index(min(sizes))]
    sides: tuple[list[Document], list[Document]] = ([], [])
    for i, family in enumerate(ranked):
        sides[i in chosen].extend(family)
    return sides


def open_dataset(config: ExperimentConfig) -> Any:
    """The data set of a configuration: a name on the Hugging Face hub, a folder of files, one file, or one saved to
    disk. A single file is the split ``train``.

    Raises:
        LabError: if the package is missing, there is no such data set, configuration, split or column, or a
            configuration is named of a copy that has but one.
    """
    name = config.dataset
    if _only_a_path(name) and not Path(name).exists():
        remedy = "check the spelling and the folder you are in"
        raise LabError("dataset", expected="an existing file or folder", got=name, remedy=remedy)
    if find_spec("datasets") is None:
        # With all else there may be, which this install is not to leave behind.
        remedy = installing("all,data")
        raise LabError("dataset", expected="the package datasets", got="none installed", remedy=remedy)
    import datasets

    is_file, suffix = Path(name).is_file(), Path(name).suffix.lower()
    single = "a single file" if is_file else "a copy saved to disk" if saved_to_disk(name) else ""
    if config.dataset_config and single:
        got = f"{config.dataset_config!r} with {name}, {single}, which is of one configuration"
        raise LabError("dataset_config", expected="nothing", got=got, remedy="leave it out")
    if is_file and suffix not in _BUILDERS:
        remedy = "name such a file, or give plain text with --text"
        raise LabError("dataset", expected=f"a file that ends in {', '.join(_BUILDERS)}", got=name, remedy=remedy)
    try:
        if is_file:
            builder, options = _BUILDERS[suffix]
            # Its name would be taken for a pattern.
            whole = datasets.load_dataset(builder, data_files=glob.escape(name), **options)
        elif saved_to_disk(name):
            found = datasets.load_from_disk(name)
            whole = {"train": found} if isinstance(found, datasets.Dataset) else found
        else:
            whole = datasets.load_dataset(name, config.dataset_config or None)
    except MemoryError:
        raise
    except Exception as error:
        # The package lets through whatever its readers and the network beneath it raise.
        if isinstance(error, ValueError):
            _refuse_configuration(config)
        why = _reason(error)
        remedy = "give a name on the hub that this machine can reach, or the path of a local copy"
        if is_file:
            remedy = "see that it holds rows of named columns, written as its suffix says"
        raise LabError("dataset", expected="a data set that can be read", got=f"{name} ({why})", remedy=remedy
                       ) from None  # fmt: skip
    for argument in ("dataset_split", "dataset_held_out"):
        split = getattr(config, argument)
        if split and split not in whole:
            remedy = f"choose from {', '.join(map(str, whole))}"
            if argument == "dataset_held_out" and list(whole) == [config.dataset_split]:
                remedy = f"leave it out to hold out documents of {config.dataset_split}"
            raise LabError(argument, expected=f"a split of {name}", got=repr(split), remedy=remedy)
    columns = whole[config.dataset_split].column_names
    if config.text_column not in columns:
        remedy = f"choose from {', '.join(columns)}"
        raise LabError("text_column", expected=f"a column of {name}", got=repr(config.text_column), remedy=remedy)
    return whole


def _only_a_path(name: str) -> bool:
    """Whether it cannot be a name on the hub, which is NAME or OWNER/NAME."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).is_absolute()


def configurations(name: str) -> list[str]:
    """The names of a data set's configurations; none where the package datasets, or what it asks, cannot tell."""
    if find_spec("datasets") is None:
        return []
    import datasets

    try:
        return [str(each) for each in datasets.get_dataset_config_names(name)]
    except MemoryError:
        raise
    except Exception:  # of many kinds, or the hub cannot be reached: whoever opens the data set says what is wrong
        return []


def _refuse_configuration(config: ExperimentConfig) -> None:
    """Raise `LabError` if the name of the configuration is why a data set could not be read."""
    name, given = config.dataset, config.dataset_config
    there = [] if Path(name).is_file() or saved_to_disk(name) else configurations(name)
    if not there or given in there or (not given and len(there) == 1):
        return
    remedy = f"choose from {', '.join(there)}"
    if len(there) == 1:
        remedy = f"there is {there[0]} alone: --dataset-config '' takes it"
    raise LabError("dataset_config", expected=f"a configuration of {name}", got=repr(given), remedy=remedy)


def _reason(error: Exception) -> str:
    """In a line what the package datasets stumbled over: the cause, where it has words."""
    if isinstance(error, StopIteration):
        return "no rows"
    told = (" ".join(str(each).split()) for each in (error.__cause__, error) if each is not None)
    return next(filter(None, told), type(error).__name__)


def saved_to_disk(name: str) -> bool:
    """Whether this is the folder of a copy that the package datasets saved, rather than a name or a folder of files."""
    return Path(name, "dataset_info.json").is_file() or Path(name, "dataset_dict.json").is_file()


def without_copies(documents: Iterable[Document]) -> list[Document]:
    """One document per content, or a copy of a training text could be held out; and one per name, for the split."""
    by_content: dict[bytes, Document] = {}
    names: dict[str, int] = {}
    for document in documents:
        digest = hashlib.sha256(document.text).digest()
        if digest not in by_content:
            count = names[document.name] = names.get(document.name, 0) + 1
            by_content[digest] = document if count == 1 else Document(f"{document.name}#{count}", document.text)
    return list(by_content.values())

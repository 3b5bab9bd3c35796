"""Documents from files, folders and data sets, each once, and their division into training and held-out ones."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alibi_attention.extras import installing
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.errors import LabError

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules"})


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


def read_path(path: Path, argument: str = "text") -> Iterable[Document]:
    """The documents of a file or a folder, which ``argument`` named."""
    if path.is_dir():
        documents = [Document(name, data) for name, data in _texts(path, text_files(path))]
        if not documents:
            remedy = "name text files, or a folder that holds some"
            raise LabError(argument, expected="a folder with UTF-8 text in it", got=f"none in {path}", remedy=remedy)
        return documents
    if not path.is_file():
        remedy = "check the spelling and the folder you are in"
        raise LabError(argument, expected="an existing file or folder", got=str(path), remedy=remedy)
    try:
        data = path.read_bytes()
    except OSError as error:
        remedy = "check its permissions"
        got = f"{path} ({error.strerror})"
        raise LabError(argument, expected="a file that can be read", got=got, remedy=remedy) from None
    if not is_text(data):
        remedy = "extract its text first, or convert it with `iconv -t utf-8`"
        got = f"{path}, which is binary or in another encoding"
        raise LabError(argument, expected="UTF-8 text", got=got, remedy=remedy)
    return [Document(path.name, data)]


def read_folder(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Document]:
    return [Document(name, data) for name, data in _texts(folder, text_files(folder, suffixes))]


def text_files(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Files below a folder in a fixed order; hidden ones and installed packages are passed over."""
    found = []
    for parent, folders, files in os.walk(folder):
        # Pruned in place: os.walk then neither enters nor lists them, and goes through the rest in a fixed order.
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and (not suffixes or path.suffix in suffixes) and path.is_file():
                found.append(path)
    return found


def _texts(folder: Path, paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each; empty files, binary files and those that may not be read are passed over."""
    for path in paths:
        try:
            data = path.read_bytes()
        except PermissionError:
            continue
        if data and is_text(data):
            yield path.relative_to(folder).as_posix(), data


def open_dataset(config: ExperimentConfig) -> Any:
    """The data set of a configuration: a name on the Hugging Face hub, a folder of files, or one saved to disk.

    Raises:
        LabError: if the package is missing, there is no such data set, split or column, or a configuration is named of
            a copy that has but one.
    """
    if find_spec("datasets") is None:
        remedy = installing("data")
        raise LabError("dataset", expected="the package datasets", got="none installed", remedy=remedy)
    import datasets

    name = config.dataset
    if config.dataset_config and saved_to_disk(name):
        got = f"{config.dataset_config!r} with {name}, a copy saved to disk, which is of one configuration"
        raise LabError("dataset_config", expected="nothing", got=got, remedy="leave it out")
    try:
        if saved_to_disk(name):
            found = datasets.load_from_disk(name)
            whole = {"train": found} if isinstance(found, datasets.Dataset) else found
        else:
            whole = datasets.load_dataset(name, config.dataset_config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        got = f"{name} ({' '.join(str(error).split())})"
        remedy = "give a name on the hub that this machine can reach, or the path of a local copy"
        raise LabError("dataset", expected="a data set that can be read", got=got, remedy=remedy) from None
    for argument in ("dataset_split", "dataset_held_out"):
        split = getattr(config, argument)
        if split and split not in whole:
            remedy = f"choose from {', '.join(map(str, whole))}"
            raise LabError(argument, expected=f"a split of {name}", got=repr(split), remedy=remedy)
    columns = whole[config.dataset_split].column_names
    if config.text_column not in columns:
        remedy = f"choose from {', '.join(columns)}"
        raise LabError("text_column", expected=f"a column of {name}", got=repr(config.text_column), remedy=remedy)
    return whole


def saved_to_disk(name: str) -> bool:
    """Whether this is the folder of a copy that the package datasets saved, rather than a name or a folder of files."""
    return Path(name, "dataset_info.json").is_file() or Path(name, "dataset_dict.json").is_file()


def dataset_documents(rows: Iterable[Any], config: ExperimentConfig, split: str) -> list[Document]:
    """Rows as documents, or, with ``document_start``, runs of rows. Empty ones and ones with NUL are passed over."""
    pattern = re.compile(config.document_start) if config.document_start else None
    texts: list[list[str]] = []
    for row in rows:
        text = row if isinstance(row, str) else ""
        if pattern is None or pattern.search(text) or not texts:
            texts.append([])
        texts[-1].append(text)
    whole = ("".join(parts).encode("utf-8", "replace") for parts in texts)
    return [Document(f"{split}/{i}", text) for i, text in enumerate(whole) if text.strip() and is_text(text)]


def is_text(data: bytes) -> bool:
    if b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


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

"""Text from files, folders and rows of data sets as documents, with a count of what is passed over."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from alibi_attention.lab.documents import Document
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.progress import Progress

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules"})


class Reader:
    """Reads documents.

    Args:
        document_start: a regular expression; a line of a file, or a row of a data set, that matches begins a document,
            the others continue it. Without one each file, or row, is a document.
        progress: told of each file and row; silent by default.

    Attributes:
        passed_over: how many files, folders, rows and documents were, by what they are and why, in words. Empty ones
            are not counted, nor what `text_files` leaves out by its name.
    """

    def __init__(self, document_start: str = "", progress: Progress | None = None) -> None:
        self.passed_over: Counter[str] = Counter()
        self._start = re.compile(document_start) if document_start else None
        self._progress = progress or Progress()

    def path(self, path: Path, argument: str = "text") -> list[Document]:
        """The documents of a file or a folder, which ``argument`` named.

        Raises:
            LabError: if there is none, or it holds no text that can be read.
        """
        if path.is_dir():
            before = self.passed_over.copy()
            documents = self.folder(path)
            if not documents:
                remedy = "name text files, or a folder that holds some"
                got = f"none in {path}{said(self.passed_over - before)}"
                raise LabError(argument, expected="a folder with UTF-8 text in it", got=got, remedy=remedy)
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
        if flaw(data) is not None:
            remedy = "extract its text first, or convert it with `iconv -t utf-8`"
            got = f"{path}, which is binary or in another encoding"
            raise LabError(argument, expected="UTF-8 text", got=got, remedy=remedy)
        return list(self._documents(path.name, data)) or [Document(path.name, data)]

    def folder(self, folder: Path, suffixes: tuple[str, ...] = ()) -> list[Document]:
        """The documents of the files below a folder, by their paths in it."""
        paths = text_files(folder, suffixes, self.passed_over)
        found: list[Document] = []
        for path in self._progress.through(paths, "Corpus: reading", total=len(paths), unit="files"):
            try:
                data = path.read_bytes()
            except PermissionError:
                self.passed_over["files that may not be read"] += 1
                continue
            why = flaw(data)
            if why is not None:
                self.passed_over[f"files {why}"] += 1
            elif data:
                found += self._documents(path.relative_to(folder).as_posix(), data)
        return found

    def rows(self, rows: Collection[Any], split: str) -> list[Document]:
        """The documents of a split of a data set."""
        texts: list[list[str]] = []
        for row in self._progress.through(rows, f"Corpus: reading {split}", total=len(rows), unit="rows"):
            if not isinstance(row, str):
                self.passed_over["rows that are no text"] += 1
            text = row if isinstance(row, str) else ""
            if self._start is None or self._start.search(text) or not texts:
                texts.append([])
            texts[-1].append(text)
        found = []
        for number, parts in enumerate(texts):
            whole = "".join(parts).encode("utf-8", "replace")
            why = flaw(whole)
            if why is not None:
                self.passed_over[f"{'rows' if self._start is None else 'documents'} {why}"] += 1
            elif whole.strip():
                found.append(Document(f"{split}/{number}", whole))
        return found

    def _documents(self, name: str, data: bytes) -> Iterator[Document]:
        """Those of a file: itself, or runs of its lines, without blank ones."""
        if self._start is None:
            yield Document(name, data)
            return
        starts: list[int] = []
        at = 0
        # Of bytes, whose lines end with a line feed and nothing else: no character of UTF-8 has one inside it.
        for line in io.BytesIO(data):
            if not starts or self._start.search(line.decode("utf-8").rstrip("\r\n")):
                starts.append(at)
            at += len(line)
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], at], strict=True)):
            if data[start:end].strip():
                yield Document(f"{name}/{number}", data[start:end])


def left_out(folder: str) -> bool:
    """Whether a folder of this name is passed by: it is hidden, or holds installed packages."""
    return folder in _SKIPPED_FOLDERS or folder.startswith(".")


def text_files(folder: Path, suffixes: tuple[str, ...] = (), passed_over: Counter[str] | None = None) -> list[Path]:
    """Files below a folder in a fixed order; hidden ones and installed packages are left out.

    Folders that may not be opened, and links to folders, are counted in ``passed_over``.
    """
    counted = Counter[str]() if passed_over is None else passed_over

    def note(error: OSError) -> None:
        if not isinstance(error, PermissionError):
            raise error
        counted["folders that may not be opened"] += 1

    found = []
    for parent, folders, files in os.walk(folder, onerror=note):
        # Pruned in place: os.walk then neither enters nor lists them, and goes through the rest in a fixed order.
        folders[:] = sorted(name for name in folders if not left_out(name))
        counted.update("links to folders" for name in folders if Path(parent, name).is_symlink())
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and (not suffixes or path.suffix in suffixes) and path.is_file():
                found.append(path)
    return found


def flaw(data: bytes) -> str | None:
    """In words that follow what it is, why something is no text; None of text."""
    if b"\0" in data:
        return "with NUL"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "not in UTF-8"
    return None


def said(passed_over: Mapping[str, int]) -> str:
    """The end of a sentence that says what was passed over; empty where nothing was."""
    counts = ", ".join(f"{what} ({count:,})" for what, count in sorted(passed_over.items()) if count)
    return f"; passed over: {counts}" if counts else ""

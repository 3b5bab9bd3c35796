"""The folder of a run: what lies where, and when it counts as a result.

::

    RUN/
      config.json            the configuration, the corpus's fingerprint, where and when it was started
      documents.json         which documents were trained on, which held out
      METHOD/
        tensorboard/         loss curve
        checkpoint.safetensors   resumable state, while training or evaluation is under way
        weights.safetensors  once trained
        result.json          once evaluated
      table.md  figure.png  figure.svg
      results.json           last of all: where it exists, the run is complete
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alibi_attention.lab.checkpoint import load_tensors
from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.corpus import Corpus
from alibi_attention.lab.environment import environment
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.evaluation import Score
from alibi_attention.lab.files import read_json, write_json
from alibi_attention.lab.model import Decoder, build_decoder

SCHEMA_VERSION = 1


class MethodResult(BaseModel):
    """What one position method came to.

    Attributes:
        method, title: its name in files, and in tables.
        parameters: trained numbers.
        trained_bytes: tokens seen in training.
        scores: one per evaluation length.
        train_seconds, eval_seconds: wall time; all else is the same on every repetition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    title: str
    parameters: int
    trained_bytes: int
    scores: tuple[Score, ...]
    train_seconds: float
    eval_seconds: float


class RunFolder:
    """Paths of a run, and reading and writing what lies there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.json"
        self.documents = root / "documents.json"
        self.results = root / "results.json"
        self.table = root / "table.md"
        self.figures = (root / "figure.png", root / "figure.svg")

    def checkpoint(self, method: str) -> Path:
        return self.root / method / "checkpoint.safetensors"

    def weights(self, method: str) -> Path:
        return self.root / method / "weights.safetensors"

    def result(self, method: str) -> Path:
        return self.root / method / "result.json"

    def logs(self, method: str) -> Path:
        return self.root / method / "tensorboard"

    def refuse_existing(self) -> None:
        """Raise `LabError` if anything is here already."""
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise LabError(
                "output",
                expected="a new or empty folder",
                got=f"{self.root}, which exists",
                remedy="choose another, or continue that run with --resume",
            )

    def begin(self, config: ExperimentConfig, corpus: Corpus) -> None:
        """Write down what is about to be done."""
        start = {
            "schema_version": SCHEMA_VERSION,
            "config": config.model_dump(mode="json"),
            "corpus": corpus.summary(),
            "environment": environment(config.device),
        }
        try:
            write_json(self.config, start)
        except OSError as error:
            got = f"{self.root} ({error.strerror})"
            remedy = "choose another"
            raise LabError("output", expected="a folder that can be written", got=got, remedy=remedy) from None

    def write_documents(self, corpus: Corpus) -> None:
        documents = {"train": corpus.train_documents, "held_out": corpus.held_out_documents}
        write_json(self.documents, {"schema_version": SCHEMA_VERSION, **documents})

    def read_config(self) -> ExperimentConfig:
        """The configuration the run was started with."""
        return make_config(self._read_start()["config"])

    def refuse_changed_corpus(self, corpus: Corpus) -> None:
        """Raise `LabError` unless the corpus is, byte for byte, that of the beginning."""
        started_with = self._read_start()["corpus"]["fingerprint"]
        if corpus.fingerprint != started_with:
            raise LabError(
                "text",
                expected=f"the corpus the run was started with (sha256 {started_with[:12]}…)",
                got=f"another one (sha256 {corpus.fingerprint[:12]}…) from {corpus.source}",
                remedy="restore the files, or start a new run",
            )

    def read_result(self, method: str) -> MethodResult | None:
        path = self.result(method)
        if not path.exists():
            return None
        return MethodResult.model_validate(read_json(path)["result"])

    def trained_methods(self) -> list[str]:
        """Methods whose weights are here."""
        return [method for method in self.read_config().methods if self.weights(method).is_file()]

    def load_decoder(self, method: str) -> Decoder:
        """A decoder as it was trained, in evaluation mode on the CPU.

        Raises:
            LabError: where its weights are not here, or are damaged.
        """
        if method not in self.trained_methods():
            got = f"{method!r}, of which {self.root} has no weights"
            there = ", ".join(self.trained_methods())
            remedy = f"there are those of {there}" if there else "train it first: alibi extrapolate"
            raise LabError("method", expected="a method that was trained", got=got, remedy=remedy)
        decoder = build_decoder(self.read_config(), method)
        decoder.load_state_dict(load_tensors(self.weights(method))[0])
        return decoder.eval()

    def write_result(self, result: MethodResult) -> None:
        value = {"schema_version": SCHEMA_VERSION, "result": result.model_dump(mode="json")}
        write_json(self.result(result.method), value)

    def write_results(self, results: list[MethodResult]) -> None:
        start = self._read_start()
        write_json(self.results, {**start, "results": [result.model_dump(mode="json") for result in results]})

    def _read_start(self) -> dict[str, Any]:
        remedy = "name the folder of an interrupted run with --output, or start one without --resume"
        if not self.config.is_file():
            got = f"{self.root}, which has no config.json"
            raise LabError("output", expected="the folder of a run", got=got, remedy=remedy)
        try:
            start: dict[str, Any] = read_json(self.config)
        except ValueError as error:
            expected = "a config.json as it was written"
            got = f"{self.config} ({error})"
            raise LabError("output", expected=expected, got=got, remedy="start a new run") from None
        version = start.get("schema_version")
        if version != SCHEMA_VERSION:
            expected = f"a run folder of schema version {SCHEMA_VERSION}"
            remedy = "continue it with the version of alibi-attention that started it"
            raise LabError("output", expected=expected, got=f"version {version} in {self.root}", remedy=remedy)
        return start

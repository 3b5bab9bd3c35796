"""The folder of a run: what lies where, and when it counts as a result.

::

    RUN/
      config.json            the configuration, the corpus's fingerprint, where and when it was started
      config.yaml            the configuration alone, every setting, to start another run with
      sessions.json          where and when each process worked on which methods, where there was more than one process
      documents.json         which documents were trained on, which held out, and how much was passed over, and why
      tokenizer.json         the vocabulary, where it was learned
      METHOD/
        tensorboard/         loss curve
        checkpoint.safetensors   resumable state, while training or evaluation is under way
        weights.safetensors  once trained
        trained.json         how long that took
        evaluation/          one file for each variant and protocol, which grows by one length after the other
        result.json          once all are
        inside/              what alibi dissect saw; inside-VARIANT/ of a variant
      table.md  figure.png  figure.svg
      results.json           last of all: where it exists, the run is complete
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from alibi_attention.lab.config import ExperimentConfig, make_config
from alibi_attention.lab.config_file import write_config_file
from alibi_attention.lab.environment import differences, environment
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.files import is_partial, read_json, write_json, write_text
from alibi_attention.lab.lock import locked
from alibi_attention.lab.schema import (
    OLDER,
    SCHEMA_VERSION,
    brought_up_to_date,
    refuse_later_fields,
    refuse_later_settings,
)
from alibi_attention.lab.scores import Evaluation, RecallScore, Score
from alibi_attention.lab.streams import Corpus
from alibi_attention.lab.verdicts import judge

_AGAIN = "delete this file and --resume: only what it held is done again"

# Of a config.json.
_PARTS = ("config", "corpus", "environment")


class MethodResult(BaseModel):
    """What one position method came to.

    Attributes:
        method, title: its name in files, and in tables.
        parameters: trained numbers, and those of them that belong to the positions.
        trained_tokens: tokens seen in training.
        evaluations: the method as it was trained, then its variants.
        train_seconds, eval_seconds: wall time, 0 for training of which it is not known; all else is the same on every
            repetition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    title: str
    parameters: int
    position_parameters: int
    trained_tokens: int
    evaluations: tuple[Evaluation, ...]
    train_seconds: float
    eval_seconds: float

    def judged(self, config: ExperimentConfig) -> MethodResult:
        """With the verdicts of this version's rules: an older one may have had others."""
        return self.model_copy(update={"evaluations": tuple(judge(each, config) for each in self.evaluations)})

    @property
    def scores(self) -> tuple[Score, ...]:
        """Of the method as it was trained, by the first protocol evaluated."""
        return self.evaluations[0].scores


class Kept(BaseModel):
    """What was evaluated of one variant by one protocol.

    Attributes:
        scores: in the order of lengths.
        seconds: what they took.
        lengths: that are done; None, in files of before they were kept one by one, for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[RecallScore | Score, ...] = ()
    seconds: float = 0.0
    lengths: tuple[int, ...] | None = ()

    def missing(self, lengths: Iterable[int]) -> list[int]:
        """Those of a protocol's lengths that are not done."""
        return [] if self.lengths is None else [length for length in lengths if length not in self.lengths]


def evaluations_of(results: Iterable[MethodResult]) -> list[Evaluation]:
    """All evaluations, methods in order, each followed by its variants."""
    return [evaluation for result in results for evaluation in result.evaluations]


class RunFolder:
    """Paths of a run, and reading and writing what lies there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.json"
        self.config_file = root / "config.yaml"
        self.sessions = root / "sessions.json"
        self.tokenizer = root / "tokenizer.json"
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

    def evaluation(self, method: str, variant: str | None, protocol: str) -> Path:
        return self.root / method / "evaluation" / f"{variant or 'plain'}-{protocol}.json"

    def inside(self, method: str, variant: str | None) -> Path:
        return self.root / method / ("inside" if variant is None else f"inside-{variant}")

    def logs(self, method: str) -> Path:
        return self.root / method / "tensorboard"

    def held(self) -> AbstractContextManager[None]:
        """While entered, no other process writes here; `LabError` if one does already."""
        return locked(self.root)

    def refuse_existing(self) -> None:
        """Raise `LabError` if anything is here already, other than what a process killed in `begin` left."""
        if self.root.exists() and (not self.root.is_dir() or not all(map(is_partial, self.root.iterdir()))):
            command = shlex.join(["alibi", "extrapolate", "--resume", "--output", str(self.root)])
            raise LabError(
                "output",
                expected="a new or empty folder",
                got=f"{self.root}, which exists",
                remedy=f"choose another, or continue that run: {command}",
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
            # First, because a folder counts as a run from then on, and without the other file it can be continued.
            write_json(self.config, start)
            write_config_file(self.config_file, config)
        except OSError as error:
            got = f"{self.root} ({error.strerror})"
            remedy = "choose another"
            raise LabError("output", expected="a folder that can be written", got=got, remedy=remedy) from None

    def complete_beginning(self, config: ExperimentConfig) -> None:
        """Write what a process killed in `begin` did not come to write."""
        if not self.config_file.is_file():
            write_config_file(self.config_file, config)

    def read_sessions(self) -> list[dict[str, Any]]:
        """Where each process worked on the run, in their order; the environment of the beginning alone of a run that
        was never continued, or by a version that did not keep them."""
        if not self.sessions.is_file():
            return [self.read_start()["environment"]]
        remedy = "delete this file: where it was continued is then not known"
        found = self._read_part(self.sessions, remedy).get("sessions")
        if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
            raise _not_as_written(self.sessions, remedy)
        return found

    def write_sessions(self, sessions: Sequence[Mapping[str, Any]]) -> None:
        write_json(self.sessions, {"schema_version": SCHEMA_VERSION, "sessions": list(sessions)})

    def begin_session(self, config: ExperimentConfig) -> None:
        """Write down that this process goes on with the run, and where."""
        self.write_sessions([*self.told_sessions(config), {**environment(config.device), "methods": []}])

    def told_sessions(self, config: ExperimentConfig) -> list[dict[str, Any]]:
        """As `read_sessions`, with what the one process of a run worked on."""
        sessions = self.read_sessions()
        if not self.sessions.is_file():
            # All that lies here is of that one.
            begun = [method for method in config.methods if (self.root / method).is_dir()]
            sessions = [{**sessions[0], "methods": begun}]
        return sessions

    def works_on(self, method: str) -> None:
        """Write down which method this process goes on with; of a run of one process it is all of them."""
        if self.sessions.is_file():
            *earlier, last = self.read_sessions()
            self.write_sessions([*earlier, {**last, "methods": [*last.get("methods", []), method]}])

    def finished(self, config: ExperimentConfig) -> list[str]:
        """Methods of which nothing is left to compute."""
        return [m for m in config.methods if self.result(m).exists() and self.weights(m).is_file()]

    def unfinished(self, config: ExperimentConfig) -> bool:
        """Whether anything is left to compute."""
        return len(self.finished(config)) < len(config.methods)

    def write_documents(self, corpus: Corpus) -> None:
        documents = {"train": corpus.train_documents, "held_out": corpus.held_out_documents}
        counts = {"passed_over": dict(corpus.passed_over)}
        write_json(self.documents, {"schema_version": SCHEMA_VERSION, **documents, **counts})
        if corpus.encoder.serialized is not None:
            write_text(self.tokenizer, corpus.encoder.serialized)

    def read_config(self, *, older: bool = False) -> ExperimentConfig:
        """The configuration the run was started with; ``older`` as in `read_start`."""
        start = self.read_start(older=older)
        refuse_later_settings(start["config"], self.config, [start.get("environment", {})])
        return make_config(start["config"])

    def changes_of_environment(self, config: ExperimentConfig) -> list[str]:
        """In words, what is not as it was when the run was last worked on, and bears on the last bits of a result."""
        return differences(self.read_sessions()[-1], environment(config.device))

    def refuse_changed_corpus(self, corpus: Corpus) -> None:
        """Raise `LabError` unless the corpus is, byte for byte, that of the beginning."""
        start = self.read_start(older=True)
        self._require_parts(start, "corpus")
        started_with = start["corpus"]["fingerprint"]
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
        try:
            return MethodResult.model_validate(self._read_part(path)["result"]).judged(self.read_config())
        except ValidationError as error:
            refuse_later_fields(error, path, self.read_sessions())
            raise _not_as_written(path) from None
        except KeyError:
            raise _not_as_written(path) from None

    def read_results(self) -> list[MethodResult]:
        """Of a complete run.

        Raises:
            LabError: if it is not complete.
        """
        methods = self.read_config().methods
        found = [result for method in methods if (result := self.read_result(method)) is not None]
        if len(found) < len(methods):
            remedy = f"complete it with: alibi extrapolate --resume --output {self.root}"
            got = f"{self.root}, with {len(found)} of {len(methods)} methods"
            raise LabError("run", expected="a complete run", got=got, remedy=remedy)
        return found

    def write_result(self, result: MethodResult) -> None:
        value = {"schema_version": SCHEMA_VERSION, "result": result.model_dump(mode="json")}
        write_json(self.result(result.method), value)

    def write_train_seconds(self, method: str, seconds: float) -> None:
        write_json(self._trained(method), {"schema_version": SCHEMA_VERSION, "seconds": seconds})

    def read_train_seconds(self, method: str) -> float:
        """How long training took; 0 where that was not kept."""
        path = self._trained(method)
        if not path.exists():
            return 0.0
        remedy = "delete this file and --resume: how long training took is then not known, and nothing else is lost"
        seconds = self._read_part(path, remedy).get("seconds")
        if not isinstance(seconds, int | float):
            raise _not_as_written(path, remedy)
        return float(seconds)

    def _trained(self, method: str) -> Path:
        return self.root / method / "trained.json"

    def read_evaluation(self, method: str, variant: str | None, protocol: str) -> Kept:
        """What was evaluated before, as `write_evaluation` was given it; nothing where nothing was."""
        path = self.evaluation(method, variant, protocol)
        if not path.exists():
            return Kept()
        value = {"lengths": None, **self._read_part(path)}
        kind = RecallScore if protocol == "recall" else Score
        try:
            scores = tuple(kind.model_validate(score) for score in value["scores"])
            return Kept(scores=scores, seconds=value["seconds"], lengths=value["lengths"])
        except ValidationError as error:
            refuse_later_fields(error, path, self.read_sessions())
            raise _not_as_written(path) from None
        except (KeyError, TypeError):
            raise _not_as_written(path) from None

    def write_evaluation(self, method: str, variant: str | None, protocol: str, kept: Kept) -> None:
        path = self.evaluation(method, variant, protocol)
        write_json(path, {"schema_version": SCHEMA_VERSION, **kept.model_dump(mode="json")})

    def forget_scores(self, method: str) -> None:
        """Remove the scores of weights that are no more."""
        for path in (self.results, self.result(method)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.root / method / "evaluation", ignore_errors=True)

    def _read_part(self, path: Path, remedy: str = _AGAIN) -> dict[str, Any]:
        try:
            value: dict[str, Any] = read_json(path)
            if value.get("schema_version") == SCHEMA_VERSION:
                return value
        except (OSError, ValueError, AttributeError):
            pass
        raise _not_as_written(path, remedy)

    def write_results(self, results: list[MethodResult]) -> None:
        whole = {**self.read_start(), "sessions": self.read_sessions()}
        write_json(self.results, {**whole, "results": [result.model_dump(mode="json") for result in results]})

    def read_start(self, *, older: bool = False) -> dict[str, Any]:
        """What `begin` wrote: configuration, corpus and environment.

        With ``older``, for those who only want the trained weights, earlier schemas are read as well: what else lies in
        such a folder is in forms that this version does not continue.
        """
        if not self.config.is_file():
            got = f"{self.root}, which {'has no config.json' if self.root.is_dir() else 'does not exist'}"
            remedy = "name one that alibi extrapolate wrote"
            raise LabError("run", expected="the folder of a run", got=got, remedy=remedy)
        expected = "a config.json as it was written"
        try:
            start: Any = read_json(self.config)
        except ValueError as error:
            got = f"{self.config} ({error})"
            raise LabError("run", expected=expected, got=got, remedy=self._restoring()) from None
        if not isinstance(start, dict):
            got = f"{self.config}, which holds something else"
            raise LabError("run", expected=expected, got=got, remedy=self._restoring())
        if older:
            start = brought_up_to_date(start)
        version = start.get("schema_version")
        expected = f"a run folder of schema version {SCHEMA_VERSION}"
        if version is None and "model_type" in start:
            got, remedy = f"{self.root}, a model of Transformers", "name one that alibi extrapolate wrote"
            raise LabError("run", expected=expected, got=got, remedy=remedy)
        if version != SCHEMA_VERSION:
            remedy = "use the version of alibi-attention that started it"
            if version in OLDER:
                remedy += "; of this one alibi dissect, generate and export do with its weights"
            raise LabError("run", expected=expected, got=f"version {version} in {self.root}", remedy=remedy)
        self._require_parts(start, *(("config",) if older else _PARTS))
        return dict(start)

    def _require_parts(self, start: Mapping[str, Any], *names: str) -> None:
        """Raise `LabError` unless these parts of a ``config.json`` are there, and the corpus has its fingerprint."""
        for name in names:
            part = start.get(name)
            if not isinstance(part, dict) or (name == "corpus" and not isinstance(part.get("fingerprint"), str)):
                got = f"{self.config}, which lacks its {'fingerprint of the corpus' if name == 'corpus' else name}"
                expected = "a config.json as it was written"
                raise LabError("run", expected=expected, got=got, remedy=self._restoring())

    def _restoring(self) -> str:
        """What mends a damaged ``config.json``: all else of the run, the trained models too, is as good as it was."""
        instead = f"; alibi report takes {self.results} instead" if self.results.is_file() else ""
        return f"restore it from a copy: nothing else of the run is lost{instead}"


def _not_as_written(path: Path, remedy: str = _AGAIN) -> LabError:
    return LabError("run", expected="a file as this version writes it", got=str(path), remedy=remedy)

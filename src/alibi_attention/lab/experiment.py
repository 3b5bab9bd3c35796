"""One experiment from beginning to end, or from where it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alibi_attention.lab.checkpoint import save_tensors
from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.corpus import Corpus, load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.evaluation import evaluate, segment_starts
from alibi_attention.lab.figures import save_figures
from alibi_attention.lab.files import write_text
from alibi_attention.lab.interruption import Interruption
from alibi_attention.lab.model import build_decoder
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.runs import SCHEMA_VERSION, MethodResult, RunFolder
from alibi_attention.lab.tables import markdown_table
from alibi_attention.lab.training import train


def start_experiment(config: ExperimentConfig, root: Path, progress: Progress | None = None) -> list[MethodResult]:
    """Train and evaluate every method of a configuration in a new run folder.

    Args:
        config: of the experiment.
        root: of the run folder; new or empty.
        progress: told of what goes on; silent by default.

    Returns:
        One result per method, in the order of the configuration. The folder then holds them, too (see `runs`).

    Raises:
        LabError: for input that cannot be used, before anything is written.
        RunInterrupted: after Ctrl-C or SIGTERM; `resume_experiment` continues.
    """
    folder = RunFolder(root)
    folder.refuse_existing()
    _check_device(config)
    corpus = load_corpus(config)
    folder.begin(config, corpus)
    return _run(folder, config, corpus, progress or Progress())


def resume_experiment(
    root: Path, progress: Progress | None = None, *, expected: Mapping[str, Any] | None = None
) -> list[MethodResult]:
    """Continue an interrupted run to the result it would have had; of a complete run only the figure is redrawn.

    On one machine with one number of threads the weights and scores are the same to the last bit.

    Args:
        root: of the run folder.
        progress: told of what goes on; silent by default.
        expected: settings the caller believes the run has.

    Raises:
        LabError: if there is no run, its settings are not as expected, or its corpus has changed.
        RunInterrupted: as in `start_experiment`.
    """
    folder = RunFolder(root)
    config = folder.read_config()
    for name, value in (expected or {}).items():
        started_with = getattr(config, name)
        if value != started_with:
            raise LabError(
                name,
                expected=f"{started_with}, as the run in {root} was started with",
                got=f"{value}",
                remedy="leave it out to continue that run, or start a new one in another folder",
            )
    _check_device(config)
    corpus = load_corpus(config)
    folder.refuse_changed_corpus(corpus)
    return _run(folder, config, corpus, progress or Progress())


def _check_device(config: ExperimentConfig) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        got = "cuda, which torch does not see here"
        raise LabError("device", expected="a device of this machine", got=got, remedy="use cpu")


def _run(folder: RunFolder, config: ExperimentConfig, corpus: Corpus, progress: Progress) -> list[MethodResult]:
    results = []
    folder.write_documents(corpus)
    with progress, Interruption() as stop:
        size = f"{len(corpus.train):,} + {len(corpus.held_out):,} bytes"
        progress.say(f"Corpus: {corpus.source}, {size}; {corpus.split}.")
        for method in config.methods:
            result = folder.read_result(method)
            if result is None:
                result = _run_method(folder, config, corpus, method, progress, stop)
                folder.write_result(result)
                # What it was kept for is done; the weights stay.
                folder.checkpoint(method).unlink(missing_ok=True)
            results.append(result)
    write_text(folder.table, markdown_table(results))
    save_figures(results, config, folder.figures)
    folder.write_results(results)
    return results


def _run_method(
    folder: RunFolder, config: ExperimentConfig, corpus: Corpus, method: str, progress: Progress, stop: Interruption
) -> MethodResult:
    decoder = build_decoder(config, method)
    title = decoder.position.title
    train_seconds = train(
        decoder,
        corpus.train,
        config,
        checkpoint=folder.checkpoint(method),
        log_folder=folder.logs(method),
        progress=progress,
        stop=stop,
        label=f"{title}: training",
    )
    header = {"schema_version": SCHEMA_VERSION, "method": method, **decoder.position.shape._asdict()}
    save_tensors(folder.weights(method), decoder.state_dict(), header)
    decoder.to(config.device).eval()

    count = len(segment_starts(len(corpus.held_out), config.segment_length, config.eval_bytes))
    total = count * config.segment_length * len(config.eval_lengths)
    progress.start(f"{title}: evaluating", total=total)

    def tick(scored: int) -> None:
        progress.advance(scored)
        stop.check()

    began = time.perf_counter()
    scores = evaluate(decoder, corpus.held_out, config.eval_lengths, config.eval_bytes, tick=tick)
    eval_seconds = time.perf_counter() - began
    progress.say(f"{title}: trained in {train_seconds:.0f} s, evaluated in {eval_seconds:.0f} s.")
    return MethodResult(
        method=method,
        title=title,
        parameters=sum(parameter.numel() for parameter in decoder.parameters()),
        trained_bytes=config.steps * config.batch_size * config.length,
        scores=tuple(scores),
        train_seconds=round(train_seconds, 3),
        eval_seconds=round(eval_seconds, 3),
    )

"""One experiment from beginning to end, or from where it was interrupted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from alibi_attention.lab.checkpoint import load_tensors, load_weights, save_tensors
from alibi_attention.lab.config import EVALUATION_SETTINGS, ExperimentConfig, Protocol, make_config
from alibi_attention.lab.corpus import load_corpus
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.figures import save_figures
from alibi_attention.lab.files import is_partial, replacing, write_text
from alibi_attention.lab.interruption import Interruption
from alibi_attention.lab.lock import locked
from alibi_attention.lab.model import Decoder, build_decoder
from alibi_attention.lab.passages import RecallMixer
from alibi_attention.lab.positions import full_title, split_name
from alibi_attention.lab.preconditions import (
    check_machine,
    check_models,
    check_recall,
    refuse_idle,
    refuse_output_in_text,
    refuse_unreachable,
    remarks,
)
from alibi_attention.lab.progress import Progress
from alibi_attention.lab.protocols import held_out_of, protocol_lengths, protocol_work, run_protocol
from alibi_attention.lab.runs import Kept, MethodResult, RunFolder
from alibi_attention.lab.schema import SCHEMA_VERSION
from alibi_attention.lab.scores import Evaluation
from alibi_attention.lab.streams import Corpus
from alibi_attention.lab.tables import markdown_table
from alibi_attention.lab.training import train
from alibi_attention.lab.verdicts import judge


def start_experiment(
    config: ExperimentConfig,
    root: Path,
    progress: Progress | None = None,
    *,
    stop: Interruption | None = None,
    heading: str = "",
) -> list[MethodResult]:
    """Train and evaluate every method of a configuration in a new run folder.

    Args:
        config: of the experiment.
        root: of the run folder; new or empty.
        progress: told of what goes on; silent by default.
        stop: asked whether to go on; Ctrl-C and SIGTERM by default.
        heading: said first, once nothing is refused any more.

    Returns:
        One result per method, in the order of the configuration. The folder then holds them, too (see `runs`).

    Raises:
        LabError: for input that cannot be used, before anything is written.
        RunInterrupted: after Ctrl-C or SIGTERM; `resume_experiment` continues.
    """
    folder = RunFolder(root)
    folder.refuse_existing()
    refuse_output_in_text(config, root)
    check_machine(config)
    refuse_idle(config)
    refuse_unreachable(config)
    progress = progress or Progress()
    corpus = load_corpus(config, progress)
    check_models(config, corpus)
    check_recall(config, corpus)
    with folder.held():
        # Once more: another process may have begun and ended in the meantime.
        folder.refuse_existing()
        folder.begin(config, corpus)
        _say(progress, heading)
        return _run(folder, config, corpus, progress, stop)


def resume_experiment(
    root: Path,
    progress: Progress | None = None,
    *,
    expected: Mapping[str, Any] | None = None,
    stop: Interruption | None = None,
    heading: str = "",
) -> list[MethodResult]:
    """Continue an interrupted run to the result it would have had; of a complete run the weights are checked and the
    figure is redrawn.

    A model whose weights are missing is trained again, complete or not, and its scores are made anew. Damaged ones are
    refused.

    On one machine with one number of threads, the same packages and the same sources of this one, the weights and
    scores are the same to the last bit; if any of these is not what it was when the run was last worked on, that is
    said, and kept (`RunFolder.read_sessions`).

    Args:
        root: of the run folder.
        progress: told of what goes on; silent by default.
        expected: settings the caller believes the run has.
        stop, heading: as in `start_experiment`.

    Raises:
        LabError: if there is no run, its settings are not as expected, its corpus has changed, or weights are damaged.
        RunInterrupted: as in `start_experiment`.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        got = f"{root}, which {'has no config.json' if folder.root.is_dir() else 'does not exist'}"
        remedy = "name the folder of an interrupted run with --output, or start one without --resume"
        raise LabError("output", expected="the folder of a run", got=got, remedy=remedy)
    config = read_as_started(folder, expected or {})
    if folder.unfinished(config):
        check_machine(config, trains=not all(folder.weights(method).is_file() for method in config.methods))
    # Of the others the weights are read when they are evaluated.
    _check_weights(folder, folder.finished(config))
    progress = progress or Progress()
    corpus = load_corpus(config, progress)
    folder.refuse_changed_corpus(corpus)
    with folder.held():
        _say(progress, heading)
        folder.complete_beginning(config)
        if folder.unfinished(config):
            changed = folder.changes_of_environment(config)
            if changed:
                progress.say(f"Last worked on with other means: {', '.join(changed)}. "
                             "It goes on, but the last bits may come out otherwise.")  # fmt: skip
            folder.begin_session(config)
        return _run(folder, config, corpus, progress, stop)


def _say(progress: Progress, heading: str) -> None:
    if heading:
        progress.say(heading)


def read_as_started(folder: RunFolder, expected: Mapping[str, Any]) -> ExperimentConfig:
    """The configuration of a run that was started.

    Raises:
        LabError: for settings that are expected and are not its own.
    """
    config = folder.read_config()
    wanted = make_config({**config.model_dump(), **expected})
    for name in expected:
        started_with, value = getattr(config, name), getattr(wanted, name)
        if value != started_with:
            raise LabError(
                name,
                expected=f"{started_with}, as the run in {folder.root} was started with",
                got=f"{value}",
                remedy="leave it out to continue that run, or start a new one in another folder",
            )
    return config


def reevaluate_experiment(
    source: Path, root: Path, changes: Mapping[str, Any], progress: Progress | None = None
) -> list[MethodResult]:
    """Evaluate the trained models of a run once more, otherwise, without training them again.

    Args:
        source: folder of the run.
        root: of a new run, which gets the weights and the evaluations; it is resumed like any other.
        changes: settings of evaluation: ``EVALUATION_SETTINGS``.
        progress: told of what goes on; silent by default.

    Raises:
        LabError: if a model was not trained, a setting is not one of evaluation, or its value cannot be used.
    """
    old = RunFolder(source)
    before = old.read_config()
    for name in changes:
        if name not in EVALUATION_SETTINGS:
            remedy = f"change {', '.join(EVALUATION_SETTINGS)} only, or train anew"
            raise LabError(name, expected="a setting of evaluation", got="this one", remedy=remedy)
    config = make_config({**before.model_dump(), **changes})
    folder = RunFolder(root)
    if root.name in ("", ".."):
        got = f"{root}, which is no name of one"
        raise LabError("output", expected="a new folder by its name", got=got, remedy="name one, such as runs/again")
    folder.refuse_existing()
    refuse_output_in_text(config, root)
    check_machine(config, trains=False)
    refuse_idle(config, changes)
    refuse_unreachable(config)
    for method in config.methods:
        if not old.weights(method).is_file():
            remedy = f"complete it with: alibi extrapolate --resume --output {source}"
            raise LabError("run", expected=f"a run with {method} trained", got=f"{source}", remedy=remedy)
    _check_weights(old, config.methods)
    progress = progress or Progress()
    corpus = load_corpus(config, progress)
    old.refuse_changed_corpus(corpus)
    check_recall(config, corpus)
    with _taking_weights(old, root, config, corpus):
        folder.complete_beginning(config)
        return _run(folder, config, corpus, progress)


def _check_weights(folder: RunFolder, methods: Iterable[str]) -> None:
    """Raise `LabError` for weights that are damaged: better now than in a copy, or unsaid beside their scores."""
    for method in methods:
        load_tensors(folder.weights(method))


@contextmanager
def _taking_weights(
    old: RunFolder, root: Path, config: ExperimentConfig, corpus: Corpus
) -> Iterator[None]:  # fmt: skip
    """Make a run folder with the weights of another, all or nothing, and hold it while entered.

    It is made beside its place: half of it in its place would be neither new nor a run that can be continued, or one
    that trains what it has not got. The place of a link is where it leads.
    """
    place = root.resolve()
    made = RunFolder(place.with_name(f".{place.name}.partial"))
    with made.held():
        try:
            for leftover in made.root.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            for method in config.methods:
                made.write_train_seconds(method, old.read_train_seconds(method))
                with replacing(made.weights(method)) as temporary:
                    shutil.copyfile(old.weights(method), temporary)
            made.begin(config, corpus)
            # It was trained by those who worked on the other.
            made.write_sessions([*old.told_sessions(config), made.read_start()["environment"]])
            _move(made.root, place)
        except BaseException:
            # Half of it is of no use, and of a full disk it takes room. Only a process that is killed leaves it.
            shutil.rmtree(made.root, ignore_errors=True)
            raise
        yield


def _move(made: Path, place: Path) -> None:
    """Put a folder where there is none or an empty one; never in the place of anything that may be wanted.

    Raises:
        LabError: if there is something, another process works there, or the system does not allow it.
    """
    with locked(place):
        RunFolder(place).refuse_existing()
        try:
            for leftover in filter(is_partial, place.iterdir()):
                leftover.unlink()
            # Refuses what came a moment ago.
            place.rmdir()
            made.replace(place)
        except OSError as error:
            got = f"{place} ({error.strerror})"
            remedy = "name another; nothing in it was changed"
            raise LabError("output", expected="an empty folder that can be replaced", got=got, remedy=remedy) from None


def _run(
    folder: RunFolder, config: ExperimentConfig, corpus: Corpus, progress: Progress, stop: Interruption | None = None
) -> list[MethodResult]:
    results = []
    folder.write_documents(corpus)
    with progress, stop or Interruption() as stop:
        unit = "bytes" if config.tokenizer == "bytes" else "tokens"
        size = f"{len(corpus.train):,} + {len(corpus.held_out):,} {unit}"
        progress.say(f"Corpus: {corpus.source}, {size}; {corpus.division}.")
        for remark in remarks(config, corpus, trains=not all(folder.weights(m).is_file() for m in config.methods)):
            progress.say(remark)
        mixer = RecallMixer(corpus.encoder, config.recall_share, config.length)
        for method in config.methods:
            result = folder.read_result(method)
            if result is not None and not folder.weights(method).is_file():
                progress.say(f"{result.title}: its weights are missing; it is trained and evaluated again.")
                result = None
            if result is None:
                folder.works_on(method)
                result = _run_method(folder, config, corpus, method, mixer, progress, stop)
                folder.write_result(result)
            # What it was kept for is done; the weights stay. A process that was killed may have left it.
            folder.checkpoint(method).unlink(missing_ok=True)
            results.append(result)
    write_text(folder.table, markdown_table(results))
    save_figures(results, config, folder.figures)
    folder.write_results(results)
    return results


def _run_method(
    folder: RunFolder, config: ExperimentConfig, corpus: Corpus, method: str, mixer: RecallMixer,
    progress: Progress, stop: Interruption,
) -> MethodResult:  # fmt: skip
    decoder = build_decoder(config, method, vocabulary=corpus.encoder.vocabulary)
    trains = not folder.weights(method).is_file()
    train_seconds = _train_method(folder, config, corpus, decoder, method, mixer, progress, stop)
    decoder.to(config.device).eval()
    evaluations, eval_seconds = [], 0.0
    variants = [name for name in config.variants if split_name(name)[0] == method]
    for name in (method, *variants):
        evaluation, seconds = _evaluate(folder, config, corpus, decoder, name, progress, stop)
        evaluations.append(evaluation)
        eval_seconds += seconds
    title = decoder.position.title
    trained = f"trained in {_duration(train_seconds)}, " if trains else ""
    progress.say(f"{title}: {trained}evaluated in {_duration(eval_seconds)}.")
    return MethodResult(
        method=method,
        title=title,
        parameters=_count(decoder),
        position_parameters=_count(decoder.position),
        trained_tokens=config.steps * config.accumulate * config.batch_size * config.length,
        evaluations=tuple(evaluations),
        train_seconds=round(train_seconds, 3),
        eval_seconds=round(eval_seconds, 3),
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1.0 else "less than a second"


def _train_method(
    folder: RunFolder, config: ExperimentConfig, corpus: Corpus, decoder: Decoder, method: str, mixer: RecallMixer,
    progress: Progress, stop: Interruption,
) -> float:  # fmt: skip
    """Train a decoder in place, or take the weights it came to; seconds of training."""
    path = folder.weights(method)
    if path.is_file():
        tensors, _ = load_tensors(path)
        load_weights(decoder, tensors, path)
        return folder.read_train_seconds(method)
    seconds = train(
        decoder,
        corpus.train,
        config,
        mixer=mixer,
        checkpoint=folder.checkpoint(method),
        log_folder=folder.logs(method),
        progress=progress,
        stop=stop,
        label=f"{decoder.position.title}: training",
    )
    header = {"schema_version": SCHEMA_VERSION, "method": method, **decoder.position.shape._asdict()}
    header |= {"vocabulary": corpus.encoder.vocabulary, "tokenizer": config.tokenizer}
    # Of a run whose weights were lost. There are none now, so that whoever is killed here comes by again.
    folder.forget_scores(method)
    # Apart from the weights, which are the same on every repetition.
    folder.write_train_seconds(method, seconds)
    save_tensors(path, decoder.state_dict(), header)
    return seconds


def _evaluate(
    folder: RunFolder, config: ExperimentConfig, corpus: Corpus, decoder: Decoder, name: str,
    progress: Progress, stop: Interruption,
) -> tuple[Evaluation, float]:  # fmt: skip
    """Every protocol for one way of using a decoder."""
    found: dict[str, Any] = {}
    seconds = 0.0
    for protocol in config.protocols:
        kept = _evaluate_protocol(folder, config, corpus, decoder, name, protocol, progress, stop)
        found[protocol] = kept.scores
        seconds += kept.seconds
    found |= {"name": name, "title": full_title(name), "objective": config.objective}
    found |= {"unigram_bits": held_out_of(corpus).unigram_bits()}
    return judge(Evaluation.model_validate(found), config), seconds


def _evaluate_protocol(
    folder: RunFolder, config: ExperimentConfig, corpus: Corpus, decoder: Decoder, name: str, protocol: Protocol,
    progress: Progress, stop: Interruption,
) -> Kept:  # fmt: skip
    """All lengths of a protocol, each kept once it is evaluated; those evaluated before a pause are read."""
    method, variant = split_name(name)
    kept = folder.read_evaluation(method, variant, protocol)
    missing = kept.missing(protocol_lengths(protocol, config))
    if not missing:
        return kept

    def tick(tokens: int) -> None:
        progress.advance(tokens)
        stop.check()

    held_out = held_out_of(corpus)
    total = protocol_work(protocol, held_out, config)
    left = protocol_work(protocol, held_out, config, missing)
    progress.start(f"{full_title(name)}: {protocol}", total=total, done=total - left)
    began = time.perf_counter()
    for length, scores in run_protocol(protocol, decoder, corpus, config, variant, tick, missing):
        seconds, began = kept.seconds + time.perf_counter() - began, time.perf_counter()
        kept = Kept(scores=(*kept.scores, *scores), seconds=seconds, lengths=(*(kept.lengths or ()), length))
        folder.write_evaluation(method, variant, protocol, kept)
    return kept


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

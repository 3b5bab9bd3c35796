"""Which documents are trained on and which are held out, and how that was decided, in words."""

from __future__ import annotations

from collections import Counter

from alibi_attention.lab.config import ExperimentConfig
from alibi_attention.lab.documents import Document, split_documents, without_copies
from alibi_attention.lab.duplicates import near_duplicates
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.progress import Progress


def divided_as_given(
    documents: list[Document], to_hold_out: list[Document], config: ExperimentConfig, progress: Progress
) -> tuple[list[Document], list[Document], str]:
    """The user's own division, less training documents that are held out as well; what else is alike is said."""
    held_out, documents = without_copies(to_hold_out), without_copies(documents)
    texts = {document.text for document in held_out}
    train = [document for document in documents if document.text not in texts]
    if not train:
        if config.dataset:
            remedy = "choose another split, or another to hold out"
            raise LabError("dataset_split", expected="text that is not held out", got="none", remedy=remedy)
        got = f"{', '.join(config.held_out_text)}, which has all of it"
        remedy = "hold out other text, or leave it out to hold out documents of --text"
        raise LabError("held_out_text", expected="text that leaves some of --text to train on", got=got, remedy=remedy)
    if config.dataset:
        split = f"as the data set has it: {len(train)} documents of {config.dataset_split} for training, "
        split += f"{len(held_out)} of {config.dataset_held_out} held out"
    else:
        split = f"as given: {len(train)} documents for training, {len(held_out)} held out"
    if len(train) < len(documents):
        split += f"; {len(documents) - len(train)} of the former left out, being held out as well"
    groups = near_duplicates([document.text for document in [*train, *held_out]], progress)
    trained = set(groups[: len(train)])
    alike = sum(group in trained for group in groups[len(train) :])
    if alike:
        split += f"; {alike} of the latter are near-duplicates of training documents"
    return train, held_out, split


def divided(
    documents: list[Document], config: ExperimentConfig, progress: Progress
) -> tuple[list[Document], list[Document], str]:
    """By document, near-duplicates together; a single document is cut once."""
    if len(documents) == 1:
        name, text = documents[0].name, documents[0].text
        cut = len(text) - round(len(text) * config.held_out_share)
        while 0 < cut < len(text) and text[cut] & 0xC0 == 0x80:
            cut -= 1  # never inside a character
        split = f"one document, cut once: its first {cut:,} bytes are for training, the rest is held out"
        return [Document(name, text[:cut])], [Document(name, text[cut:])], split
    groups = near_duplicates([document.text for document in documents], progress)
    if len(set(groups)) == 1:
        train, held_out = split_documents(documents, config.held_out_share)
        apart = "; all are near-duplicates of each other"
    else:
        train, held_out = split_documents(documents, config.held_out_share, groups)
        alike = sum(size for size in Counter(groups).values() if size > 1)
        apart = f"; near-duplicates ({alike} documents) kept together" if alike else ""
    return train, held_out, f"by document: {len(train)} for training, {len(held_out)} held out{apart}"

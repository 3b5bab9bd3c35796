"""A tokenizer whose tokens are the bytes of the text."""

from __future__ import annotations

from pathlib import Path

from alibi_attention.integrations.export.folder import write_json

SEPARATOR = 0
"""The byte between documents; it starts, ends and pads."""


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies, as GPT-2 introduced them.

    Printable bytes of Latin-1 stand for themselves; the others are, in their order, the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json: token n is byte n of the text in UTF-8, without exception.

    NUL, which text does not hold, is the special token. It is spelled as itself, so that no printable text is
    mistaken for it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    nul = "\0"
    symbols = byte_symbols()
    symbols[SEPARATOR] = nul
    tokenizer = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(nul, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": nul,
            "eos_token": nul,
            "pad_token": nul,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
        },
    )
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": SEPARATOR, "eos_token_id": SEPARATOR, "pad_token_id": SEPARATOR},
    )

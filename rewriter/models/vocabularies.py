"""Real tokenizers made on the spot: every text can be encoded, one byte or character at a time, without a download.

The published vocabularies are not ours to ship, and with random weights the merges would carry no meaning. What
matters to a pipeline is kept: the class, the number of tokens, the special tokens and where they stand, the padding.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rewriter.models.configurations import Vocabulary


def new_tokenizer(vocabulary: Vocabulary) -> Any:
    """A `CLIPTokenizer` or a T5 tokenizer. Raises ValueError for a vocabulary too small to hold single bytes."""
    makers = {"clip": _clip, "t5": _t5}
    with tempfile.TemporaryDirectory(prefix="rewriter-tokenizer-") as folder:
        return makers[vocabulary.kind](vocabulary, Path(folder))


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes of byte-level BPE, in byte order.

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _clip(vocabulary: Vocabulary, folder: Path) -> Any:
    from transformers import CLIPTokenizer

    symbols = _byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += _unused(vocabulary.size - len(tokens) - 2, vocabulary)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    padding = vocabulary.padding or "<|endoftext|>"
    return CLIPTokenizer.from_pretrained(
        str(folder), local_files_only=True, model_max_length=vocabulary.length, pad_token=padding
    )


def _t5(vocabulary: Vocabulary, folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    characters = ["\u2581", *(chr(code) for code in (*range(33, 127), *range(161, 256)))]
    sentinels = [f"<extra_id_{index}>" for index in range(99, -1, -1)]
    unused = _unused(vocabulary.size - len(special) - len(characters) - len(sentinels), vocabulary)
    pieces = [*special, *characters, *unused, *sentinels]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return T5TokenizerFast.from_pretrained(
        str(folder),
        local_files_only=True,
        model_max_length=vocabulary.length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def _unused(count: int, vocabulary: Vocabulary) -> list[str]:
    if count < 0:
        raise ValueError(f"a {vocabulary.kind} vocabulary of {vocabulary.size} tokens is {-count} too small")
    return [f"<|unused-{index}|>" for index in range(count)]

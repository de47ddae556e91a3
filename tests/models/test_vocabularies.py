"""Made-up vocabularies behave like the real ones where a pipeline looks."""

from __future__ import annotations

import pytest

from rewriter.models.configurations import Vocabulary
from rewriter.models.published import CLIP_VOCABULARY
from rewriter.models.vocabularies import new_tokenizer

TEXT = "a lighthouse on a cliff"


def test_clip_has_the_published_size_and_special_tokens() -> None:
    tokenizer = new_tokenizer(CLIP_VOCABULARY)
    assert len(tokenizer) == 49408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)
    assert tokenizer.pad_token_id == 49407
    assert tokenizer.model_max_length == 77


def test_clip_encodes_any_text_without_unknowns() -> None:
    tokenizer = new_tokenizer(Vocabulary(kind="clip", size=514, length=77))
    ids = tokenizer("snow ☃ é\n1!", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77
    assert ids[0] == 512
    assert ids.count(513) == 77 - ids.index(513)
    assert tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True).strip() == TEXT


def test_clip_pads_with_another_token_where_the_model_does() -> None:
    tokenizer = new_tokenizer(Vocabulary(kind="clip", size=514, length=8, padding="!"))
    ids = tokenizer("a", padding="max_length").input_ids
    assert ids[-1] == tokenizer.convert_tokens_to_ids("!")
    assert ids[-1] != 513


def test_t5_encodes_and_decodes() -> None:
    tokenizer = new_tokenizer(Vocabulary(kind="t5", size=32128, length=512))
    assert len(tokenizer) == 32128
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    ids = tokenizer(TEXT, padding="max_length", max_length=64).input_ids
    assert ids.index(1) == len(ids) - ids.count(0) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_a_vocabulary_that_is_too_small_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"a {kind} vocabulary of 100 tokens is .* too small"):
        new_tokenizer(Vocabulary(kind=kind, size=100, length=77))

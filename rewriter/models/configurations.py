"""How an architecture is written down: its parts, their options, and what to call it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One component of a pipeline: a class of diffusers or transformers and its configuration."""

    kind: str
    options: Options = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer to be made: `clip` or `t5`, the number of tokens and the longest text."""

    kind: str
    size: int
    length: int
    padding: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything needed to build a pipeline with random weights and to call it."""

    summary: str
    pipeline: str
    denoiser: str
    networks: Mapping[str, Part]
    scheduler: Part
    tokenizers: Mapping[str, Vocabulary] = dataclasses.field(default_factory=dict)
    image_size: int | None = None  # of the feature extractor, where there is one
    arguments: Options = dataclasses.field(default_factory=dict)  # for the pipeline's constructor
    call: Options = dataclasses.field(default_factory=dict)  # for the pipeline call
    half: str = "float16"  # the dtype that the published model is used with on a GPU

    def narrow(
        self, *, summary: str, call: Options, tokenizers: int | None = None, **networks: Options
    ) -> Architecture:
        """A copy with other options for some networks, other call arguments and vocabularies of `tokenizers` tokens."""
        changed = {
            name: dataclasses.replace(part, options={**part.options, **networks.get(name, {})})
            for name, part in self.networks.items()
        }
        vocabularies = {
            name: dataclasses.replace(vocabulary, size=tokenizers or vocabulary.size)
            for name, vocabulary in self.tokenizers.items()
        }
        return dataclasses.replace(
            self, summary=summary, networks=changed, tokenizers=vocabularies, call={**self.call, **call}
        )

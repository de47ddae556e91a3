"""Attention by xformers, with its kernels that torch has not itself: flash-attn 2 and 3.

Importing this module adds the provider "xformers" where a CUDA GPU is visible. It raises ImportError, with the reason,
where xformers is absent, too old, does not load beside this torch, or has no kernels but torch's.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from packaging.version import Version

from rewriter.causes import described
from rewriter.ops.attention import Optional, swapped
from rewriter.ops.attention_backends import unsuited
from rewriter.ops.registry import Config, provide

# The first for torch 2.10 and newer.
_OLDEST = "0.0.34"
# Modules of `xformers.ops.fmha`, in xformers' own order; what else it has are torch's kernels, and some for decoding.
_OPERATORS = ("flash3", "flash")
# What the names of operators end in that call torch's kernels.
_OF_TORCH = "-pt"


class Xformers:
    """The operators of xformers that are there, by the modules that they are in.

    fmha: `xformers.ops.fmha`. operators: at least one.
    """

    def __init__(self, fmha: Any, operators: Mapping[str, Any]) -> None:
        self.fmha = fmha
        self.operators = dict(operators)
        # Hides the keys after each query, as `causal` does.
        self._later_hidden = fmha.attn_bias.LowerTriangularMask()

    def tokens_first(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        _mask: Optional,
        scale: float | None,
        causal: bool,
        *,
        operator: str | None = None,
    ) -> torch.Tensor:
        """`rewriter::attention_tokens` without a mask. operator: None is the one that xformers takes by itself."""
        chosen = None if operator is None else self.operators[operator]
        result: torch.Tensor = self.fmha.memory_efficient_attention_forward(
            q, k, v, self._later_hidden if causal else None, 0.0, scale, op=chosen
        )
        return result.contiguous()

    def heads_first(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **config: Any) -> torch.Tensor:
        """`rewriter::attention` without a mask."""
        return self.tokens_first(*swapped(q, k, v), *rest, **config).transpose(1, 2)

    def supports_tokens(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
    ) -> str | None:
        """Of `rewriter::attention_tokens`. Launches nothing."""
        if mask is not None:
            return "a mask: xformers has only torch's kernel for one"
        if any(each.dim() != 4 for each in (q, k, v)):
            return "other than [B, S, H, D]"
        reason = unsuited(*swapped(q, k, v), scale)
        if reason is not None:
            return reason
        refusals = self._refusals(q, k, v, scale, causal)
        return None if None in refusals.values() else "; ".join(f"{name}: {why}" for name, why in refusals.items())

    def supports(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> str | None:
        """Of `rewriter::attention`."""
        if any(each.dim() != 4 for each in (q, k, v)):
            return "other than [B, H, S, D]"
        return self.supports_tokens(*swapped(q, k, v), *rest)

    def configs_tokens(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _mask: Optional, scale: float | None, causal: bool
    ) -> Sequence[Config]:
        """The first operator that takes a call of `rewriter::attention_tokens`."""
        refusals = self._refusals(q, k, v, scale, causal)
        return [{"operator": name} for name, reason in refusals.items() if reason is None][:1]

    def configs(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Sequence[Config]:
        """The first operator that takes a call of `rewriter::attention`."""
        return self.configs_tokens(*swapped(q, k, v), *rest)

    def _refusals(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, causal: bool
    ) -> dict[str, str | None]:
        """By operator, why it does not take the call."""
        given = self.fmha.Inputs(
            query=q, key=k, value=v, attn_bias=self._later_hidden if causal else None, p=0.0, scale=scale
        )
        found = ((name, operator.not_supported_reasons(given)) for name, operator in self.operators.items())
        return {name: ", ".join(reasons) or None for name, reasons in found}


def bound() -> Xformers:
    """Imports xformers. Raises ImportError with the reason where it has nothing to offer."""
    try:
        with _quietly():
            package = importlib.import_module("xformers")
            fmha = importlib.import_module("xformers.ops.fmha")
            version = Version(package.__version__)
    # It imports and checks much of torch and of other packages, each of which fails in its own way.
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "xformers"
        raise ImportError("not installed" if absent else f"xformers does not load: {described(error)}") from error
    if version < Version(_OLDEST):
        raise ImportError(f"xformers {version}; expected {_OLDEST} or newer")
    failure = getattr(getattr(package, "_cpp_lib", None), "_cpp_library_load_exception", None)
    if failure is not None:
        raise ImportError(f"the compiled part of xformers {version} does not load: {described(_origin(failure))}")
    operators = {name: found for name in _OPERATORS if (found := _own_operator(fmha, name)) is not None}
    if not operators:
        raise ImportError(f"xformers {version} has no kernels here but torch's; flash-attn or flash-attn-3 adds some")
    return Xformers(fmha, operators)


def enter(xformers: Xformers) -> None:
    """Adds the provider to both ops."""
    provide("attention", "xformers", xformers.heads_first, xformers.supports, xformers.configs, measured=True)
    provide(
        "attention_tokens",
        "xformers",
        xformers.tokens_first,
        xformers.supports_tokens,
        xformers.configs_tokens,
        measured=True,
    )


def _own_operator(fmha: Any, name: str) -> Any | None:
    operator = getattr(getattr(fmha, name, None), "FwOp", None)
    if operator is None or not operator.is_available() or operator.NAME.endswith(_OF_TORCH):
        return None
    return operator


def _origin(error: BaseException) -> BaseException:
    """What the error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What xformers has to say of parts that do not load is said by whoever reports what is missing."""
    logger = logging.getLogger("xformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


if torch.cuda.is_available():
    enter(bound())

"""Refuses rules that cannot do any good on the GPU that is here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from rewriter.errors import RuleError

if TYPE_CHECKING:
    from rewriter.language import RuleSet

_FORCE = "REWRITER_FORCE_F16_SUMS"


def refuse_unfit(rules: RuleSet) -> None:
    """Raises RuleError for rules that keep sums in f16 where the GPU is no GeForce card.

    The tensor cores of others take as long with sums in f32, so that such rules would cost precision for nothing. The
    environment variable REWRITER_FORCE_F16_SUMS=1 allows them. Without a GPU nothing is refused: they do not apply.
    """
    unfit = [rule for rule in rules if "f16_sums" in rule.loses.values()]
    if not unfit or os.environ.get(_FORCE) == "1" or not torch.cuda.is_available():
        return
    name = torch.cuda.get_device_name()
    if "geforce" not in name.lower():
        raise RuleError(
            f"pack {unfit[0].pack}: sums in f16 lose precision and save no time on this GPU",
            position=unfit[0].position,
            rule=unfit[0].id,
            found=name,
            expected=f"a GeForce card; leave the pack out, or set {_FORCE}=1 to use it anyhow",
        )

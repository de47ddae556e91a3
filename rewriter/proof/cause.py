"""What a wrong result has to do with each operand: found by changing one operand at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from rewriter.language.conditions import ScalarInput
from rewriter.proof.layouts import own
from rewriter.proof.oracle import InvalidExample
from rewriter.proof.outcome import Failure
from rewriter.proof.program import flat
from rewriter.proof.sample import Sample
from rewriter.proof.trial import Trial, outputs_changed


def diagnosed(trial: Trial, failure: Failure) -> Failure:
    """The failure of a trial that ran, with what the operands tell added to the message of a wrong result."""
    if failure.kind not in ("wrong result", "wrong NaN"):
        return failure
    unread, through = [], []
    for name, value in trial.sample.operands.items():
        other = _changed(trial, name, value)
        if other is None:
            continue
        changed = _trial(trial, name, other)
        try:
            outcome = changed.run()
        except InvalidExample:
            continue
        if not changed.outputs or len(changed.outputs) != len(trial.outputs):
            continue
        moved = outputs_changed(trial.unfused, changed.unfused)
        if moved and not outputs_changed(trial.outputs, changed.outputs):
            unread.append(name)
        elif not isinstance(outcome, Failure) and _is_tensor(value) and _alive(changed.unfused):
            through.append(name)
    hints = [f"the result does not depend on {name}, the pattern's does" for name in unread]
    hints += [f"it is right where {name} is 0" for name in through if not unread]
    return dataclasses.replace(failure, message="; ".join([failure.message, *hints]))


def _changed(trial: Trial, name: str, value: Any) -> Any:
    """Another value for an operand: zeros for tensors, another number or choice for constants; None for no other."""
    if _is_tensor(value):
        return [_zeros(each) for each in value] if isinstance(value, list) else _zeros(value)
    if isinstance(value, float):
        return 3 * value + 0.5
    given = trial.rule.inputs[name]
    choices = given.choices if isinstance(given, ScalarInput) else ()
    others = (list(choice) if isinstance(choice, tuple) else choice for choice in choices)
    return next((other for other in others if isinstance(other, type(value)) and other != value), None)


def _zeros(x: Any) -> Any:
    """Zeros that lie in memory as x does."""
    if not isinstance(x, torch.Tensor):
        return x
    storage = x.new_empty(0).set_(x.untyped_storage()).clone()
    view = storage.as_strided(x.shape, x.stride(), x.storage_offset())
    own(view).zero_()
    return view


def _trial(trial: Trial, name: str, other: Any) -> Trial:
    sample: Sample = dataclasses.replace(trial.sample, operands={**trial.sample.operands, name: other})
    return Trial(trial.rule, trial.example, sample, device=trial.device, provider=trial.provider)


def _is_tensor(value: Any) -> bool:
    return any(isinstance(each, torch.Tensor) for each in flat([value]))


def _alive(outputs: list[torch.Tensor]) -> bool:
    """Whether there is more than zeros left to compare."""
    return any(bool((output != 0).any()) for output in outputs)

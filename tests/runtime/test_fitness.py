"""Rules that keep sums in f16 are for GeForce cards."""

from __future__ import annotations

import pytest
import torch

import rewriter
from rewriter.errors import RuleError
from rewriter.language import load_rules
from rewriter.runtime.fitness import refuse_unfit


def with_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)


def test_a_data_centre_gpu_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "NVIDIA H100 80GB HBM3")
    with pytest.raises(RuleError, match=r"save no time on this GPU \(found NVIDIA H100 80GB HBM3, expected a GeForce"):
        refuse_unfit(load_rules(["default", "lowp"]))
    refuse_unfit(load_rules(["default", "fp8"]))


def test_nothing_is_changed_by_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "NVIDIA A100-SXM4-80GB")
    module = torch.nn.Linear(2, 2)
    with pytest.raises(RuleError):
        rewriter.optimize(module, rules=["default", "lowp"])
    assert "forward" not in vars(module)


def test_a_geforce_card_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "NVIDIA GeForce RTX 4090")
    refuse_unfit(load_rules("lowp"))


def test_it_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "NVIDIA L40S")
    monkeypatch.setenv("REWRITER_FORCE_F16_SUMS", "1")
    refuse_unfit(load_rules("lowp"))

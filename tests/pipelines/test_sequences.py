"""Whatever is done to a network in whatever order, it gives what a twin gives to which the same is done eagerly."""

from __future__ import annotations

import pytest
from recording_here import RULES, recorded_runner
from sequences import SEQUENCES, THOROUGH, follow

from rewriter.runtime import building

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:diffusers")


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "recorded"])
def test_sequences_of_calls_and_changes(
    recorded: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = THOROUGH if request.config.getoption("--thorough") else SEQUENCES
    if recorded:
        monkeypatch.setattr(building, "_runner", recorded_runner)
        follow(count, RULES)
    else:
        follow(count)

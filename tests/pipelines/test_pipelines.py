"""Every pipeline draws what it draws eagerly, whatever it is asked for.

Each network is compared on the very inputs that it gets (1e-5 in relative L2). A picture goes through two steps of a
scheduler with guidance up to 7.5 and an autoencoder, each of which multiplies the difference of the one before: 1e-4.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from features import FEATURES, TOGETHER, Feature, requests
from table import README, head, legend, row
from tiny_pipelines import CASES
from twins import compared, draw, picture_error

import rewriter

NETWORK, PICTURE = 1e-5, 1e-4
pytestmark = pytest.mark.filterwarnings(
    # diffusers' Euler scheduler and numpy 2 disagree about a keyword; nothing here can change that.
    "ignore:__array__ implementation:DeprecationWarning",
    # diffusers' own ControlNet for Flux uses a name that diffusers has deprecated.
    "ignore:.*FluxPosEmbed:FutureWarning",
)
# What runs eagerly, and why: expressions, as releases of transformers differ in the name of the field.
EAGER: dict[str, dict[str, str]] = {
    "sana": {"text_encoder": r"output \.(cache|past_key_values)\.layers\[0\] is a transformers.*\.DynamicSliding"},
    "qwen-image": {"text_encoder": r"the traced call returns None for \.(cache|past_key_values), the eager call a Dyn"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_draws_the_same_with_every_feature(name: str) -> None:
    case = CASES[name]
    pipe = case.build()
    twin = copy.deepcopy(pipe)
    rewriter.optimize(pipe, measure=False)
    refused: set[str] = set()
    asked = requests(pipe)
    wrong = [problem for request in asked for problem in problems(request, pipe, twin, case.call, refused)]
    assert not wrong
    eager = {part.name: part.reason for part in rewriter.report(pipe).components.values() if part.status == "eager"}
    expected = EAGER.get(name, {})
    assert eager.keys() == expected.keys()
    assert all(re.match(reason, str(eager[part])) for part, reason in expected.items())
    names = {name for request in asked for name in request.name.split(" + ")}
    expected_row = row(name, names, refused, expected)
    assert expected_row in README.read_text(encoding="utf-8").splitlines(), f"{README}: not there: {expected_row}"


def test_the_table_has_a_row_for_each_pipeline_and_no_other() -> None:
    text = README.read_text(encoding="utf-8")
    assert head() in text
    assert legend() in " ".join(text.split())
    rows = text.partition(head())[2].strip().partition("\n\n")[0].splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == list(CASES)


def test_every_feature_is_asked_for() -> None:
    assert sorted(name for names in TOGETHER for name in names) == sorted(feature.name for feature in FEATURES)


def problems(feature: Feature, pipe: Any, twin: Any, plain: Any, refused: set[str]) -> list[str]:
    """What differs from eager when the pipeline is called with these features, twice.

    `refused` gets the features that eager raises at.
    """
    call = feature.call(twin, dict(plain))
    with feature.around(pipe), feature.around(twin):
        try:
            expected = draw(twin, **call)
        except Exception as error:
            # What this release of diffusers cannot do, it cannot do optimised either, and says the same.
            with pytest.raises(type(error)) as caught:
                draw(pipe, **call)
            refused.update(feature.name.split(" + "))
            return [] if str(caught.value) == str(error) else [f"{feature.name}: {caught.value}"]
        pictures = [draw(pipe, **call)]
        with compared(pipe, twin) as errors:
            pictures.append(draw(pipe, **call))
    found = [
        f"{feature.name}: picture off by {error:.1e}"
        for error in (picture_error(picture, expected) for picture in pictures)
        if not error <= PICTURE
    ]
    return found + [
        f"{feature.name}: {network} off by {error:.1e}" for network, error in errors.items() if not error <= NETWORK
    ]

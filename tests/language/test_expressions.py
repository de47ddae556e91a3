from __future__ import annotations

import pytest

from rewriter.language.expressions import ExpressionError, parse_expression


@pytest.mark.parametrize(
    ("text", "symbols", "expected"),
    [
        (7, {}, 7),
        ("C", {"C": 3}, 3),
        ("G*K", {"G": 2, "K": 5}, 10),
        ("(C - 1) // 2", {"C": 8}, 3),
        ("-C % 4", {"C": 3}, 1),
        ("C % 8 == 0", {"C": 16}, 1),
        ("2 <= C < 4", {"C": 4}, 0),
        ("C > 1 and not D == 2", {"C": 2, "D": 3}, 1),
        ("C == 1 or D != 3", {"C": 2, "D": 3}, 0),
        ("C // D", {"C": 1, "D": 0}, None),
        ("C + D", {"C": 1}, None),
    ],
)
def test_value(text: str | int, symbols: dict[str, int], expected: int | None) -> None:
    assert parse_expression(text).evaluate(symbols) == expected


def test_names() -> None:
    assert parse_expression("G*K + 2").names == {"G", "K"}


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 0),
        ("C +", 0),
        ("C / 2", 0),
        ("C ** 2", 0),
        ("f(C)", 0),
        ("C.real", 1),
        ("[C]", 0),
        ("C if D else 1", 0),
        ("lambda: 1", 6),
        ("1.5", 1),
        ("True", 0),
        ("if", 0),
        ("'a'", 0),
        ("1if 2else 3", 0),
        ("0xff", 0),
        ("é", 0),
        ("C := 2", 2),
        ("(" * 100 + "C" + ")" * 100, 0),
        ("C" * 201, 0),
        ("-" * 50 + "C", 0),
        ("99999999999999999999", 0),
        ("a\0b", 1),
        ("__import__('os').system('exit')", 11),
        ("(lambda: __import__)()", 7),
    ],
)
def test_refused(text: str, column: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)
    if column:
        assert caught.value.column == column

"""The language of run filters: what is right means what it says, what is wrong names its column."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import InvalidArgument
from tunesmith_metrics import filters
from tunesmith_metrics.filters import Both, Comparison, Either, Has, Match, Name, Not


def test_and_binds_before_or_and_not_before_both() -> None:
    found = filters.parse("a = 1 or not b = x and has c")
    assert isinstance(found, Either)
    first, second = found.parts
    assert first == Comparison(Name("a", "", 1), "=", (1.0,), ("1",))
    assert isinstance(second, Both)
    assert isinstance(second.parts[0], Not)
    assert second.parts[1] == Has(Name("c", "", 28))


def test_names_and_values_of_every_kind() -> None:
    found = filters.parse("`we ird` in (1e-3, 'a, b', \"q\\\"\", true, -inf) and min(train/loss) ~ '^x'")
    assert isinstance(found, Both)
    several, match = found.parts
    assert isinstance(several, Comparison)
    assert several.name.text == "we ird"
    assert several.values == (0.001, "a, b", 'q"', "true", float("-inf"))
    assert isinstance(match, Match)
    assert (match.name.text, match.name.extreme) == ("train/loss", "min")


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("train/loss <", 13, "a number"),
        ("train/loss 5", 12, "one of ="),
        ("a = 1 and", 10, "a name"),
        ("(a = 1", 7, "')'"),
        ("a = 1)", 6, "and, or"),
        ("a = 1 b = 2", 7, "and, or"),
        ("a ! b", 3, "begins nothing"),
        ("a = 'open", 5, "begins nothing"),
        ("name ~ '['", 8, "regular expression"),
        ("a in 1", 6, "'('"),
        ("min(max(a)) = 1", 5, "a metric"),
        ("not " * 60 + "a = 1", 205, "levels"),
        ("(" * 60 + "a = 1" + ")" * 60, 52, "levels"),
    ],
)
def test_a_mistake_names_its_column_and_what_was_expected(text: str, column: int, expected: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filters.parse(text)
    assert caught.value.reason == "FILTER_INVALID"
    assert f"column {column}: " in caught.value.message
    assert expected in caught.value.message


@given(st.text(alphabet="ab1.<>=~!()`'\" ,\\and orinhs", max_size=40))
def test_nothing_but_a_filter_or_a_named_mistake_comes_of_any_text(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        filters.parse(text)
    with contextlib.suppress(InvalidArgument):
        filters.parse_order(text)


def test_orders() -> None:
    keys = filters.parse_order("train/loss, created desc, max(`eval loss`) asc")
    assert [(key.name.text, key.name.extreme, key.descending) for key in keys] == [
        ("train/loss", "", False),
        ("created", "", True),
        ("eval loss", "max", False),
    ]
    for wrong in ("a b", "a,", ",a"):
        with pytest.raises(InvalidArgument):
            filters.parse_order(wrong)

"""The table of expected types."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from keepline.errors import ConfigError
from keepline.stream.binding import Types, misfit


def test_targets_are_known_in_any_case_and_forgotten_again() -> None:
    types = Types()
    types.expect("Quote", str, float)
    assert types.arguments("QUOTE") == (str, float)
    types.forget("quotE")
    types.forget("quote")
    assert types.arguments("Quote") is None


def test_what_was_derived_is_forgotten_when_a_target_changes_and_by_nothing_else() -> None:
    types = Types()
    first, second = types.derived(), types.derived()
    changes: list[Callable[[], None]] = [
        lambda: types.expect("Quote", int),
        lambda: types.expect("quote", float),
        lambda: types.forget("QUOTE"),
        types.changed,
    ]
    for change in changes:
        first["a"], second["b"] = 1, 2
        types.expect_result("1", int)
        types.forget("Trade")
        assert (first, second) == ({"a": 1}, {"b": 2})
        change()
        assert (first, second) == ({}, {})


def test_a_table_keeps_nothing_of_a_decoder_that_is_gone() -> None:
    types = Types()
    kept = weakref.ref(types.derived())
    gc.collect()
    assert kept() is None
    types.changed()


def test_results_are_any_until_they_are_expected() -> None:
    types = Types()
    assert types.result("1") is Any
    types.expect_result("1", int)
    assert types.result("1") is int
    types.forget_result("1")
    types.forget_result("1")
    types.expect_result("2", Any)
    assert (types.result("1"), types.result("2")) == (Any, Any)


def test_a_type_that_cannot_be_decoded_is_refused_when_it_is_named() -> None:
    class Odd:
        def __init__(self, *rest: int) -> None:
            self.rest = rest

    with pytest.raises(ConfigError, match="an argument of 'Quote' cannot be decoded"):
        Types().expect("Quote", str, dict[Odd, int] | list[int] | tuple[int, ...])
    with pytest.raises(ConfigError, match="a result cannot be decoded"):
        Types().expect_result("1", list[int] | set[int])


def test_a_misfit_tells_numbers_before_types() -> None:
    error = ValueError("Expected `int`")
    assert misfit((int,), 2, error) == "2 argument(s) arrived where 1 are expected"
    assert misfit(None, 1, error) == "the arguments cannot be read: Expected `int`"
    assert misfit((int,), 1, error) == "an argument has another type than expected: Expected `int`"

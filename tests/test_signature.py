"""The notation of operator rules."""

from __future__ import annotations

import pytest

from onnxprune.signature import parse


def test_a_convolution_contracts_the_inputs_of_each_group() -> None:
    s = parse("n (g i) *, (g o) i *, (g o)? -> n (g o) *")
    assert s.inputs == ((("n",), ("g", "i"), ("*",)), (("g", "o"), ("i",), ("*",)), (("g", "o"),))
    assert s.optional == (False, False, True)
    assert s.outputs == ((("n",), ("g", "o"), ("*",)),)
    assert s.contracted == {"i"}
    assert [s.multiplied(k) for k in range(3)] == [True, True, False]


def test_a_matrix_product_passes_a_run_of_axes() -> None:
    s = parse("... m k, ... k n -> ... m n")
    assert s.contracted == {"k"}
    assert s.inputs[0] == (("...",), ("m",), ("k",))


def test_a_letter_of_one_operand_alone_is_not_contracted() -> None:
    s = parse("n c, m -> n")
    assert s.contracted == frozenset()
    assert not s.multiplied(0)


def test_a_normalisation_multiplies_nothing() -> None:
    s = parse("n c ..., c, c, c, c -> n c ...")
    assert s.contracted == frozenset()
    assert not any(s.multiplied(k) for k in range(5))


def test_numbers_are_fixed_factors() -> None:
    s = parse("t b i, d (4 h) i, d (4 h) h -> t d b h, d b h, d b h")
    assert s.inputs[1][1] == ("4", "h")
    assert len(s.outputs) == 3
    assert s.contracted == {"i"}


def test_operands_and_results_may_be_scalars() -> None:
    s = parse("k, k ->")
    assert s.outputs == ((),)
    assert s.contracted == {"k"}


def test_space_between_axes_does_not_matter_but_between_letters_does() -> None:
    assert parse(" n  (g  i) *->n (g i)  * ").inputs == parse("n (g i) * -> n (g i) *").inputs
    assert parse("nc -> nc").inputs == ((("nc",),),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n c, c", "has no '->'"),
        ("n (g i, i -> n", "cannot read"),
        ("n $ -> n", "cannot read"),
        ("n c) -> n c", "cannot read"),
        ("* n * -> n", "more than one run of axes"),
        ("... n * -> n", "more than one run of axes"),
        ("n -> ... n ...", "more than one run of axes"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_quotes_it(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        parse(text)
    assert repr(text) in str(raised.value)

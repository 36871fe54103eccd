"""Names and ids that Anthropic would refuse go there and come back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import BadRequest
from gateway_adapters.anthropic.names import JSON_TOOL, NAME_CHARS_MAX, read_name, write_id, write_name

LEGAL = re.compile(r"[a-zA-Z0-9_-]{1,128}")
#: With what escapes are made of, more often than chance would have it.
TEXTS = st.text(
    st.one_of(st.sampled_from("_x2EF5.ab"), st.characters(exclude_categories=["Cs"])), min_size=1, max_size=18
)


@given(TEXTS, st.booleans())
def test_a_name_comes_back(name: str, custom: bool) -> None:
    written = write_name(name, custom=custom)

    assert LEGAL.fullmatch(written)
    assert read_name(written) == ("custom" if custom else "function", name)


@pytest.mark.parametrize("name", ["get_weather", "get_xml", "a_x_b", "Read-File", "x2E", "json_outputs"])
def test_an_ordinary_name_is_left_alone(name: str) -> None:
    assert write_name(name) == name


@pytest.mark.parametrize("name", [JSON_TOOL, "custom_tool__shell"])
def test_a_callers_tool_is_not_taken_for_one_of_ours(name: str) -> None:
    assert read_name(write_name(name)) == ("function", name)


@pytest.mark.parametrize("name", ["", "a" * (NAME_CHARS_MAX + 1), "." * 40])
def test_a_name_that_can_not_be_told_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        write_name(name, param="tools[0]")

    assert caught.value.param == "tools[0]"


@given(st.text(alphabet="_x0123456789ABCDEF", max_size=20))
def test_what_a_model_makes_up_is_a_name(name: str) -> None:
    _, read = read_name(name)

    assert isinstance(read.encode(), bytes)


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_ids_are_legal_and_differ(one: str, other: str) -> None:
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", write_id(one))
    assert (write_id(one) == write_id(other)) is (one == other)


def test_anthropics_own_ids_stay() -> None:
    assert write_id("toolu_01A09q90qw90lq917835lq9") == "toolu_01A09q90qw90lq917835lq9"

"""Which call a piece belongs to, and when its arguments are whole."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bridges.calls import CALLS_MAX, CallNumbers, JSONEnd, TooManyCalls
from gateway.bridges.hub import Function, ToolCall

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def numbers(*pieces: ToolCall) -> list[int]:
    found = CallNumbers()
    return [found.find(piece) for piece in pieces]


@given(st.dictionaries(st.text(), JSON, max_size=4), st.data())
def test_an_object_is_whole_at_its_end_and_not_before(document, data):
    text = msgspec.json.encode(document).decode()
    if data.draw(st.booleans()):
        text = text.encode("ascii", "backslashreplace").decode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    end = JSONEnd()
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        assert not end.whole
        end.feed(text[start:stop])
        if stop == len(text):
            break

    assert end.whole


def test_pieces_are_told_apart_by_their_index():
    first, second = ToolCall(index=0, id="a"), ToolCall(index=1, id="b")

    assert numbers(first, ToolCall(index=0), second, ToolCall(index=1), ToolCall(index=0)) == [0, 0, 1, 1, 0]


def test_indices_need_not_begin_at_nothing_nor_be_dense():
    assert numbers(ToolCall(index=1, id="a"), ToolCall(index=7, id="b"), ToolCall(index=1)) == [0, 1, 0]


def test_calls_without_an_index_are_told_apart_by_their_id_and_name():
    named = Function(name="f")

    assert numbers(ToolCall(id="a"), ToolCall(), ToolCall(id="b"), ToolCall(id="a")) == [0, 0, 1, 0]
    assert numbers(ToolCall(function=named), ToolCall(), ToolCall(function=named)) == [0, 0, 1]


def test_calls_that_all_have_the_same_index_are_told_apart_by_their_id():
    assert numbers(ToolCall(index=0, id="a"), ToolCall(index=0, id="b"), ToolCall(index=0)) == [0, 1, 1]


def test_an_id_that_is_repeated_or_comes_late_is_the_same_call():
    assert numbers(ToolCall(index=0), ToolCall(index=0, id="a"), ToolCall(index=0, id="a")) == [0, 0, 0]
    assert numbers(ToolCall(index=0, id="a"), ToolCall(index=0, id="")) == [0, 0]


def test_there_is_an_end_to_how_many_there_may_be():
    found = CallNumbers()
    for index in range(CALLS_MAX):
        found.find(ToolCall(index=index))

    with pytest.raises(TooManyCalls):
        found.find(ToolCall(index=CALLS_MAX))

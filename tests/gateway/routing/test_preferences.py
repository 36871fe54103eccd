"""What a caller may ask of routing in its request."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.routing.preferences import NONE, Preferences, read_preferences, split_suffix
from gateway.wire.peek import peek


def read(provider=msgspec.UNSET, models=msgspec.UNSET) -> Preferences:
    members = {"model": "m", "provider": provider, "models": models, "messages": []}
    body = msgspec.json.encode({name: value for name, value in members.items() if value is not msgspec.UNSET})
    return read_preferences(body, peek(body))


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (None, NONE),
        ({}, NONE),
        ("openai", Preferences(only=("openai",))),
        ({"order": ["b", "a", "b"]}, Preferences(order=("b", "a"))),
        ({"only": ["a"], "ignore": ["b"]}, Preferences(only=("a",), ignore=("b",))),
        ({"allow_fallbacks": False}, Preferences(allow_fallbacks=False)),
        ({"allow_fallbacks": None, "order": None}, NONE),
        ({"sort": "price"}, Preferences(sort="price")),
        ({"sort": {"by": "latency", "partition": "none"}}, Preferences(sort="latency")),
        ({"max_price": {"prompt": 1, "completion": "2.5"}}, Preferences(max_input_usd=1.0, max_output_usd=2.5)),
        ({"data_collection": "deny"}, Preferences(tags=("no-training",))),
        ({"data_collection": "allow"}, NONE),
        ({"zdr": True, "data_collection": "deny"}, Preferences(tags=("no-training", "zdr"))),
        ({"quantizations": ["fp8"], "require_parameters": True}, NONE),
    ],
)
def test_wishes_are_read(provider, expected):
    assert read(provider) == expected


@pytest.mark.parametrize(
    ("provider", "param"),
    [
        (7, "provider"),
        (["a"], "provider"),
        ({"order": "a"}, "provider.order"),
        ({"only": [1]}, "provider.only"),
        ({"ignore": [""]}, "provider.ignore"),
        ({"order": ["x"] * 40}, "provider.order"),
        ({"sort": "beauty"}, "provider.sort"),
        ({"sort": ["price"]}, "provider.sort"),
        ({"allow_fallbacks": "no"}, "provider.allow_fallbacks"),
        ({"max_price": 3}, "provider.max_price"),
        ({"max_price": {"prompt": -1}}, "provider.max_price.prompt"),
        ({"max_price": {"completion": "cheap"}}, "provider.max_price.completion"),
        ({"max_price": {"completion": True}}, "provider.max_price.completion"),
        ({"data_collection": "maybe"}, "provider.data_collection"),
        ({"zdr": "yes"}, "provider.zdr"),
    ],
)
def test_what_can_not_be_obeyed_is_refused_by_name(provider, param):
    with pytest.raises(BadRequest) as caught:
        read(provider)

    assert caught.value.param == param


def test_further_models():
    assert read(models=["a", "b", "a"]).models == ("a", "b")
    assert read(models=None).models == ()
    with pytest.raises(BadRequest):
        read(models="a")


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["order", "only", "sort", "by", "max_price", "prompt", "zdr", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(json, json)
def test_anything_is_read_or_refused(provider, models):
    with contextlib.suppress(BadRequest):
        assert isinstance(read(provider, models), Preferences)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4o", ("gpt-4o", None)),
        ("gpt-4o:floor", ("gpt-4o", "price")),
        ("gpt-4o:fast", ("gpt-4o", "throughput")),
        ("ft:gpt-4o:org::id", ("ft:gpt-4o:org::id", None)),
        ("llama3:8b", ("llama3:8b", None)),
        (":floor", (":floor", None)),
        ("", ("", None)),
    ],
)
def test_a_suffix_is_a_wish(model, expected):
    assert split_suffix(model) == expected

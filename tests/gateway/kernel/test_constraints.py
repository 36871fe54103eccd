"""What a key may be used for, decided from what is known of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Forbidden
from gateway.kernel.constraints import (
    Constraints,
    address_of,
    clean_referrer,
    is_permitted,
    make_constraints,
    referrer_of,
)
from gateway.wire.client_address import parse_networks


def make(**facts: object) -> Constraints | None:
    nothing: dict[str, object] = {"scopes": {}, "networks": (), "referrers": (), "models": (), "providers": ()}
    return make_constraints(**(nothing | facts))  # type: ignore[arg-type]


def scope(**facts: object) -> dict[str, object]:
    return {"type": "http", "method": "POST", "client": ("127.0.0.1", 1), "headers": []} | facts


def test_what_narrows_nothing_is_nothing():
    assert make() is None
    assert make(scopes={"read": ("*",), "write": ("inference", "api_keys")}) is None


@pytest.mark.parametrize(
    ("scopes", "method", "kind", "permitted"),
    [
        ({"read": ("inference",)}, "GET", "http", True),
        ({"read": ("inference",)}, "HEAD", "http", True),
        ({"read": ("inference",)}, "POST", "http", False),
        ({"read": ("*",)}, "DELETE", "http", False),
        # A conversation is opened by a GET, and is no reading.
        ({"read": ("inference",)}, "GET", "websocket", False),
        ({"write": ("inference",)}, "GET", "websocket", True),
        ({"write": ("*",)}, "POST", "http", True),
        ({"admin": ("*",)}, "POST", "http", False),
        ({"write": ("api_keys",)}, "POST", "http", False),
    ],
)
def test_scopes(scopes, method, kind, permitted):
    constraints = make(scopes=scopes)
    assert constraints is not None

    if permitted:
        constraints.check_request(scope(method=method, type=kind))
    else:
        with pytest.raises(Forbidden) as refused:
            constraints.check_request(scope(method=method, type=kind))
        assert refused.value.code == "scope_not_permitted"


@given(
    st.dictionaries(
        st.sampled_from(["read", "write", "admin"]), st.lists(st.sampled_from(["*", "inference", "usage"]))
    )
)
def test_scopes_permit_what_they_say(scopes):
    for verb in ("read", "write"):
        said = scopes.get(verb, [])
        assert is_permitted(scopes, verb) == (not scopes or "*" in said or "inference" in said)


def test_whose_address_is_not_known_is_let_in_nowhere():
    constraints = make(networks=("0.0.0.0/0", "::/0"))
    assert constraints is not None

    constraints.check_request(scope())
    with pytest.raises(Forbidden):
        constraints.check_request(scope(client=("testclient", 1)))


def test_a_unix_socket_is_this_machine():
    constraints = make(networks=("127.0.0.1/32",))
    assert constraints is not None

    constraints.check_request(scope(client=None))


def test_proxies_are_believed_only_where_they_are_trusted():
    headers = [(b"x-forwarded-for", b"203.0.113.9")]

    assert str(address_of(scope(headers=headers), ())) == "127.0.0.1"
    assert str(address_of(scope(headers=headers), parse_networks(["127.0.0.0/8"]))) == "203.0.113.9"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("example.com", "example.com"),
        (" Example.COM ", "example.com"),
        ("https://app.example.com:8443/x?y#z", "app.example.com"),
        ("*.example.com", "*.example.com"),
        ("https://*.example.com/", "*.example.com"),
        ("localhost:3000", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_hosts_as_people_write_them(text, cleaned):
    assert clean_referrer(text) == cleaned
    assert clean_referrer(cleaned) == cleaned


@pytest.mark.parametrize(
    "text", ["", "*", "*.", "*.*.com", "a b", "http://", "-a.com", ".com", "exa*mple.com", "a..b"]
)
def test_what_is_no_host(text):
    with pytest.raises(ValueError, match="no host name"):
        clean_referrer(text)


@given(st.binary(max_size=60))
def test_any_referrer_can_be_read(value):
    found = referrer_of([(b"referer", value)])

    assert found is None or isinstance(found, str)


def test_names_and_beginnings_of_names():
    constraints = make(models=("gpt-4o", "claude-*"), providers=("one",))
    assert constraints is not None

    assert [constraints.allows_model(name) for name in ("gpt-4o", "gpt-4o-mini", "claude-", "claude-x", "")] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert [constraints.allows_provider(name) for name in ("one", "two")] == [True, False]
    everything = make(models=("*",))
    assert everything is not None
    assert everything.allows_model("anything")

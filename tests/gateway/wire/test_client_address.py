"""Whose request it is, behind proxies that are trusted and others."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.client_address import find_client, is_network, parse_address, parse_networks

TRUSTED = parse_networks(["10.0.0.0/8", "::1"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", [b"203.0.113.9"], "192.0.2.1"),
        ("10.0.0.1", [b"203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [b"6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [b"6.6.6.6, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", [b"6.6.6.6", b"203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [b"nonsense"], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.9, "], "10.0.0.1"),
        ("::1", [b"[2001:db8::1]:443"], "2001:db8::1"),
        ("::ffff:10.0.0.1", [b"203.0.113.9:1234"], "203.0.113.9"),
        (None, [], "127.0.0.1"),
    ],
)
def test_the_last_stranger_is_the_client(peer, forwarded, client):
    assert str(find_client(peer, forwarded, TRUSTED)) == client


def test_nobody_is_trusted_unless_named():
    assert str(find_client("10.0.0.1", [b"203.0.113.9"], ())) == "10.0.0.1"


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_whatever_is_claimed_a_stranger_stays_itself(forwarded):
    assert find_client("192.0.2.1", forwarded, TRUSTED) == ipaddress.ip_address("192.0.2.1")


@given(st.text(max_size=50))
def test_any_text_is_an_address_or_none(text):
    address = parse_address(text)

    assert address is None or is_network(str(address))

"""Where a request's key is looked for, and what is refused before anybody is asked."""

import pytest

from gateway.errors import Unauthenticated
from gateway.stages.authenticate import presented_key

KEY = "gw_live_key"


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([(b"authorization", b"Bearer gw_live_key")], b""),
        ([(b"authorization", b"bearer  gw_live_key ")], b""),
        ([(b"api-key", b"gw_live_key")], b""),
        ([(b"x-api-key", b"gw_live_key")], b""),
        ([(b"x-goog-api-key", b"gw_live_key")], b""),
        ([(b"authorization", b"Bearer gw_live_key"), (b"x-api-key", b"gw_live_key")], b""),
        ([], b"alt=sse&key=gw_live_key"),
        ([], b"key=gw%5flive_key&key=another"),
        ([(b"x-api-key", b"gw_live_key")], b"key=of-somebody-else"),
    ],
)
def test_a_key_is_found_where_clients_put_it(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    assert presented_key(headers, query) == KEY


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([], b""),
        ([(b"authorization", b"Bearer ")], b""),
        ([(b"authorization", b"Basic Zm9vOmJhcg==")], b""),
        ([(b"authorization", b"Bearer one"), (b"authorization", b"Bearer two")], b""),
        ([(b"authorization", b"Bearer one"), (b"x-api-key", b"two")], b""),
        ([], b"key="),
        ([], b"KEY=gw_live_key"),
        ([], b"k%65y=gw_live_key"),
        ([], b"&".join([b"a=1"] * 10_000)),
    ],
)
def test_anything_else_is_no_key(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    with pytest.raises(Unauthenticated):
        presented_key(headers, query)


def test_google_clients_may_put_the_key_into_the_query_as_well() -> None:
    headers = [(b"x-goog-api-key", b"gw_live_key")]

    assert presented_key(headers, b"alt=sse&key=gw_live_key", as_google=True) == KEY
    assert presented_key([], b"key=gw%5flive_key&key=gw_live_key", as_google=True) == KEY


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([(b"x-goog-api-key", b"gw_live_key")], b"key=another"),
        ([(b"authorization", b"Bearer another")], b"key=gw_live_key"),
        ([], b"key=gw_live_key&key=another"),
        ([], b"key="),
    ],
)
def test_two_different_keys_of_a_google_client_are_refused(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    """Case 88."""
    with pytest.raises(Unauthenticated):
        presented_key(headers, query, as_google=True)


def test_a_key_that_is_no_ascii_is_still_a_string() -> None:
    assert presented_key([(b"authorization", b"Bearer \xe4")], b"") == "\xe4"

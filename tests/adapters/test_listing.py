"""Where each adapter asks for its provider's models: at the configured address, with the operator's key, and no more."""

import pytest

from gateway.api import Listing, UpstreamRequest
from gateway.registry import Registry
from gateway.secret import Secret
from gateway.settings import Provider, Settings

KEY = "sk-operator-0123456789"


def listing(adapter: str, page: str = "", **table: object) -> UpstreamRequest | None:
    base_url = table.pop("base_url", "")
    assert isinstance(base_url, str)
    provider = Provider(adapter=adapter, api_key=Secret(KEY), base_url=base_url, extra=table)
    made = Registry.load(Settings(providers={"p": provider})).providers["p"].adapter
    assert isinstance(made, Listing)
    return made.listing(page)


@pytest.mark.parametrize(
    ("adapter", "page", "host", "target"),
    [
        ("openai", "", "api.openai.com", b"/v1/models"),
        ("anthropic", "", "api.anthropic.com", b"/v1/models?limit=1000"),
        ("anthropic", "a b&c", "api.anthropic.com", b"/v1/models?limit=1000&after_id=a%20b%26c"),
        ("google", "", "generativelanguage.googleapis.com", b"/v1beta/models?pageSize=1000"),
        ("google", "x=&y", "generativelanguage.googleapis.com", b"/v1beta/models?pageSize=1000&pageToken=x%3D%26y"),
        ("cohere", "", "api.cohere.com", b"/v1/models?page_size=1000"),
        ("cohere", "é\r\n", "api.cohere.com", b"/v1/models?page_size=1000&page_token=%C3%A9%0D%0A"),
    ],
)
def test_who_is_asked(adapter, page, host, target):
    request = listing(adapter, page)

    assert request is not None
    assert (request.method, request.origin.scheme, request.origin.host) == (b"GET", "https", host)
    assert (request.target, request.body) == (target, b"")
    assert [value for _, value in request.headers if KEY.encode() in value] in (
        [KEY.encode()],
        [b"Bearer " + KEY.encode()],
    )


@pytest.mark.parametrize("adapter", ["openai", "compatible", "anthropic", "google", "cohere"])
def test_an_address_of_one_s_own_is_the_only_one(adapter):
    request = listing(adapter, base_url="http://127.0.0.1:9000/v1")

    assert request is not None
    assert (request.origin.host, request.origin.port) == ("127.0.0.1", 9000)


@pytest.mark.parametrize(
    ("adapter", "table"),
    [
        ("azure", {"base_url": "https://res.openai.azure.com"}),
        ("vertex", {}),
    ],
)
def test_who_lists_nothing_of_use_is_not_asked(adapter, table):
    assert listing(adapter, **table) is None


def test_openai_s_list_has_one_page():
    assert listing("openai", "more") is None

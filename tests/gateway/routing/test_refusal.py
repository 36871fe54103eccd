"""An answer with an error status, as an error."""

import pytest

from gateway.api import ProviderConfig, ResponseHead
from gateway.errors import ContentRefused, RequestRefused, UpstreamCredentials, UpstreamRefused, UpstreamThrottled
from gateway.routing.refusal import refusal
from gateway_adapters.openai import OpenAI

JSON = [(b"content-type", b"application/json")]
BODY = b'{"error":{"message":"no"}}'


def refuse(status: int, body: bytes = BODY, *, headers=JSON, whole: bool = True, native: bool = True):
    adapter = OpenAI()
    adapter.configure(ProviderConfig(name="local", base_url="http://127.0.0.1/v1", api_key=None, extra={}))
    return refusal(adapter, ResponseHead(status, headers), body, whole=whole, native=native)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, BODY, RequestRefused),
        (404, BODY, RequestRefused),
        (400, b'{"error":{"code":"context_length_exceeded"}}', RequestRefused),
        (400, b'{"error":{"code":"content_filter"}}', ContentRefused),
        (429, BODY, UpstreamThrottled),
        (500, BODY, UpstreamRefused),
        (529, BODY, UpstreamRefused),
        (401, BODY, UpstreamCredentials),
        (429, b'{"error":{"type":"insufficient_quota"}}', UpstreamCredentials),
    ],
)
def test_its_kind_says_whose_fault_it_is(status, body, kind):
    assert type(refuse(status, body)) is kind


def test_the_body_is_kept_as_it_came():
    error = refuse(500)

    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.body, [*error.headers]) == (500, BODY, JSON)


@pytest.mark.parametrize(
    ("body", "headers", "whole"),
    [
        (b"<html>", [(b"content-type", b"text/html")], True),
        (BODY, [(b"content-type", b"text/plain")], True),
        (b"", JSON, True),
        (b'{"error":', JSON, False),
    ],
)
@pytest.mark.parametrize(("status", "code"), [(404, "upstream_refused"), (502, "upstream_error")])
def test_what_no_client_could_read_is_not_passed_on(body, headers, whole, status, code):
    error = refuse(status, body, headers=headers, whole=whole)

    assert isinstance(error, UpstreamRefused)
    assert (error.body, error.status, error.code) == (None, status, code)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_nothing_of_our_credential_trouble_is_told(status):
    error = refuse(status, b'{"error":{"message":"Incorrect API key provided: sk-abc"}}')

    assert isinstance(error, UpstreamCredentials)
    assert (error.status, error.refused_status, error.should_retry) == (502, status, False)
    assert "sk-" not in error.message


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        # Bedrock's ModelTimeoutException and ModelErrorException.
        (408, 504, "upstream_error"),
        (424, 502, "upstream_error"),
        (529, 503, "upstream_error"),
        (429, 429, "rate_limit_exceeded"),
        (500, 500, "upstream_error"),
        (404, 404, "upstream_refused"),
    ],
)
def test_trouble_of_the_providers_is_told_as_such_to_clients_of_another_dialect(status, told, code):
    error = refuse(status, native=False)

    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.code, error.body) == (told, code, None)
    assert error.type == ("invalid_request_error" if told < 500 else "server_error")
    # Whose dialect it is knows the number.
    assert refuse(status).status == status

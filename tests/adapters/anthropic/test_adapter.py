"""What the adapter takes for its table, and how it says what went wrong."""

from typing import Any

import msgspec
import pytest

from gateway.api import Call, ConfigError, Dialect, Offer, ProviderConfig, ResponseHead, Usage, peek
from gateway.registry import known_providers
from gateway.secret import Secret
from gateway_adapters.anthropic import Anthropic

KEY = "sk-ant-operator"


def adapter(key: str | None = KEY, base_url: str | None = None, **extra: object) -> Anthropic:
    made = Anthropic()
    secret = None if key is None else Secret(key)
    made.configure(ProviderConfig(name="anthropic", base_url=base_url, api_key=secret, extra=extra))
    return made


def sent(made: Anthropic, *headers: tuple[bytes, bytes], path: bytes = b"/messages") -> Any:
    body = b'{"model":"m","max_tokens":1,"messages":[]}'
    call = Call(
        id="0",
        dialect=Dialect.ANTHROPIC_MESSAGES,
        method="POST",
        path=path,
        query=b"",
        headers=[*headers],
        body=body,
        peek=peek(body),
        model="m",
    )
    return made.prepare(call, Offer(model="m", provider="anthropic", upstream_model="m"))


def test_a_variable_turns_it_on() -> None:
    known = known_providers()["anthropic"]

    assert (known.adapter, known.variable) == ("anthropic", "ANTHROPIC_API_KEY")
    assert known.base_url == "https://api.anthropic.com"


@pytest.mark.parametrize(
    ("base_url", "target"),
    [
        (None, b"/v1/messages"),
        ("https://api.anthropic.com/", b"/v1/messages"),
        ("https://api.anthropic.com/v1", b"/v1/messages"),
        ("http://127.0.0.1:9/anthropic", b"/anthropic/v1/messages"),
    ],
)
def test_where_requests_go(base_url: str | None, target: bytes) -> None:
    assert sent(adapter(base_url=base_url)).target == target


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"key": None}, "api_key"),
        ({"key": "two words"}, "api_key"),
        ({"base_url": "nonsense"}, "base_url"),
        ({"versoin": "x"}, "versoin"),
        ({"version": "a b"}, "version"),
        ({"auth": "basic"}, None),
    ],
)
def test_a_wrong_table_stops_the_start(arguments: dict[str, Any], param: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        adapter(**arguments)

    assert caught.value.param == param
    assert KEY not in caught.value.message


def test_a_server_of_ones_own_may_want_no_key() -> None:
    headers = dict(sent(adapter(None, "http://127.0.0.1:9")).headers)

    assert b"x-api-key" not in headers
    assert b"authorization" not in headers


def test_the_version_is_the_callers_where_it_names_one() -> None:
    named = sent(adapter(version="2026-10-21"), (b"anthropic-version", b"2023-06-01"))
    unnamed = sent(adapter(version="2026-10-21"))

    assert [value for name, value in named.headers if name == b"anthropic-version"] == [b"2023-06-01"]
    assert (b"anthropic-version", b"2026-10-21") in unnamed.headers


def test_a_beta_is_announced_once() -> None:
    request = sent(adapter("sk-ant-oat01-x"), (b"anthropic-beta", b"a, oauth-2025-04-20"), (b"anthropic-beta", b"b"))

    assert (b"anthropic-beta", b"a, oauth-2025-04-20,b") in request.headers
    assert (b"authorization", b"Bearer sk-ant-oat01-x") in request.headers


@pytest.mark.parametrize(
    ("status", "kind", "message", "blame", "code"),
    [
        (400, "invalid_request_error", "max_tokens: Field required", "caller", None),
        (
            400,
            "invalid_request_error",
            "prompt is too long: 9 tokens > 8 maximum",
            "context",
            "context_length_exceeded",
        ),
        (400, "invalid_request_error", "Your credit balance is too low", "key", None),
        (401, "authentication_error", "invalid x-api-key", "key", None),
        (402, "billing_error", "Pay", "key", None),
        (403, "permission_error", "Your API key may not", "key", None),
        (404, "not_found_error", "model: claude-x", "caller", "model_not_found"),
        (413, "request_too_large", "Request exceeds the maximum size", "caller", "request_too_large"),
        (429, "rate_limit_error", "Slow down", "provider", "rate_limit_exceeded"),
        (500, "api_error", "Internal server error", "provider", None),
        (529, "overloaded_error", "Overloaded", "provider", "server_is_overloaded"),
    ],
)
def test_whose_fault_it_is(status: int, kind: str, message: str, blame: str, code: str | None) -> None:
    """Case 67, among others."""
    body = msgspec.json.encode({"type": "error", "error": {"type": kind, "message": f"{message} {KEY}"}})

    failure = adapter().classify(ResponseHead(status, [(b"retry-after", b"7")]), body)

    assert (failure.blame, failure.code) == (blame, code)
    assert failure.message == f"{message} ***"
    assert failure.retry_after_s == (7 if blame in ("key", "provider") else None)


def test_counting_uses_nothing() -> None:
    body = b'{"model":"m","messages":[]}'
    call = Call(
        id="0",
        dialect=Dialect.ANTHROPIC_COUNT_TOKENS,
        method="POST",
        path=b"/messages/count_tokens",
        query=b"",
        headers=[],
        body=body,
        peek=peek(body),
        model="m",
    )
    tap = adapter().tap(call, ResponseHead(200, [(b"content-type", b"application/json")]))

    assert tap.feed(b'{"input_tokens":9}') + tap.end() == b'{"input_tokens":9}'
    assert tap.usage() == Usage()

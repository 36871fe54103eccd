"""Which headers travel on."""

import pytest

from gateway.wire.headers import HOP_BY_HOP, NAMES_MAX, Headers, name_list, request_headers, response_headers


def names(headers: Headers) -> list[bytes]:
    return [name for name, _ in headers]


KEPT: Headers = [
    (b"content-type", b"multipart/form-data; boundary=x"),
    (b"accept", b"application/json"),
    (b"user-agent", b"OpenAI/Python 3"),
    (b"openai-beta", b"assistants=v2"),
    (b"idempotency-key", b"1"),
    (b"x-stainless-lang", b"python"),
    (b"anthropic-version", b"2023-06-01"),
    (b"anthropic-beta", b"a,b"),
    (b"http-referer", b"https://a.example"),
    (b"x-title", b"t"),
    (b"x-client-request-id", b"1"),
    (b"x-custom", b"1"),
    (b"x-custom", b"2"),
]


def test_what_a_provider_may_see_keeps_its_order_and_repeats():
    assert request_headers(KEPT) == KEPT


@pytest.mark.parametrize(
    "name",
    [
        *sorted(HOP_BY_HOP),
        *(b"authorization", b"cookie", b"x-api-key", b"api-key", b"x-goog-api-key", b"x-amz-security-token"),
        *(b"host", b"content-length", b"expect", b"accept-encoding", b"content-encoding"),
        *(b"forwarded", b"via", b"x-real-ip", b"x-forwarded-for", b"x-forwarded-anything", b"cf-connecting-ip"),
        *(b"origin", b"referer", b"sec-fetch-mode", b"sec-ch-ua", b"sec-websocket-key"),
        *(b"x-gateway-key", b"x-portkey-api-key", b"helicone-auth"),
        *(b"traceparent", b"tracestate", b"baggage", b"x-b3-traceid"),
        *(b"openai-organization", b"openai-project"),
    ],
)
def test_case_89_what_a_provider_must_not_see_stays_here(name: bytes):
    assert request_headers([(name, b"1"), *KEPT]) == KEPT


def test_case_89_what_connection_names_stays_here():
    headers: Headers = [(b"connection", b"keep-alive, X-Secret ,x-other"), (b"x-secret", b"1"), (b"accept", b"*/*")]

    assert request_headers(headers) == [(b"accept", b"*/*")]
    assert response_headers(headers) == [(b"accept", b"*/*")]
    twice: Headers = [(b"connection", b"x-a"), (b"connection", b"x-b"), (b"x-a", b"1"), (b"x-b", b"1")]
    assert request_headers(twice) == []


def test_connection_does_not_take_away_what_frames_the_body():
    headers: Headers = [(b"connection", b"content-type"), (b"content-type", b"application/json")]

    assert names(request_headers(headers)) == [b"content-type"]
    assert names(response_headers(headers)) == [b"content-type"]


def test_the_callers_organisation_goes_with_the_callers_own_key():
    headers: Headers = [(b"openai-organization", b"o"), (b"openai-project", b"p")]

    assert request_headers(headers, byok=True) == headers


def test_tracing_context_leaves_when_asked():
    headers: Headers = [(b"traceparent", b"00-1-2-01"), (b"baggage", b"a=b")]

    assert request_headers(headers, trace=True) == headers


def test_an_adapter_drops_more_and_adds_its_own():
    sent = request_headers(
        [(b"user-agent", b"x"), (b"accept", b"*/*")],
        drop=frozenset({b"user-agent"}),
        own=[(b"authorization", b"Bearer k")],
    )

    assert sent == [(b"accept", b"*/*"), (b"authorization", b"Bearer k")]


ANSWER: Headers = [
    (b"content-type", b"application/json"),
    (b"x-request-id", b"req_1"),
    (b"openai-processing-ms", b"12"),
    (b"openai-version", b"2020-10-01"),
    (b"retry-after", b"1"),
    (b"x-should-retry", b"false"),
    (b"x-groq-region", b"eu"),
    (b"etag", b"1"),
    (b"x-new", b"1"),
]


def test_what_a_caller_may_see_is_kept():
    assert response_headers(ANSWER) == ANSWER


@pytest.mark.parametrize(
    "name",
    [
        *sorted(HOP_BY_HOP),
        *(b"set-cookie", b"server", b"date", b"alt-svc", b"strict-transport-security", b"nel", b"report-to"),
        *(b"cf-ray", b"cf-cache-status", b"www-authenticate", b"x-envoy-upstream-service-time"),
        *(b"access-control-allow-origin", b"access-control-expose-headers"),
        *(b"openai-organization", b"openai-project", b"x-gateway-provider", b"x-accel-redirect", b"x-sendfile"),
        *(b"content-length", b"x-ratelimit-remaining-tokens", b"anthropic-ratelimit-tokens-limit"),
    ],
)
def test_case_89_what_a_caller_must_not_see_stays_here(name: bytes):
    assert response_headers([(name, b"1"), *ANSWER]) == ANSWER


def test_lengths_codings_and_limits_are_kept_when_asked():
    headers: Headers = [
        (b"content-length", b"3"),
        (b"content-encoding", b"gzip"),
        (b"x-ratelimit-limit-tokens", b"9"),
    ]

    assert names(response_headers(headers)) == [b"content-encoding"]
    assert names(response_headers(headers, keep_length=True)) == [b"content-length", b"content-encoding"]
    assert response_headers(headers, keep_encoding=False) == []
    assert names(response_headers(headers, keep_encoding=False, keep_ratelimit=True)) == [b"x-ratelimit-limit-tokens"]
    assert names(response_headers([(b"openai-organization", b"o")], keep_account=True)) == [b"openai-organization"]


def test_the_gateways_own_come_last():
    assert response_headers([], own=[(b"x-request-id", b"1")]) == [(b"x-request-id", b"1")]


def test_more_names_than_are_remembered_are_judged_all_the_same():
    many: Headers = [(b"x-made-up-%d" % number, b"") for number in range(5000)]

    assert request_headers([*many, (b"x-forwarded-zzz", b"1")]) == many
    assert request_headers([(b"x-forwarded-yyy", b"1"), (b"x-gateway-" + b"z" * 100, b"")]) == []


@pytest.mark.parametrize(
    ("members", "value"),
    [
        ([], b""),
        (["seed", "logit_bias", "seed", "tools[0].strict", "x-y"], b"seed, logit_bias, tools[0].strict, x-y"),
        # What a caller makes up writes no header of its own, and no second name.
        (["a\r\nx-evil: 1", "a, b", "a b", "", "\u017eluť", "n" * 65], b""),
        (["ok", "a\n", "n" * 64], b"ok, " + b"n" * 64),
        (["", *(f"m{number}" for number in range(100))], b", ".join(b"m%d" % number for number in range(NAMES_MAX))),
    ],
)
def test_names_are_listed_as_far_as_they_are_fit_for_it(members: list[str], value: bytes):
    assert name_list(members) == value

"""Error answers as providers send them, and whose fault each is."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import MESSAGE_CHARS_MAX, ResponseHead
from gateway_adapters.failures import RETRY_AFTER_S_MAX, classify, duration_s


def head(status: int, **headers: str) -> ResponseHead:
    return ResponseHead(
        status, [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    )


@pytest.mark.parametrize(
    ("status", "body", "blame"),
    [
        # OpenAI
        (400, b'{"error":{"message":"Unknown parameter: foo","type":"invalid_request_error","code":"unknown_parameter"}}', "caller"),
        (400, b'{"error":{"message":"...","type":"invalid_request_error","code":"context_length_exceeded"}}', "context"),
        (400, b'{"error":{"message":"Rejected by our safety system.","code":"content_policy_violation"}}', "policy"),
        (400, b'{"error":{"message":"Hard limit.","type":"insufficient_quota","code":"billing_hard_limit_reached"}}', "key"),
        (401, b'{"error":{"message":"Incorrect API key provided.","code":"invalid_api_key"}}', "key"),
        (403, b'{"error":{"message":"Country not supported","code":"unsupported_country_region_territory"}}', "key"),
        (404, b'{"error":{"message":"The model does not exist","code":"model_not_found"}}', "caller"),
        (429, b'{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}', "provider"),
        (429, b'{"error":{"message":"You exceeded your quota.","type":"insufficient_quota"}}', "key"),
        (429, b'{"error":{"message":"Request too large for gpt-x on tokens per min (TPM): Limit 1, Requested 2"}}', "context"),
        (429, b'{"error":{"message":"The engine is currently overloaded","type":"server_error"}}', "provider"),
        (500, b'{"error":{"message":"Oops","type":"server_error"}}', "provider"),
        (503, b'{"error":{"message":"Slow down","code":"server_is_overloaded"}}', "provider"),
        # Azure
        (400, b'{"error":{"message":"Filtered","code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}', "policy"),
        (404, b'{"error":{"code":"DeploymentNotFound","message":"No such deployment"}}', "caller"),
        (401, b'{"statusCode":401,"message":"Access denied"}', "key"),
        # Google, plain and in an array
        (400, b'[{"error":{"code":400,"status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}]', "key"),
        (400, b'{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"The input token count (9) exceeds 5"}}', "context"),
        (429, b'[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Quota"}}]', "provider"),
        # Mistral
        (422, b'{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","x"]}]}}', "caller"),
        (422, b'{"detail":[{"loc":["body","messages"],"msg":"field required"}]}', "caller"),
        (429, b'{"object":"error","message":"Service tier capacity exceeded for this model."}', "provider"),
        # DeepSeek, xAI, OpenRouter
        (402, b'{"error":{"message":"Insufficient Balance"}}', "key"),
        (400, b'{"code":"invalid-argument","error":"Incorrect API key provided: xai-123"}', "key"),
        (403, b'{"error":{"code":403,"message":"Flagged","metadata":{"reasons":["x"],"flagged_input":"..."}}}', "policy"),
        (429, b'{"error":{"code":429,"message":"Provider error","metadata":{"raw":"m is temporarily rate-limited upstream"}}}', "provider"),
        (400, b'{"error":{"code":400,"message":"Provider error","metadata":{"raw":"maximum context length is 8"}}}', "context"),
        # vLLM, Ollama, Hugging Face
        (400, b'{"object":"error","message":"This model\'s maximum context length is 8 tokens","code":400}', "context"),
        (404, b'{"error":"model \\"x\\" not found, try pulling it first"}', "caller"),
        (422, b'{"error":"Input validation error","error_type":"validation"}', "caller"),
        # Groq
        (413, b'{"error":{"message":"Request too large for model `x` on tokens per minute (TPM)","code":"rate_limit_exceeded"}}', "context"),
        (498, b'{"error":{"message":"Flex capacity exceeded"}}', "provider"),
        # Anything else
        (413, b"", "caller"),
        (408, b"", "provider"),
        (409, b'{"error":{"message":"Lock"}}', "provider"),
        (418, b"", "caller"),
        (451, b"", "policy"),
        (502, b"<html><body>502 Bad Gateway: maximum context length</body></html>", "provider"),
        (529, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', "provider"),
        (400, b'{"error":null,"message":"prompt is too long: 9 tokens"}', "context"),
        (400, b"[]", "caller"),
        (400, b"7", "caller"),
        (307, b"", "provider"),
    ],
)  # fmt: skip
def test_blame(status: int, body: bytes, blame: str) -> None:
    assert classify(head(status), body).blame == blame


def test_what_the_request_says_does_not_count() -> None:
    body = b'{"error":{"message":"bad","code":"invalid_value"},"request":{"messages":"maximum context length"}}'

    assert classify(head(400), body).blame == "caller"


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry_after": "20"}, b"", 20),
        ({"retry_after": "0.5"}, b"", 0.5),
        ({"retry_after": "20", "retry_after_ms": "1500"}, b"", 1.5),
        ({"x_ms_retry_after_ms": "250"}, b"", 0.25),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"", 30),
        ({"retry_after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"", 0),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:30 GMT"}, b"", None),
        ({"retry_after": "soon", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"", None),
        ({"retry_after": "nan"}, b"", None),
        ({"retry_after": "-5"}, b"", 0),
        ({"retry_after": "1e300"}, b"", RETRY_AFTER_S_MAX),
        ({}, b'[{"error":{"code":429,"details":[{"@type":"RetryInfo","retryDelay":"55s"}]}}]', 55),
        ({}, b'{"error":{"message":"Rate limit reached. Please try again in 1m30.5s. Visit"}}', 90.5),
        ({}, b'{"error":{"message":"Please try again in 250ms."}}', 0.25),
        ({}, b'{"error":{"message":"Please retry after 6 seconds."}}', 6),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0s"}, b"", 360),
        ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "2m59.56s"}, b"", 179.56),
        ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "30"}, b"", 30),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "1790000000000"}, b"", None),
        ({"x_ratelimit_remaining_tokens": "9", "x_ratelimit_reset_tokens": "6m0s"}, b"", None),
        ({}, b"", None),
    ],
)  # fmt: skip
def test_when_to_come_back(headers: dict[str, str], body: bytes, seconds: float | None) -> None:
    found = classify(head(429, **headers), body).retry_after_s

    assert found == (seconds if seconds is None else pytest.approx(seconds))


def test_a_refusal_that_stands_has_no_time_to_come_back() -> None:
    assert classify(head(400, retry_after="3"), b"").retry_after_s is None
    assert classify(head(503, retry_after="3"), b"").retry_after_s == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12ms", 0.012), ("1s", 1), ("1.5s", 1.5), ("6m0s", 360), ("1h2m3s", 3723), ("24h0m0s", 86400), ("2m", 120)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5", "5 s", "-5s", "1s1h", "ms"])
def test_what_is_no_duration(text: str) -> None:
    assert duration_s(text) is None


@pytest.mark.parametrize(
    ("status", "body", "message", "code"),
    [
        (
            400,
            b'{"error":{"message":"prompt is too long: 9 > 8"}}',
            "prompt is too long: 9 > 8",
            "context_length_exceeded",
        ),
        (400, b'{"error":{"message":"Filtered","code":"content_filter"}}', "Filtered", "content_filter"),
        (429, b'{"Message":"Slow down"}', "Slow down", "rate_limit_exceeded"),
        (404, b'{"message":"model x not found"}', "model x not found", "model_not_found"),
        (404, b'{"error":{"code":"DeploymentNotFound","message":"No"}}', "No", "model_not_found"),
        (404, b'{"error":{"message":"No such file"}}', "No such file", None),
        (400, b'{"error":{"message":"invalid model ID"}}', "invalid model ID", "model_not_found"),
        (400, b'{"error":{"message":"m is not a valid model ID"}}', "m is not a valid model ID", "model_not_found"),
        (400, b'{"error":{"message":"No"}}', "No", None),
        (429, b'{"error":{"message":"Quota","type":"insufficient_quota"}}', "Quota", None),
        (502, b"<html>", "", None),
    ],
)
def test_what_a_caller_of_another_dialect_is_told(status: int, body: bytes, message: str, code: str | None) -> None:
    failure = classify(head(status), body)

    assert (failure.message, failure.code) == (message, code)


def test_the_message_is_bounded_and_holds_no_key() -> None:
    body = msgspec.json.encode({"error": {"message": "key opensesame and sk-0123456789abcdef " + "x" * 5000}})

    message = classify(head(400), body, secret="opensesame").message

    assert message.startswith("key *** and *** x")
    assert len(message) == MESSAGE_CHARS_MAX


def test_codes_may_come_from_a_header() -> None:
    failure = classify(head(403), b'{"message":"No"}', codes=("ExpiredTokenException",))

    assert (failure.blame, failure.detail) == ("key", "403 ExpiredTokenException No")


def test_the_detail_is_short_and_holds_no_key() -> None:
    secret = "abcdefghijklmnop"
    body = b'{"error":{"code":"invalid_api_key","message":"Wrong key abcdefghijklmnop or sk-proj-0123456789 %s"}}' % (
        b"x" * 900
    )

    detail = classify(head(401), body, secret=secret).detail

    assert detail.startswith("401 invalid_api_key Wrong key *** or *** xxx")
    assert len(detail) <= 300


@given(status=st.integers(400, 599), body=st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["error", "message", "details", "metadata", "code", "detail", "innererror", "reason", "raw"]), inner),
).map(msgspec.json.encode), retry=st.binary())  # fmt: skip
def test_any_answer_is_classified(status: int, body: bytes, retry: bytes) -> None:
    failure = classify(ResponseHead(status, [(b"retry-after", retry), (b"date", retry)]), body)

    assert failure.blame in {"caller", "policy", "context", "key", "provider"}
    assert failure.retry_after_s is None or 0 <= failure.retry_after_s <= RETRY_AFTER_S_MAX

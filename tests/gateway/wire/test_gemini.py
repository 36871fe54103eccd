"""Google's dialect: what is read of a request, and seen in an answer that passes."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.wire.dialects import Dialect
from gateway.wire.gemini import GeminiJSONTap, GeminiSSETap, parse_gemini_usage, peek_gemini
from gateway.wire.taps import BODY_BYTES_MAX
from gateway.wire.usage import Usage

TEXT = (
    b'{"candidates":[{"content":{"role":"model","parts":[{"text":"Hel"}]},"index":0}],'
    b'"usageMetadata":{"promptTokenCount":10,"candidatesTokenCount":1,"totalTokenCount":11}}'
)
LAST = (
    b'{"candidates":[{"content":{"role":"model","parts":[{"text":"lo"}]},"finishReason":"STOP","index":0}],'
    b'"usageMetadata":{"promptTokenCount":10,"candidatesTokenCount":7,"thoughtsTokenCount":12,"totalTokenCount":29}}'
)
REPORTED = Usage(input_tokens=10, output_tokens=19, output_reasoning_tokens=12)


def stream(*events: bytes, end: bytes = b"\r\n\r\n") -> bytes:
    return b"".join(b"data: " + event + end for event in events)


# -- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "limit", "n"),
    [
        (b'"generationConfig":{"maxOutputTokens":64,"candidateCount":3}', 64, 3),
        (b'"generation_config":{"max_output_tokens":64}', 64, 1),
        (b'"generationConfig":{"maxOutputTokens":"64"}', 64, 1),
        (b'"generationConfig":{"maxOutputTokens":64.0,"max_output_tokens":65}', 65, 1),
        (b'"generationConfig":{"maxOutputTokens":-1}', None, 1),
        (b'"generationConfig":{"maxOutputTokens":true}', None, 1),
        (b'"generationConfig":null', None, 1),
        (b'"contents":[{"parts":[{"text":"\\"generationConfig\\":{\\"maxOutputTokens\\":5}"}]}]', None, 1),
        (b'"max_tokens":5', None, 1),
    ],
)
def test_the_bounds_stand_in_the_configuration(config: bytes, limit: int | None, n: int) -> None:
    found = peek_gemini(b'{"contents":[],' + config + b"}" if b"contents" not in config else b"{" + config + b"}")

    assert (found.max_output_tokens, found.n) == (limit, n)


def test_two_configurations_are_refused() -> None:
    with pytest.raises(BadRequest):
        peek_gemini(b'{"generationConfig":{"maxOutputTokens":5},"generationConfig":{"maxOutputTokens":5000}}')


def test_only_the_path_asks_for_a_stream() -> None:
    assert peek_gemini(b"{}", stream=True).stream
    assert not peek_gemini(b'{"stream":true}').stream


@pytest.mark.parametrize(
    ("members", "tier"),
    [
        (b'"serviceTier":"PRIORITY"', "priority"),
        (b'"service_tier":"flex"', "flex"),
        (b'"serviceTier":"unspecified"', None),
        (b'"serviceTier":["flex"]', None),
        (b'"contents":"serviceTier"', None),
    ],
)
def test_a_service_tier_in_either_spelling(members: bytes, tier: str | None) -> None:
    assert peek_gemini(b"{" + members + b"}").service_tier == tier


# -- usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        ({"promptTokenCount": 10, "candidatesTokenCount": 7, "totalTokenCount": 17}, Usage(input_tokens=10, output_tokens=7)),
        (
            {"promptTokenCount": 10, "toolUsePromptTokenCount": 5, "thoughtsTokenCount": 3, "totalTokenCount": 18},
            Usage(input_tokens=15, output_tokens=3, output_reasoning_tokens=3),
        ),
        # What the parts leave out of the total was generated.
        ({"promptTokenCount": 10, "candidatesTokenCount": 7, "totalTokenCount": 29}, Usage(input_tokens=10, output_tokens=19)),
        ({"promptTokenCount": 10, "candidatesTokenCount": 7, "totalTokenCount": 2}, Usage(input_tokens=10, output_tokens=7)),
        (
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 60,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 50}, {"modality": "IMAGE", "tokenCount": 9}],
                "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}],
                "candidatesTokenCount": 30,
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 25}],
            },
            Usage(
                input_tokens=100,
                output_tokens=30,
                input_cached_tokens=60,
                input_audio_tokens=30,
                input_image_tokens=9,
                output_image_tokens=25,
            ),
        ),
        ({"promptTokenCount": 1, "candidatesTokenCount": 2, "serviceTier": "FLEX"}, Usage(input_tokens=1, output_tokens=2, service_tier="flex")),
        ({"promptTokenCount": 1, "candidatesTokenCount": 2, "serviceTier": 7}, Usage(input_tokens=1, output_tokens=2)),
        ({"trafficType": "ON_DEMAND"}, None),
    ],
)  # fmt: skip
def test_a_report_is_read(report: dict[str, object], usage: Usage | None) -> None:
    assert parse_gemini_usage(msgspec.json.encode(report)) == usage


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*"ab", "promptTokenCount", "totalTokenCount", "thoughtsTokenCount", "cachedContentTokenCount", "promptTokensDetails", "modality"]), inner, max_size=6), max_leaves=10))  # fmt: skip
def test_any_report_keeps_its_parts_inside_the_totals(report: object) -> None:
    usage = parse_gemini_usage(msgspec.json.encode(report))

    if usage is not None:
        assert usage.input_cached_tokens + usage.input_audio_tokens + usage.input_image_tokens <= usage.input_tokens
        outside = usage.output_reasoning_tokens + usage.output_audio_tokens + usage.output_image_tokens
        assert 0 <= outside <= usage.output_tokens


# -- streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n"])
@given(seed=st.integers(0, 2**32))
def test_a_stream_is_relayed_untouched_however_it_is_cut(end: bytes, seed: int) -> None:
    """The last report counts, and none are added up (case 98)."""
    body = stream(TEXT, TEXT, LAST, end=end)
    chance = random.Random(seed)
    marks = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(8)))
    tap = GeminiSSETap()

    out = b"".join(tap.feed(body[start:stop]) for start, stop in zip([0, *marks], [*marks, len(body)], strict=True))

    assert out + tap.end() == body
    assert tap.usage() == REPORTED
    assert tap.complete
    assert not tap.errored
    assert not tap.mid_event
    assert tap.repairs == 0
    assert tap.events == 3 or not marks


def test_a_stream_that_is_cut_is_not_whole_and_counts_what_was_reported() -> None:
    tap = GeminiSSETap()

    assert tap.feed(stream(TEXT) + b"data: {") == stream(TEXT)
    assert not tap.complete
    assert tap.usage() == Usage(input_tokens=10, output_tokens=1)


def test_what_googles_sdk_chokes_on_is_repaired() -> None:
    """Cases 44 and 48: comments and event names are taken out, and `data:` gets its space."""
    tap = GeminiSSETap()
    noisy = b": PROCESSING\n\n" + b"event: x\ndata:" + TEXT + b"\n\n:\n\nretry: 5\n\n" + b"data: " + LAST

    assert tap.feed(noisy) + tap.end() == stream(TEXT, LAST, end=b"\n\n")
    assert tap.usage() == REPORTED


def test_an_error_in_a_stream_is_seen_and_left_where_it_is() -> None:
    tap = GeminiSSETap()
    body = stream(TEXT, b'{"error":{"code":503,"message":"Overloaded","status":"UNAVAILABLE"}}')

    assert tap.feed(body) == body
    assert tap.errored
    assert not tap.complete


def test_a_refused_prompt_is_a_whole_answer() -> None:
    tap = GeminiSSETap()
    tap.feed(
        stream(
            b'{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":4,"totalTokenCount":4}}'
        )
    )

    assert tap.complete
    assert tap.usage() == Usage(input_tokens=4)


@pytest.mark.parametrize("size", [1, 1000, 50_000, 10**7])
def test_a_picture_too_long_to_hold_is_relayed_and_its_end_is_read(size: int) -> None:
    picture = b'{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"%b"}}]},'
    picture = picture % (b"A" * 300_000) + LAST[LAST.index(b'"finishReason"') :]
    body = stream(TEXT, picture)
    tap = GeminiSSETap()

    out = [tap.feed(body[at : at + max(size, 3)]) for at in range(0, len(body), max(size, 3))]

    assert b"".join(out) + tap.end() == body
    assert tap.complete
    assert tap.usage() == REPORTED
    assert not tap.mid_event


def test_searches_are_counted() -> None:
    grounded = LAST.replace(b'"index"', b'"groundingMetadata":{"webSearchQueries":["a","b"]},"index"')
    tap = GeminiSSETap()
    tap.feed(stream(TEXT, grounded))

    assert tap.usage() == msgspec.structs.replace(REPORTED, searches=2)


def test_without_a_report_the_text_is_estimated() -> None:
    tap = GeminiSSETap()
    event = b'{"candidates":[{"content":{"parts":[{"text":"%b"}]}}]}' % (b"word " * 40)
    tap.feed(stream(event, event))

    assert tap.usage() is None
    assert tap.delivered() == Usage(output_tokens=100, source="partial")


# -- plain answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [LAST, b"[" + TEXT + b",\r\n" + LAST + b"]"])
def test_a_plain_answer_and_an_array_of_events(body: bytes) -> None:
    tap = GeminiJSONTap(Dialect.GEMINI_GENERATE)
    for at in range(0, len(body), 7):
        piece = body[at : at + 7]
        assert tap.feed(piece) is piece
    tap.end()

    assert tap.complete
    assert tap.usage() == REPORTED


def test_the_end_of_a_long_answer_is_enough() -> None:
    body = LAST.replace(b"lo", b"lo" * BODY_BYTES_MAX)
    tap = GeminiJSONTap(Dialect.GEMINI_GENERATE)
    tap.feed(body)
    tap.end()

    assert tap.usage() == REPORTED


def test_counting_tokens_uses_none() -> None:
    tap = GeminiJSONTap(Dialect.GEMINI_COUNT_TOKENS)
    tap.feed(b'{"totalTokens":31}')
    tap.end()

    assert tap.usage() == Usage()

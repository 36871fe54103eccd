"""Usage reports of every provider in one shape."""

import msgspec
import pytest

from gateway.wire.usage import COUNT_MAX, Usage, count_searches, find_service_tier, find_usage, parse_usage


def parsed(report: object, **options: bool) -> Usage | None:
    return parse_usage(msgspec.json.encode(report), **options)


def test_chat_details_are_parts_of_the_totals():
    usage = parsed(
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {
                "cached_tokens": 40,
                "cache_write_tokens": 10,
                "audio_tokens": 5,
                "image_tokens": 3,
            },
            "completion_tokens_details": {
                "reasoning_tokens": 20,
                "audio_tokens": 2,
                "accepted_prediction_tokens": 1,
                "rejected_prediction_tokens": 9,
            },
        }
    )

    assert usage == Usage(
        input_tokens=100,
        output_tokens=50,
        input_cached_tokens=40,
        input_cache_write_tokens=10,
        input_audio_tokens=5,
        input_image_tokens=3,
        output_reasoning_tokens=20,
        output_audio_tokens=2,
    )


def test_responses_details():
    usage = parsed(
        {
            "input_tokens": 100,
            "input_tokens_details": {
                "cached_tokens": 10,
                "cache_write_tokens": 30,
                "cache_write_tokens_details": {"ttl_30m_tokens": 20, "ttl_12h_tokens": 10},
            },
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 107,
        }
    )

    assert usage == Usage(
        input_tokens=100,
        output_tokens=7,
        input_cached_tokens=10,
        input_cache_write_tokens=20,
        input_cache_write_1h_tokens=10,
        output_reasoning_tokens=3,
    )


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(input_tokens=8)),
        ({"total_tokens": 8}, Usage(input_tokens=8)),
        (
            {
                "input_tokens": 50,
                "output_tokens": 1000,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens_details": {"image_tokens": 1000},
            },
            Usage(input_tokens=50, output_tokens=1000, input_image_tokens=40, output_image_tokens=1000),
        ),
        (
            {"type": "tokens", "input_tokens": 9, "input_token_details": {"audio_tokens": 9}, "output_tokens": 4},
            Usage(input_tokens=9, output_tokens=4, input_audio_tokens=9),
        ),
        ({"type": "duration", "seconds": 2.5}, Usage(seconds=2.5)),
        ({"type": "duration", "seconds": 3}, Usage(seconds=3.0)),
        # DeepSeek
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5},
            Usage(input_tokens=9, output_tokens=1, input_cached_tokens=4),
        ),
        # Anthropic
        (
            {
                "input_tokens": 5,
                "output_tokens": 2,
                "cache_read_input_tokens": 10,
                "cache_creation_input_tokens": 20,
                "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
                "server_tool_use": {"web_search_requests": 2},
            },
            Usage(
                input_tokens=35,
                output_tokens=2,
                input_cached_tokens=10,
                input_cache_write_tokens=15,
                input_cache_write_1h_tokens=5,
                searches=2,
            ),
        ),
        (
            {"input_tokens": 5, "output_tokens": 2, "service_tier": "standard", "speed": "fast"},
            Usage(input_tokens=5, output_tokens=2, service_tier="fast"),
        ),
        (
            {"input_tokens": 5, "output_tokens": 2, "service_tier": "batch", "speed": "standard"},
            Usage(input_tokens=5, output_tokens=2, service_tier="batch"),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "num_search_queries": 3},
            Usage(input_tokens=9, output_tokens=1, searches=3),
        ),
        ({"prompt_tokens": 5.0, "completion_tokens": None}, Usage(input_tokens=5)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage()),
    ],
)
def test_other_shapes(report: dict[str, object], expected: Usage):
    assert parsed(report) == expected


def test_case_101_reasoning_left_out_of_the_completion_is_added_once():
    xai = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 35,
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    openai = xai | {"completion_tokens": 25}
    mostly_text = {**xai, "completion_tokens": 25, "total_tokens": 55}

    assert parsed(mostly_text) == Usage(input_tokens=10, output_tokens=45, output_reasoning_tokens=20)
    assert parsed(xai) == parsed(openai) == Usage(input_tokens=10, output_tokens=25, output_reasoning_tokens=20)


def test_what_a_total_has_above_its_parts_is_reasoning_where_a_row_says_so():
    gemini = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 135}
    expected = Usage(input_tokens=10, output_tokens=125, output_reasoning_tokens=120)

    assert parsed(gemini, reasoning_in_total=True) == expected
    assert parsed(gemini) == Usage(input_tokens=10, output_tokens=5)
    # Named after all: not twice.
    named = gemini | {"completion_tokens_details": {"reasoning_tokens": 120}}
    assert parsed(named, reasoning_in_total=True) == expected
    for total in (15, 3, None):
        plain = gemini | {"total_tokens": total}
        assert parsed(plain, reasoning_in_total=True) == Usage(input_tokens=10, output_tokens=5)


def test_parts_never_exceed_their_total():
    usage = parsed(
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 8, "audio_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 1},
        }
    )

    assert usage == Usage(
        input_tokens=10,
        output_tokens=5,
        input_cached_tokens=8,
        input_cache_write_tokens=2,
        output_reasoning_tokens=5,
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"7",
        b'{"prompt_tokens":null}',
        b'{"prompt_tokens":"5"}',
        b'{"prompt_tokens":-5}',
        b'{"prompt_tokens":true}',
        b'{"prompt_tokens":1.5}',
        b'{"prompt_tokens":1e400}',
        b'{"prompt_tokens":%d}' % (COUNT_MAX + 1),
        b'{"prompt_tokens":' + b"9" * 6000 + b"}",
        b'{"prompt_tokens":5',
        b'{"\xff":5}',
        b'{"x":' + b"[" * 2000,
    ],
)
def test_what_reports_nothing_is_none(raw: bytes):
    assert parse_usage(raw) is None


@pytest.mark.parametrize(
    ("extra", "nanos"),
    [
        (b'"cost":0.00014', 140_000),
        (b'"cost":1', 1_000_000_000),
        (b'"cost":1e-10', 1),
        (b'"cost":0.1', 100_000_000),
        (b'"cost":0.01,"is_byok":true,"cost_details":{"upstream_inference_cost":0.2}', 210_000_000),
        (b'"cost":0.01,"is_byok":false,"cost_details":{"upstream_inference_cost":0.2}', 10_000_000),
        (b'"cost":{"total_cost":0.006}', 6_000_000),
        (b'"cost_in_usd_ticks":37756000', 3_775_600),
        (b'"cost":-1', None),
        (b'"cost":1e999999999', None),
        (b'"cost":"0.1"', None),
        (b'"cost":true', None),
        (b'"x":0', None),
    ],
)
def test_case_102_a_providers_own_charge_counts_where_it_is_trusted(extra: bytes, nanos: int | None):
    raw = b'{"prompt_tokens":1,%b}' % extra

    trusted, untrusted = parse_usage(raw, trust_cost=True), parse_usage(raw)

    assert trusted is not None
    assert untrusted is not None
    assert trusted.provider_cost_nanos == nanos
    assert untrusted.provider_cost_nanos is None


USAGE = b'{"prompt_tokens":1,"x":{"y":[1]},"s":"}\\"{"}'


@pytest.mark.parametrize("cut", [0, 1, 5, 9, 13])
def test_usage_is_found_from_the_end_of_a_cut_text(cut: int):
    text = b'\\"a\\\\","z":1}],"usage": ' + USAGE + b',"system_fingerprint":"fp_{","a":[{"b":1}]} \n'

    assert find_usage(text[cut:]) == USAGE
    assert find_usage(text[cut:], depths=(2,)) is None


def test_usage_inside_text_or_deeper_down_is_not_found():
    inside = b'{"choices":[{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}}]}'
    deeper = b'{"output":[{"usage":{"prompt_tokens":9}}]}'
    named = b'{"a \\"usage":{"prompt_tokens":9}}'
    other = b'{"tool_usage":{"a":1},"usage":null}'

    for text in (inside, deeper, named, other, b"", b'"usage":{', b'x"usage":{"a":1'):
        assert find_usage(text) is None
    assert find_usage(b'{"usage":{"a":1},"output":[{"usage":{"a":2}}]}') == b'{"a":1}'


def test_usage_in_the_response_of_an_event():
    text = b'"output":[]},"response":{"usage":{"a":1},"user":null}}'

    assert find_usage(text, depths=(1, 2)) == b'{"a":1}'


def test_a_service_tier_is_found_from_the_end():
    assert find_service_tier(b'x,"service_tier" : "flex"}') == "flex"
    assert find_service_tier(b'x,"service_tier":null}') is None
    assert find_service_tier(b'x \\"service_tier":"flex"') is None
    assert find_service_tier(b"") is None


def test_searches_beside_the_usage():
    assert count_searches(b'{"web_search":{"num_requests":3}}') == 3
    assert count_searches(b"null") == count_searches(b"") == count_searches(b'{"web_search":1}') == 0

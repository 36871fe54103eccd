"""Lists of models as providers write them, read; and what of their prices can be meant."""

import asyncio
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.listing import MODELS_MAX, ListedModel, read_page
from gateway.catalogue.lists import Facts, Lists, decode_models, digest_of, encode_facts, encode_models
from gateway.catalogue.plausible import judge_prices
from gateway.kernel.money import Price, Tier
from tests.gateway.catalogue.test_rows import NOW

OPENROUTER = {
    "id": "deepseek/deepseek-x",
    "canonical_slug": "deepseek/deepseek-x-2026",
    "name": "DeepSeek: X",
    "created": 1790000000,
    "description": "A model.",
    "context_length": 163840,
    "architecture": {
        "modality": "text->text",
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "tokenizer": "DeepSeek",
        "instruct_type": None,
    },
    "pricing": {"prompt": "0.00000027", "completion": "0.0000011", "internal_reasoning": "0", "request": "0"},
    "top_provider": {"context_length": 163840, "max_completion_tokens": 65536, "is_moderated": False},
    "per_request_limits": None,
    "supported_parameters": ["temperature", "tools", "response_format"],
    "hugging_face_id": "deepseek-ai/DeepSeek-X",
}


def one(**members) -> ListedModel:
    [model] = read_page(msgspec.json.encode({"data": [{"id": "m", **members}]})).models
    return model


def test_openrouter():
    page = read_page(msgspec.json.encode({"data": [OPENROUTER]}))

    assert page.following == ""
    assert page.models == (
        ListedModel(
            id="deepseek/deepseek-x",
            name="DeepSeek: X",
            description="A model.",
            created_s=1790000000,
            context_tokens=163840,
            output_tokens_max=65536,
            price=Price(input_mtok_nanos=270_000_000, output_mtok_nanos=1_100_000_000),
            inputs=("text",),
            outputs=("text",),
            parameters=("temperature", "tools", "response_format"),
            lacks=("vision", "audio"),
            tokenizer="DeepSeek",
            hugging_face_id="deepseek-ai/DeepSeek-X",
            moderated=False,
        ),
    )


@pytest.mark.parametrize(
    ("model", "context", "output"),
    [
        ({"context_window": 131072, "max_completion_tokens": 32768}, 131072, 32768),  # Groq
        ({"max_context_length": 32768}, 32768, None),  # Mistral
        ({"max_model_len": 8192}, 8192, None),  # vLLM
        ({"metadata": {"context_length": 40960}}, 40960, None),  # DeepInfra
        ({"max_input_tokens": 200000, "max_output_tokens": 64000}, 200000, 64000),
        ({"context_length": "many", "max_completion_tokens": -1}, None, None),
        ({"context_length": True}, None, None),
        ({"context_length": 10**18}, None, None),
    ],
)
def test_how_much_it_takes(model, context, output):
    listed = one(**model)

    assert (listed.context_tokens, listed.output_tokens_max) == (context, output)


def test_google():
    model = {
        "name": "models/gemini-x",
        "displayName": "Gemini X",
        "inputTokenLimit": 1048576,
        "outputTokenLimit": 65536,
    }
    page = read_page(msgspec.json.encode({"models": [model], "nextPageToken": "abc"}))

    assert page.following == "abc"
    assert page.models == (
        ListedModel(id="gemini-x", name="Gemini X", context_tokens=1048576, output_tokens_max=65536),
    )


def test_anthropic():
    model = {"type": "model", "id": "claude-x", "display_name": "Claude X", "created_at": "2026-01-01T00:00:00Z"}

    page = read_page(msgspec.json.encode({"data": [model], "has_more": True, "last_id": "claude-x"}))

    assert page.following == "claude-x"
    assert page.models == (ListedModel(id="claude-x", name="Claude X"),)
    assert read_page(msgspec.json.encode({"data": [model], "has_more": False, "last_id": "claude-x"})).following == ""


def test_together_has_no_envelope_and_prices_for_a_million_tokens():
    body = msgspec.json.encode([{"id": "m", "pricing": {"input": 0.18, "output": 0.59, "hourly": 0, "base": 0}}])

    [model] = read_page(body).models

    assert model.price == Price(input_mtok_nanos=180_000_000, output_mtok_nanos=590_000_000)


@pytest.mark.parametrize(
    "pricing",
    [
        {},
        {"prompt": "-1", "completion": "-1"},
        {"prompt": "NaN", "completion": "1"},
        {"prompt": "1e400", "completion": "0"},
        {"prompt": "free", "completion": "0"},
        {"prompt": "0", "completion": "0"},
        {"input": 0, "output": 0},
        {"input": None, "output": 1},
        {"prompt": "0", "completion": "0.00001"},
        {"prompt": "0.00001", "completion": "0"},
        {"input": 0, "output": 2},
        {"input": True, "output": 1},
        {"prompt": "0.000001", "completion": "0.000002", "overrides": [{"utc_start": "0100", "prompt": "0.1"}]},
        {"prompt": "0.000001", "completion": "0.000002", "overrides": [{"min_prompt_tokens": "many"}]},
    ],
)
def test_what_is_no_price_is_none(pricing):
    assert one(pricing=pricing).price is None


def test_zero_is_believed_of_models_that_say_so_in_their_name():
    [model] = read_page(
        msgspec.json.encode({"data": [{"id": "a/b:free", "pricing": {"prompt": "0", "completion": "0"}}]})
    ).models

    assert model.price == Price()


@pytest.mark.parametrize(
    "model",
    [
        {"id": "text-embedding-x", "pricing": {"prompt": "0.00000002", "completion": "0"}},
        {
            "id": "acme/vectors",
            "architecture": {"output_modalities": ["embeddings"]},
            "pricing": {"prompt": "0.00000002", "completion": "0"},
        },
        {"id": "acme/search", "pricing": {"prompt": "0", "completion": "0", "request": "0.005"}},
    ],
)
def test_not_everything_is_paid_for_by_what_it_writes(model):
    [found] = read_page(msgspec.json.encode({"data": [model]})).models

    assert found.price is not None


def test_what_was_kept_is_not_given_away():
    price = one(pricing={"prompt": "0.000001", "completion": "0.000002", "input_cache_read": "0"}).price

    assert price is not None
    assert price.input_cached_mtok_nanos is None


def test_larger_prompts_may_cost_more():
    pricing = {"prompt": "0.000001", "completion": "0.000002", "input_cache_read": "0.0000001"}
    override = {"min_prompt_tokens": 200000, "prompt": "0.000003"}

    price = one(pricing={**pricing, "overrides": [override]}).price

    assert price is not None
    assert price.tiers == (
        Tier(
            above_tokens=200000,
            price=Price(
                input_mtok_nanos=3_000_000_000, output_mtok_nanos=2_000_000_000, input_cached_mtok_nanos=100_000_000
            ),
        ),
    )


@pytest.mark.parametrize(
    ("model", "lacks"),
    [
        ({}, ()),
        ({"supported_parameters": ["temperature"]}, ("tools", "json_schema")),
        ({"supported_parameters": ["tools", "structured_outputs"]}, ()),
        ({"architecture": {"input_modalities": ["text", "image", "audio"]}}, ()),
        ({"architecture": {"input_modalities": ["text", "image"]}}, ("audio",)),
        ({"capabilities": {"function_calling": False, "vision": True}}, ("tools",)),
        ({"supports_tools": False, "supports_image_input": False}, ("tools", "vision")),
    ],
)
def test_it_lacks_what_its_list_denies_it(model, lacks):
    assert one(**model).lacks == lacks


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b'{"data":{}}', b'{"object":"list"}', b"[" * 5000, b"\xff"]
)
def test_what_is_no_list_is_refused(body):
    with pytest.raises(ValueError, match="list of models"):
        read_page(body)


def test_models_that_are_none_are_left_out():
    body = msgspec.json.encode({"data": [1, None, {}, {"id": ""}, {"id": "x" * 300}, {"id": "a\nb"}, {"id": "good"},
                                         {"id": "off", "active": False}]})  # fmt: skip

    assert [model.id for model in read_page(body).models] == ["good"]


def test_a_list_is_bounded():
    body = b'{"data":[' + b",".join(b'{"id":"%d"}' % n for n in range(MODELS_MAX + 10)) + b"]}"

    assert len(read_page(body).models) == MODELS_MAX


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(OPENROUTER)), inner, max_size=6)
    ),
    max_leaves=30,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.text(max_size=5)}, optional={name: ANYTHING for name in OPENROUTER if name != "id"}
        )
    )
)
def test_whatever_it_says_it_is_read(models):
    page = read_page(json.dumps({"data": models}).encode())

    kept = asyncio.run(decode_models(encode_models(page.models)))
    assert kept == page.models
    assert digest_of(kept) == digest_of(page.models)


def test_a_long_list_is_taken_apart_in_turns():
    models = tuple(ListedModel(id=f"m{number}") for number in range(1001))

    assert asyncio.run(decode_models(encode_models(models))) == models
    assert asyncio.run(decode_models(encode_models(()))) == ()


def test_facts_are_what_the_data_plane_needs():
    models = (ListedModel(id="a", context_tokens=5, lacks=("tools",)), ListedModel(id="b", name="B"))

    lists = Lists({"p": encode_facts(models)})

    assert lists.facts("p", "a") == Facts(5, None, ("tools",))
    assert lists.facts("p", "b") == lists.facts("p", "c") == lists.facts("q", "a") == Facts()


# -- what can be meant -----------------------------------------------------------------------------------------------


@pytest.fixture
def judged(catalogue):
    def judge(price: Price, model: str = "gpt-4o-mini", provider: str = "openai") -> ListedModel:
        [found] = judge_prices([ListedModel(id=model, price=price)], catalogue, provider, at=NOW)
        return found

    return judge


def test_a_price_that_the_catalogue_has_as_well_is_left_to_it(judged, catalogue):
    published = catalogue.price("openai", "gpt-4o-mini", at=NOW)
    assert published is not None

    found = judged(Price(input_mtok_nanos=published.input_mtok_nanos, output_mtok_nanos=published.output_mtok_nanos))

    assert (found.price, found.refused) == (None, "")


def test_another_price_is_taken(judged):
    assert judged(Price(input_mtok_nanos=1_000_000_000, output_mtok_nanos=2_000_000_000)).price is not None


@pytest.mark.parametrize(
    ("model", "provider"), [("gpt-4o-mini", "openai"), ("new-model", "openai"), ("new-model", "")]
)
def test_a_slip_in_the_units_is_refused(judged, model, provider):
    """For one token where a million is meant."""
    found = judged(Price(input_mtok_nanos=150, output_mtok_nanos=600), model, provider)

    assert found.price is None
    assert "times below the usual" in found.refused

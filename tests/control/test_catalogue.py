"""What can be called here, as anybody may read it."""

import pytest

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.lists import ListStore
from gateway.catalogue.metrics import HuggingFaceMetrics, MetricStore, is_id, read_metrics
from gateway.catalogue.sites import Site, read_sites, site_of
from gateway.catalogue.tariff import pricing_of
from gateway.control.catalogue.models import at_gateway, of_provider
from gateway.control.shelf import Entry, Place
from gateway.exchange import Offer
from gateway.kernel.money import Price
from tests.control.desk import Desk

LISTED = (
    ListedModel(
        id="acme/large",
        name="Acme: Large",
        description="Knows all.",
        created_s=1790000000,
        context_tokens=200_000,
        output_tokens_max=8_000,
        inputs=("text", "image"),
        outputs=("text",),
        parameters=("tools",),
        hugging_face_id="acme/Large",
        moderated=True,
    ),
    ListedModel(id="acme/small"),
    ListedModel(id="openai/gpt-x", name="GPT X"),
)


@pytest.fixture
async def stocked(desk: Desk) -> Desk:
    """The echo provider says that it has three models."""
    store = ListStore(desk.parts.database)
    await store.know(["echo"])
    await store.put("echo", LISTED, next_s=3600)
    await desk.parts.prices.read(desk.parts.database)
    return desk


async def test_models_are_shown_with_what_is_known_of_them(stocked):
    answer = await stocked.nobody.get("/catalog/models")

    page = answer.json
    assert answer.status == 200
    assert answer.headers["cache-control"] == "public, max-age=60"
    assert [model["id"] for model in page["data"]] == ["echo", "acme/large", "acme/small", "openai/gpt-x"]
    assert (page["total"], page["returned"], page["offset"], page["gateway"]) == (4, 4, 0, "all")
    model = page["data"][1]
    assert model["name"] == "Acme: Large"
    assert model["context_length"] == model["top_provider"]["context_length"] == 200_000
    assert model["top_provider"]["max_completion_tokens"] == 8_000
    assert model["architecture"]["modality"] == "text+image->text"
    assert model["pricing"] == {
        "prompt": "0",
        "completion": "0",
        "request": "0",
        "image": "0",
        "web_search": "0",
        "internal_reasoning": "0",
    }
    assert (model["provider_slug"], model["source_gateway"]) == ("acme", "echo")
    assert "huggingface_metrics" not in model
    gpt = page["data"][3]
    assert gpt["provider_site_url"] == "https://openai.com"
    assert gpt["model_logo_url"] == "https://www.google.com/s2/favicons?domain=openai.com&sz=128"


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({"provider": "acme"}, ["acme/large", "acme/small"]),
        ({"provider": "GPT"}, ["openai/gpt-x"]),
        ({"provider": "nobody"}, []),
        ({"limit": 1, "offset": 1}, ["acme/large"]),
        ({"gateway": "echo", "offset": 3}, ["openai/gpt-x"]),
        ({"gateway": "openrouter"}, []),
    ],
)
async def test_a_part_of_them_can_be_had(stocked, query, ids):
    answer = await stocked.nobody.get("/models", **query)

    assert [model["id"] for model in answer.json["data"]] == ids


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"offset": -1}, {"gateway": "x" * 201}])
async def test_what_can_not_be_asked_is_said(desk, query):
    assert (await desk.nobody.get("/catalog/models", **query)).status == 422


@pytest.mark.parametrize("path", ["/catalog/provider", "/v1/provider", "/models/providers"])
async def test_makers(stocked, path):
    page = (await stocked.nobody.get(path)).json

    assert [(maker["slug"], maker["model_count"]) for maker in page["data"]] == [
        ("acme", 2),
        ("echo", 1),
        ("openai", 1),
    ]
    openai = page["data"][2]
    assert (openai["name"], openai["site_url"]) == ("OpenAI", "https://openai.com")
    assert openai["status_page_url"] == "https://status.openai.com"
    assert page["data"][0]["site_url"] is None


async def test_moderated_makers(stocked):
    page = (await stocked.nobody.get("/catalog/provider", moderated_only=True)).json

    assert [maker["slug"] for maker in page["data"]] == ["acme"]


@pytest.mark.parametrize("path", ["/catalog/model/acme/large", "/catalog/model/echo/acme/large"])
async def test_one_model_and_where_it_can_be_had(stocked, path):
    answer = (await stocked.nobody.get(path)).json

    assert answer["data"]["id"] == "acme/large"
    [endpoint] = answer["data"]["endpoints"]
    assert (endpoint["provider_name"], endpoint["context_length"]) == ("echo", 200_000)


async def test_a_model_that_nobody_has(stocked):
    answer = await stocked.nobody.get("/catalog/model/acme/huge")

    assert answer.status == 404
    assert "acme/huge" in answer.detail


async def test_the_models_of_a_maker(stocked):
    page = (await stocked.nobody.get("/catalog/developer/Acme/models", limit=1)).json

    assert (page["developer"], page["total"], page["count"]) == ("Acme", 2, 1)
    assert [model["id"] for model in page["models"]] == ["acme/large"]


# -- rules -----------------------------------------------------------------------------------------------------------


def entry(model: str, *providers: str) -> Entry:
    return Entry(model, tuple(Place(provider, model, None) for provider in providers))


def test_the_models_of_one_provider_are_as_it_has_them():
    entries = [entry("a/b", "one", "two"), entry("c", "two")]

    assert at_gateway(entries, "all") == at_gateway(entries, "ALL") == entries
    assert at_gateway(entries, "two") == [entry("a/b", "two"), entry("c", "two")]
    assert at_gateway(entries, "one") == [entry("a/b", "one")]


def test_a_name_without_a_maker_is_its_providers():
    assert of_provider([entry("gpt-x", "openai"), entry("x", "y")], "OpenAI") == [entry("gpt-x", "openai")]


def test_prices_are_what_callers_pay_exactly():
    price = Price(
        input_mtok_nanos=150_000_000,
        output_mtok_nanos=600_000_001,
        input_cached_mtok_nanos=75_000_000,
        search_nanos=10_000_000,
        markup_permille=1_150,
    )

    pricing = pricing_of(Offer(model="m", provider="p", upstream_model="m", price=price))

    assert pricing is not None
    assert (pricing.prompt, pricing.completion) == ("0.0000001725", "0.00000069000000115")
    assert (pricing.input_cache_read, pricing.input_cache_write, pricing.web_search) == (
        "0.00000008625",
        None,
        "0.0115",
    )
    assert pricing_of(Offer(model="m", provider="p", upstream_model="m")) is None


def test_sites_are_addresses_of_their_own():
    for slug, site in read_sites().items():
        assert slug == slug.lower()
        assert site.name
        for address in (site.site, site.privacy, site.terms, site.status):
            assert address is None or address.startswith("https://")
    assert site_of("OpenAI").name == "OpenAI"
    assert site_of("nobody") == Site(name="nobody")
    assert site_of("openai").logo_url("") is None


# -- Hugging Face ----------------------------------------------------------------------------------------------------


async def test_metrics_are_kept(desk):
    store = MetricStore(desk.parts.database)
    await store.know(["acme/Large", "not an id", "../etc"])

    assert "acme/Large" in await store.claim(lease_s=60)
    metrics = HuggingFaceMetrics(downloads=5, likes=2, pipeline_tag="text-generation", author="acme")
    await store.put("acme/Large", metrics, next_s=3600)

    assert await store.read(["acme/Large", "acme/Small"]) == {"acme/Large": metrics}


def test_metrics_are_read():
    body = (
        b'{"id":"a/b","downloads":12,"likes":3,"pipeline_tag":"text-generation","safetensors":{"total":7000000000},'
        b'"gated":"auto","private":false,"lastModified":"2026-01-01T00:00:00.000Z","author":"a","tags":[1]}'
    )

    assert read_metrics(body) == HuggingFaceMetrics(
        downloads=12,
        likes=3,
        pipeline_tag="text-generation",
        num_parameters=7_000_000_000,
        gated=True,
        last_modified="2026-01-01T00:00:00.000Z",
        author="a",
    )
    assert read_metrics(b'{"downloads":"many","likes":-1,"safetensors":[]}') == HuggingFaceMetrics()


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"\xff"])
def test_what_is_no_answer_is_refused(body):
    with pytest.raises(ValueError, match="Hugging Face"):
        read_metrics(body)


@pytest.mark.parametrize(
    ("text", "good"),
    [("a/b", True), ("meta-llama/Llama-3.1-8B", True), ("", False), ("a", False), ("a/b/c", False), ("a/..", False)],
)
def test_names_of_repositories(text, good):
    assert is_id(text) is good

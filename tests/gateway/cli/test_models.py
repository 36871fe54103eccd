import asyncio
from collections.abc import Mapping

import msgspec
import pytest

from gateway.__main__ import main
from gateway.catalogue.listing import ListedModel
from gateway.catalogue.lists import ListStore
from gateway.catalogue.snapshot import FILE_NAME, Snapshot, build_apart, decode, edition, encode
from gateway.infra.postgres import Database
from gateway.kernel.money import Price

CONFIG = """
providers_from_environment = false
[providers.openai]
adapter = "openai"
base_url = "https://api.openai.com/v1"
api_key = "sk-test"
models = ["gpt-4o", "whisper-1", "gpt-5.4", "unheard-of"]
markup = 1.5
[providers.deepseek]
adapter = "compatible"
base_url = "https://api.deepseek.com/v1"
api_key = "sk-test"
"""


@pytest.fixture(scope="module")
def catalogue() -> bytes:
    return build_apart()


@pytest.fixture
def models(tmp_path, catalogue, capsys):
    """Runs `gateway models ARGS` on a configuration: exit status and output."""

    def run(*arguments: str, config: str = CONFIG) -> tuple[int, str]:
        (tmp_path / "gateway.toml").write_text(config)
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        if not (data / FILE_NAME).exists():
            (data / FILE_NAME).write_bytes(catalogue)
        status = main(["models", *arguments, "--config", str(tmp_path / "gateway.toml"), "--data-dir", str(data)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def rows(text: str) -> dict[tuple[str, ...], list[str]]:
    """The words of a table's lines by model and provider."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith(("Prices", "Without"))]
    return {(words[0], words[1]): words[2:] for words in lines}


def test_models_and_what_callers_pay_for_them(models):
    status, text = models()

    table = rows(text)
    assert status == 0
    assert table["gpt-4o", "openai"] == ["3.75", "15.00", "128,000"]
    assert table["gpt-5.4", "openai"] == ["3.75", "22.50", "1,050,000", "more", "above", "272,000"]
    assert table["whisper-1", "openai"][3:] == ["0.54", "an", "hour"]
    assert table["unheard-of", "openai"] == ["-", "-", "-", "unpriced"]
    assert table["echo", "echo"] == ["-", "-", "-", "free"]
    # It takes any model, so those of the catalogue are shown, and not those of others.
    assert table["deepseek-v4-pro", "deepseek"][-4:] == ["by", "date", "or", "time"]
    assert ("gpt-4o", "deepseek") not in table


def test_only_the_models_that_are_asked_for(models):
    _, text = models("v4-")

    assert {model for model, _ in rows(text)} == {"MODEL", "deepseek-v4-flash", "deepseek-v4-pro"}
    assert models("misspelled") == (0, "no model has 'misspelled' in its name\n")


def test_json_is_exact(models):
    status, text = models("gpt-4o", "--json")

    (listing,) = msgspec.json.decode(text)
    assert status == 0
    assert listing["price"]["input_mtok_nanos"] == 2_500_000_000
    assert listing["price"]["markup_permille"] == 1500
    assert (listing["context_tokens"], listing["max_output_tokens"], listing["free"]) == (128_000, 16_384, False)


def test_check_names_what_cannot_be_called(models):
    status, text = models("--check")

    assert status == 0
    assert "unpriced: unheard-of at openai can't be called" in text
    assert "free = true" in text
    assert "refused" not in text


def test_check_finds_nothing_where_all_is_well(models):
    status, text = models("--check", config=CONFIG + '[models."*"]\nfree = true\n')

    assert status == 0
    assert "ok: every model of the configuration has a price or is free" in text


def test_check_fails_on_a_row_in_the_wrong_unit(models):
    status, text = models("--check", config=CONFIG + '[models."gpt-4o"]\ninput_usd_per_mtok = 0.0000025\n')

    assert status == 1
    assert "refused: models.gpt-4o: input at 0.0000025 USD for a million tokens is 1,000,000 times below" in text
    assert "unpriced: gpt-4o at openai" in text


def test_check_fails_on_a_price_of_the_catalogue_that_is_refused(models, tmp_path, catalogue):
    snapshot = decode(catalogue)
    cards = {provider: snapshot.cards(provider) for provider in snapshot.providers}
    odd = tuple(
        msgspec.structs.replace(card, refused="far too much") if card.id == "gpt-4o" else card
        for card in cards["openai"].cards
    )
    cards["openai"] = msgspec.structs.replace(cards["openai"], cards=odd)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE_NAME).write_bytes(encode(Snapshot.of(cards, edition=edition())))

    status, text = models("--check")

    assert status == 1
    assert "refused: openai, gpt-4o: far too much" in text
    assert "unpriced: gpt-4o at openai" in text


def test_a_mistake_in_a_row_is_named_with_its_line(models):
    status, text = models(config=CONFIG + "[models.m]\nsearch_usd = 0.01\n")

    assert status == 1
    assert "gateway.toml:14: models.m.search_usd: needs `input_usd_per_mtok` beside it" in text


# -- what providers list themselves -------------------------------------------------------------------------------


def put_lists(dsn: str, lists: Mapping[str, tuple[ListedModel, ...]], *, silent: str = "") -> None:
    async def put() -> None:
        async with Database(dsn, pool_size=1, timeout_s=20) as database:
            store = ListStore(database)
            await store.know([*lists, *([silent] if silent else [])])
            for provider, models in lists.items():
                await store.put(provider, models, next_s=60)
            if silent:
                await store.postpone(silent, "status 503", next_s=60)

    asyncio.run(put())


#: 3 and 6 dollars for a million tokens.
PRICE = Price(input_mtok_nanos=3_000_000_000, output_mtok_nanos=6_000_000_000)
DEEPSEEK = (
    ListedModel(id="deepseek-next", context_tokens=200_000, price=PRICE),
    ListedModel(id="deepseek-odd", refused="far too much"),
    ListedModel(id="deepseek-v4-pro", refused="far too little"),
    *(ListedModel(id=f"deepseek-unsold-{number}") for number in range(12)),
)


@pytest.fixture
def listed(models, database):
    """The same command beside a database in which lists are."""
    put_lists(database, {"deepseek": DEEPSEEK, "openai": (ListedModel(id="gpt-4o"),)}, silent="echo")

    def run(*arguments: str) -> tuple[int, str]:
        return models(*arguments, config=f'{CONFIG}\n[database]\nurl = "{database}"\n')

    return run


def test_models_that_only_their_provider_lists(listed):
    status, text = listed()

    table = rows(text)
    assert status == 0
    assert table["deepseek-next", "deepseek"] == ["3.00", "6.00", "200,000"]
    assert table["deepseek-unsold-0", "deepseek"] == ["-", "-", "-", "unpriced"]
    assert table["gpt-4o", "openai"] == ["3.75", "15.00", "128,000"]
    # Named in the configuration, and perhaps by mistake.
    assert table["unheard-of", "openai"] == ["-", "-", "-", "unpriced,", "not", "on", "its", "list"]
    assert ("deepseek-next", "openai") not in table


def test_json_tells_what_is_listed(listed):
    _, text = listed("--json")

    found = {(each["model"], each["provider"]): each for each in msgspec.json.decode(text)}
    assert found["gpt-4o", "openai"]["listed"] is True
    assert found["whisper-1", "openai"]["listed"] is False
    assert found["echo", "echo"]["listed"] is None
    assert list(found["gpt-4o", "openai"]) == [
        "model",
        "provider",
        "upstream_model",
        "free",
        "price",
        "context_tokens",
        "max_output_tokens",
        "refused",
        "changes_at",
        "listed",
    ]


def test_check_looks_at_providers_own_lists(listed):
    status, text = listed("--check")

    # Nobody else knows a price of it.
    assert status == 1
    assert "refused: deepseek lists deepseek-odd: far too much" in text
    assert "note: deepseek lists deepseek-v4-pro: far too little; another price is used" in text
    assert "unpriced: deepseek lists what can't be called: deepseek-odd, deepseek-unsold-0, " in text
    assert "and 5 more" in text
    assert "note: unheard-of is not on the list of openai" in text
    assert "note: echo does not say which models it has: status 503" in text


def test_a_database_that_is_away_is_told_and_no_reason_to_fail(models):
    config = f'{CONFIG}\n[database]\nurl = "postgresql://nobody@127.0.0.1:1/nothing"\n'

    status, text = models("gpt-4o", config=config)

    assert status == 0
    assert ("gpt-4o", "openai") in rows(text)
    assert "Without what providers say themselves: the database does not answer" in text

"""Provider keys that accounts bring: taken in, never shown, and nobody else's business."""

import msgspec
import pytest

from gateway.infra.embedded import Stores
from gateway.kernel.keys import CHANNEL
from gateway.secret import Secret
from gateway.settings import OwnKeys, Provider, Settings
from tests.control.desk import Caller, Desk

TEXT = "sk-a-key-of-ones-own-4711"
PATH = "/user/provider-keys"


async def count(caller: Caller) -> int:
    """Provider keys of the caller's account."""
    query = "select count(*) from provider_keys where account_id = $1"
    found: int = await caller.desk.parts.database.fetch_value(query, caller.account_id)
    return found


@pytest.fixture
def sites(people_database: str, redis_url: str) -> Stores:
    return Stores(people_database, redis_url)


async def test_a_key_is_kept_encrypted_and_never_shown(desk: Desk):
    ann = await desk.person()

    made = await ann.post(PATH, {"provider": "own", "api_key": f" {TEXT}\n", "mode": "only", "name": "Ann's"})
    listed = (await ann.get(PATH)).json
    one = await ann.get(f"{PATH}/{made.json['id']}")

    assert made.status == 200, made
    assert (made.json["last_four"], made.json["mode"], made.json["enabled"]) == ("4711", "only", True)
    assert made.json["usable"] is True
    assert listed["keys"] == [made.json] == [one.json]
    assert listed["providers"] == ["own"]
    assert listed["fee_permille"] == 50
    row = await desk.parts.database.fetch_row("select * from provider_keys where account_id = $1", ann.account_id)
    assert row is not None
    everything = repr([dict(row), made.body, one.body, listed])
    assert TEXT not in everything
    assert b"sk-a-key" not in row["sealed"]
    logged = await desk.parts.database.fetch("select before::text, after::text from audit_log")
    assert TEXT not in repr([dict(each) for each in logged])


async def test_what_it_is_used_for_can_be_changed_and_its_text_can_not(desk: Desk):
    ann = await desk.person()
    key = (await ann.post(PATH, {"provider": "own", "api_key": TEXT})).json

    changed = await ann.ask(
        "PATCH", f"{PATH}/{key['id']}", {"mode": "fallback", "enabled": False, "api_key": "other"}
    )
    named = await ann.ask("PATCH", f"{PATH}/{key['id']}", {"name": "Another"})

    assert (changed.json["mode"], changed.json["enabled"], changed.json["name"]) == ("fallback", False, "own")
    assert (named.json["mode"], named.json["enabled"], named.json["name"]) == ("fallback", False, "Another")
    assert named.json["last_four"] == "4711"


async def test_a_deleted_key_is_gone(desk: Desk):
    ann = await desk.person()
    key = (await ann.post(PATH, {"provider": "own", "api_key": TEXT})).json

    assert (await ann.delete(f"{PATH}/{key['id']}")).status == 200
    assert (await ann.get(f"{PATH}/{key['id']}")).status == 404
    assert await count(ann) == 0
    # And can be brought again.
    assert (await ann.post(PATH, {"provider": "own", "api_key": TEXT})).status == 200


async def test_the_same_key_is_taken_once_by_each_account(desk: Desk):
    ann, bob = await desk.person(), await desk.person()
    await ann.post(PATH, {"provider": "own", "api_key": TEXT})

    again = await ann.post(PATH, {"provider": "own", "api_key": TEXT})
    others = await bob.post(PATH, {"provider": "own", "api_key": TEXT})

    assert (again.status, again.json["code"]) == (409, "same_key")
    assert others.status == 200


async def test_an_account_has_so_many_and_no_more(sites):
    settings = Settings(own_keys=OwnKeys(masters={"k1": Secret("0f" * 32)}, per_account_max=2))
    async with Desk(sites, settings) as desk:
        ann = await desk.person()
        for number in range(2):
            assert (await ann.post(PATH, {"provider": "own", "api_key": f"{TEXT}{number}"})).status == 200

        third = await ann.post(PATH, {"provider": "own", "api_key": f"{TEXT}2"})

        assert (third.status, third.json["code"]) == (409, "too_many_provider_keys")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"provider": "nobody", "api_key": TEXT}, "provider"),
        # It takes no key at all.
        ({"provider": "echo", "api_key": TEXT}, "provider"),
        ({"provider": "own", "api_key": "  "}, "api_key"),
        ({"provider": "own", "api_key": "sk-two\nlines"}, "api_key"),
        ({"provider": "own", "api_key": "sk-ümlaut-in-it"}, "api_key"),
        ({"provider": "own", "api_key": "x" * 16385}, "api_key"),
        ({"provider": "own", "api_key": TEXT, "mode": "always"}, "mode"),
        ({"provider": "own"}, ""),
    ],
)
async def test_what_is_no_key_of_such_a_provider_is_refused(desk: Desk, body: dict[str, object], where: str):
    ann = await desk.person()

    answer = await ann.post(PATH, body)

    assert answer.status == 422, answer
    assert where in repr(answer.detail)
    text = str(body.get("api_key", "")).strip()
    assert not text or text[:40] not in answer.body.decode()
    assert await count(ann) == 0


SERVICE_ACCOUNT = {
    "type": "service_account",
    "project_id": "mine",
    "client_email": "a@b.example",
    "private_key": "none",
}


@pytest.mark.parametrize(
    ("provider", "key", "why"),
    [
        # The machine's own identity is nobody's.
        ("vertex", "metadata", "this machine"),
        # Nothing that a caller says decides where anything is sent.
        ("vertex", {**SERVICE_ACCOUNT, "token_uri": "https://evil.example/token"}, "token_uri"),
        ("vertex", SERVICE_ACCOUNT, "private_key"),
        ("bedrock", {"access_key_id": "AKIA1", "secret_access_key": "s", "region": "eu-west-1"}, "is not the JSON"),
        ("bedrock", {"access_key_id": "AKIA1"}, "is not the JSON"),
        (
            "azure",
            {"tenant_id": "t", "client_id": "c", "client_secret": "s", "authority": "https://e.example"},
            "JSON",
        ),
    ],
)
async def test_credentials_of_several_parts_are_taken_as_they_are_and_no_further(sites, provider, key, why):
    providers = {
        "vertex": Provider(adapter="vertex", api_key=Secret("metadata"), extra={"project": "ours"}),
        "bedrock": Provider(adapter="bedrock", api_key=Secret("ours")),
        "azure": Provider(adapter="azure", base_url="https://ours.openai.azure.com", api_key=Secret("ours")),
    }
    async with Desk(sites, Settings(providers={provider: providers[provider]})) as desk:
        ann = await desk.person()

        text = key if isinstance(key, str) else msgspec.json.encode(key).decode()
        answer = await ann.post(PATH, {"provider": provider, "api_key": text})

        assert answer.status == 422, answer
        assert why in answer.body.decode()
        assert "ours" not in answer.body.decode()


async def test_members_see_them_and_administrators_change_them(desk: Desk):
    ann = await desk.person()
    member = await desk.person(account_id=ann.account_id, account_role="member")
    key = (await ann.post(PATH, {"provider": "own", "api_key": TEXT})).json

    assert (await member.get(PATH)).json["keys"] == [key]
    assert (await member.post(PATH, {"provider": "own", "api_key": "sk-another-one"})).status == 403
    assert (await member.ask("PATCH", f"{PATH}/{key['id']}", {"enabled": False})).status == 403
    assert (await member.delete(f"{PATH}/{key['id']}")).status == 403


async def test_through_a_key_that_is_narrowed_nobody_brings_another(desk: Desk):
    ann = await desk.person()
    narrowed = await ann.key()
    await desk.parts.database.execute("update keys set model_allowlist = '{m}' where id = $1", narrowed.key_id)

    answer = await narrowed.post(PATH, {"provider": "own", "api_key": TEXT})

    assert (answer.status, answer.json["code"]) == (403, "key_narrowed")


async def test_every_gateway_key_of_the_account_is_told(desk: Desk):
    ann, bob = await desk.person(), await desk.person()
    keys = [await ann.key(), await ann.key()]
    await bob.key()
    subscription = desk.parts.redis.subscribe(CHANNEL)
    assert await anext(subscription) is None

    await ann.post(PATH, {"provider": "own", "api_key": TEXT})
    told = set()
    while len(told) < len(keys):
        message = await anext(subscription)
        assert message is not None
        told.add(message.data.decode())

    assert told == {key.key_id for key in keys}


async def test_it_is_off_without_a_master_key(sites):
    async with Desk(sites, Settings(own_keys=OwnKeys(masters={"k1": Secret("0f" * 32)}))) as desk:
        ann = await desk.person()
        desk.parts.deps.keychains.vault = type(desk.parts.deps.keychains.vault)({}, active="")

        answer = await ann.post(PATH, {"provider": "own", "api_key": TEXT})

        assert (answer.status, answer.json["code"]) == (404, "own_keys_off")
        assert (await ann.get(PATH)).json["providers"] == []


async def test_an_account_that_is_closed_leaves_none_behind(desk: Desk):
    ann = await desk.person()
    await ann.post(PATH, {"provider": "own", "api_key": TEXT})

    assert (await ann.delete("/user/account", {"confirmation": "DELETE_ACCOUNT"})).status == 200

    assert await count(ann) == 0

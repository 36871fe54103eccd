"""Every door of the data plane, from the tables that its router goes by, so that a new one is tried as well: shut to
whoever has no key, and to whoever comes with another account's id.
"""

from collections.abc import Iterator
from typing import NamedTuple, get_args

import msgspec
import pytest

from gateway.infra.postgres import Database
from gateway.kernel.key_store import create_key
from gateway.registry import _fingerprint
from gateway.secret import Secret
from gateway.settings import ObjectKind, Objects, Settings
from gateway.wire import paths
from gateway.wire.dialects import GEMINI_VERBS, PATHS
from gateway.wire.objects import _COLLECTIONS, _TABLE
from tests.acceptance.conftest import Stage
from tests.gateways import PATIENCE_S, PEPPER, PROVIDER_KEY, RunningGateway
from tests.upstreams import RECEIVE, REPEAT, ScriptedUpstream, answer, play

#: A path that an operator opened without its being understood.
OPENED = "/fine_tuning"
SETTINGS = Settings(objects=Objects(kinds=get_args(ObjectKind), relay=(OPENED,)))
#: What may be asked without a key.
OPEN = {"/health", "/healthz", "/health/ready", "/metrics"}


class Door(NamedTuple):
    method: str
    path: str
    #: Whose objects it leads to, by the kind of the first id.
    kind: str = ""


def doors() -> Iterator[Door]:
    """All of them, with `the-<kind>` for the id of an object. What is inside of one may be a file of the account's."""
    for path in PATHS:
        yield Door("POST", f"/v1{path.decode()}")
    for verb in GEMINI_VERBS:
        yield Door("POST", f"/v1beta/models/m:{verb.decode()}")
    for path in paths.RELAYED:
        yield Door("POST", f"/v1{path.decode()}")
    for path in ("/v1/models", "/v1/models/m", "/v1beta/models", "/v1/generations/x", "/v1/generation?id=x"):
        yield Door("GET", path)
    yield Door("GET", "/v1/realtime?model=m")
    yield Door("POST", "/v1/realtime/client_secrets")
    yield Door("GET", f"/v1{OPENED}/jobs")
    yield Door("GET", "/v1/whatever")
    for (collection, shape), methods in _TABLE.items():
        kind = _COLLECTIONS[collection]
        path = f"/v1/{collection}/{shape.replace('*', f'the-{kind}', 1).replace('*', 'the-file')}".rstrip("/")
        for method in methods:
            yield Door(method, path, kind if "*" in shape else "")


DOORS = tuple(doors())


@pytest.fixture
async def house(stage: Stage) -> tuple[RunningGateway, ScriptedUpstream]:
    return await stage.gateway(play(RECEIVE, answer(b'{"object":"thing"}'), REPEAT), settings=SETTINGS)


async def test_whatever_else_there_is_in_the_router_may_be_asked_by_anybody(house):
    """A route beside `/v1` and the control plane would be walked by nobody here."""
    gateway, _ = house

    assert {route.path for route in gateway.app.routes} <= OPEN


async def test_no_door_opens_without_a_key(house):
    gateway, upstream = house

    for door in DOORS:
        answered = await gateway.ask(b'{"model":"m"}', method=door.method.encode(), path=door.path.encode(), key="")
        assert answered.status == 401, (door, answered)
    assert upstream.requests == []


async def test_no_door_opens_to_another_account(house, stage: Stage):
    gateway, upstream = house
    async with Database(stage.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
        account = await database.fetch_value("insert into accounts (name) values ('owner') returning id")
        owner = await create_key(database, name=f"owner {account}", pepper=PEPPER.encode(), account_id=account)
        await database.execute("delete from objects")
        for kind in get_args(ObjectKind):
            await database.execute(
                "insert into objects (id, kind, account_id, key_id, provider, fingerprint) "
                "values ($1, $2, $3, $4, 'local', $5)",
                f"the-{kind}",
                kind,
                account,
                owner.id,
                _fingerprint(Secret(PROVIDER_KEY)),
            )
    asked = [door for door in DOORS if door.kind]

    for door in asked:
        stranger = await gateway.ask(b"{}", method=door.method.encode(), path=door.path.encode())
        assert stranger.status == 404, (door, stranger)
        assert msgspec.json.decode(stranger.body)["error"]["code"] == "object_not_found", door
    assert upstream.requests == [], "the provider was asked on behalf of a stranger"
    assert {door.kind for door in asked} == set(get_args(ObjectKind))

    # It is not that nobody gets in.
    for door in asked:
        if door.method == "GET":
            mine = await gateway.ask(b"", method=b"GET", path=door.path.encode(), key=owner.text)
            assert mine.status == 200, (door, mine)

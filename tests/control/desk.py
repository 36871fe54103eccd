"""A running control plane, and callers of every kind.

async with Desk(stores) as desk:
    ann = await desk.person()                  # a user with an account of her own, signed in
    boss = await desk.person(role="admin")
    answer = await ann.get("/user/balance")    # answer.status, answer.json
    key = await ann.key(scopes={"read": ("*",)})
    await key.post("/user/api-keys", {"key_name": "x"})
    await desk.nobody.get("/user/balance")     # 401
"""

import contextlib
import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from gateway.app import create_app
from gateway.control.access import AccountRole, Role
from gateway.control.app import ControlPlane
from gateway.control.parts import Parts
from gateway.control.session import digest
from gateway.dataplane import Crossing, DataPlane
from gateway.infra.embedded import Stores
from gateway.kernel.keys import mint
from gateway.secret import Secret
from gateway.settings import Log, Model, OwnKeys, Provider, Settings
from tests.gateways import _furnish
from tests.places import fast_place

PEPPER = "the pepper of the tests of the control plane"
_numbers = itertools.count(1)


@dataclass
class Answer:
    """A response."""

    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def detail(self) -> Any:
        return self.json["detail"]


@dataclass
class Caller:
    """Somebody with an address and, perhaps, something to show."""

    desk: "Desk"
    headers: dict[str, str] = field(default_factory=dict)
    user_id: int | None = None
    account_id: int = 0
    email: str = ""
    #: What is presented.
    token: str = ""
    key_id: str = ""

    async def ask(
        self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None, **query: object
    ) -> Answer:
        """A request with a JSON body, or none."""
        content = None if body is None else msgspec.json.encode(body)
        sent = {**({"content-type": "application/json"} if content else {}), **self.headers, **(headers or {})}
        response = await self.desk.client.request(method, path, content=content, headers=sent, params=query or None)
        return Answer(response.status_code, response.headers, response.content)

    async def get(self, path: str, **query: object) -> Answer:
        return await self.ask("GET", path, **query)

    async def post(self, path: str, body: object = None, *, headers: dict[str, str] | None = None) -> Answer:
        return await self.ask("POST", path, {} if body is None else body, headers=headers)

    async def put(self, path: str, body: object) -> Answer:
        return await self.ask("PUT", path, body)

    async def delete(self, path: str, body: object = None) -> Answer:
        return await self.ask("DELETE", path, body)

    async def key(self, *, scopes: dict[str, tuple[str, ...]] | None = None, environment: str = "live") -> "Caller":
        """A key of this caller's account, made by the caller, and a caller that presents it."""
        made = mint(environment, pepper=PEPPER.encode())
        await self.desk.parts.database.execute(
            "insert into keys (id, account_id, user_id, name, environment, digest, last_four, scopes) "
            "values ($1, $2, $3, $4, $5, $6, $7, $8)",
            made.id,
            self.account_id,
            self.user_id,
            f"key {made.id}",
            environment,
            made.digest,
            made.last_four,
            msgspec.json.encode(scopes or {}).decode(),
        )
        return Caller(
            self.desk,
            {"authorization": f"Bearer {made.text}"},
            self.user_id,
            self.account_id,
            token=made.text,
            key_id=made.id,
        )


class Desk:
    """The application without a server. Use it with `async with`."""

    def __init__(self, stores: Stores, settings: Settings | None = None) -> None:
        base = settings or Settings()
        self._stack = contextlib.AsyncExitStack()
        data_dir = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-desk-", dir=fast_place()))
        _furnish(Path(data_dir))
        self.stores = stores
        self.settings = msgspec.structs.replace(
            base,
            server=msgspec.structs.replace(base.server, data_dir=data_dir),
            auth=msgspec.structs.replace(base.auth, pepper=Secret(PEPPER)),
            log=Log(access=""),
            providers_from_environment=False,
            providers={
                "echo": Provider(adapter="echo", models=("echo", "*")),
                # Nobody is there. It is for what needs a provider that takes keys of one's own.
                "own": Provider(adapter="compatible", base_url="http://127.0.0.1:9/v1", models=("own-*",)),
                **base.providers,
            },
            models={"*": Model(free=True)},
            own_keys=base.own_keys if base.own_keys.masters else OwnKeys(masters={"k1": Secret("0f" * 32)}),
        )

    async def __aenter__(self) -> Self:
        self.app: DataPlane = create_app(self.settings, self.stores)
        crossing = self.app.default
        assert isinstance(crossing, Crossing)
        control = crossing.control
        assert isinstance(control, ControlPlane)
        self.control: ControlPlane = control
        self.parts: Parts = control.parts
        self.furnish()
        await self._stack.enter_async_context(self.app.lifespan_context(self.app))
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://gateway", timeout=60)
        await self._stack.enter_async_context(self.client)
        self.nobody = Caller(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def furnish(self) -> None:
        """Put other parts in before it runs; for those who inherit."""

    async def person(
        self,
        *,
        role: Role = "developer",
        account_id: int | None = None,
        account_role: AccountRole = "owner",
        plan: str = "free",
    ) -> Caller:
        """Somebody new, signed in as a program is, in an account of their own or in a given one."""
        database, number = self.parts.database, next(_numbers)
        email = f"person{number}-{self.parts.new_id()[-8:]}@example.com"
        if account_id is None:
            account_id = await database.fetch_value(
                "insert into accounts (name, plan) values ($1, $2) returning id", email, plan
            )
        user_id = await database.fetch_value(
            "insert into users (email, name, role, verified_at) values ($1, $2, $3, now()) returning id",
            email,
            f"Person {number}",
            role,
        )
        await database.execute(
            "insert into memberships (account_id, user_id, role) values ($1, $2, $3)",
            account_id,
            user_id,
            account_role,
        )
        token = self.parts.sessions.mint()
        await database.execute(
            "insert into sessions (digest, user_id, account_id, kind, expires_at) "
            "values ($1, $2, $3, 'bearer', now() + interval '1 day')",
            digest(token),
            user_id,
            account_id,
        )
        return Caller(self, {"authorization": f"Bearer {token}"}, user_id, account_id, email, token)

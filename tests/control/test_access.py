"""Every route of the running application, tried by everybody, against the table of who may.

A route that is missing from the table fails. For each there is who may, as a word of `EXPECTED`, and what to ask with:
a body that is well-formed and, for paths with an id, how to make a thing of somebody's.

- `public` answers anybody.
- `user` answers everybody who is signed in.
- `developer` answers developers and administrators.
- `admin` answers administrators, and keys of theirs whose scopes say so.

"Answers" means neither 401 nor 403; whether the request then makes sense is other tests' business. Whatever has an id
in its path, or in its body, is tried with somebody else's as well: it must not be found.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

import pytest

from gateway.catalogue.metrics import HuggingFaceMetrics, MetricStore
from gateway.control.app import ROUTES
from gateway.control.docs import routes as documentation
from gateway.control.session import digest
from tests.control.desk import Caller, Desk

Who = Literal["public", "user", "developer", "admin"]
#: Makes something of a caller's, and gives the values of the path's parameters.
Make = Callable[[Caller], Awaitable[dict[str, object]]]


class Case(NamedTuple):
    who: Who
    body: object = None
    make: Make | None = None


async def make_session(owner: Caller) -> dict[str, object]:
    """Another session of the caller's."""
    token = owner.desk.parts.sessions.mint()
    session_id = await owner.desk.parts.database.fetch_value(
        "insert into sessions (digest, user_id, account_id, kind, expires_at) "
        "values ($1, $2, $3, 'bearer', now() + interval '1 day') returning id",
        digest(token),
        owner.user_id,
        owner.account_id,
    )
    return {"session_id": session_id}


async def make_member(owner: Caller) -> dict[str, object]:
    """Another member of the caller's account."""
    member = await owner.desk.person(account_id=owner.account_id, account_role="member")
    return {"user_id": member.user_id}


async def make_figures(owner: Caller) -> dict[str, object]:
    """What is known of a model."""
    metrics = MetricStore(owner.desk.parts.database)
    await metrics.know(["acme/a"])
    await metrics.put("acme/a", HuggingFaceMetrics(downloads=1), next_s=3600)
    return {"id": "acme/a"}


async def make_team(owner: Caller) -> dict[str, object]:
    """Another account of the caller's."""
    answer = await owner.post("/teams", {"name": "Another"})
    return {"account_id": answer.json["id"]}


async def make_invitation(owner: Caller) -> dict[str, object]:
    """An invitation to the caller's account."""
    answer = await owner.post("/team/invitations", {"email": "somebody@example.com"})
    return {"invitation_id": answer.json["id"]}


async def make_account(owner: Caller) -> dict[str, object]:
    """An account of somebody else's, whom an administrator's business is with."""
    other = await owner.desk.person()
    return {"account_id": other.account_id}


async def make_person(owner: Caller) -> dict[str, object]:
    """Somebody else."""
    other = await owner.desk.person()
    return {"user_id": other.user_id}


async def make_key(owner: Caller) -> dict[str, object]:
    """A key of the caller's account."""
    return {"key_id": (await owner.key()).key_id}


async def make_provider_key(owner: Caller) -> dict[str, object]:
    """A provider key that the caller's account brought."""
    key_id = owner.desk.parts.new_id()
    await owner.desk.parts.database.execute(
        "insert into provider_keys (id, account_id, provider, name, mode, last_four, fingerprint, master_id, nonce, "
        "sealed) values ($1::text::uuid, $2, 'own', 'own', 'first', '1234', $1, 'k1', $3, $4)",
        key_id,
        owner.account_id,
        bytes(12),
        bytes(20),
    )
    return {"provider_key_id": key_id}


async def make_reject(owner: Caller) -> dict[str, object]:
    """Usage that could not be settled."""
    reject_id = await owner.desk.parts.database.fetch_value(
        "insert into settle_rejects (partition, stream_id, record, reason) values (0, '1-1', '', 'a test') returning id"
    )
    return {"reject_id": reject_id}


async def name_role(owner: Caller) -> dict[str, object]:
    return {"role": "developer"}


SIX_LIMITS = {f"{unit}_per_{window}": 1 for unit in ("requests", "tokens") for window in ("minute", "hour", "day")}

CASES: dict[str, Case] = {
    "GET /": Case("public"),
    "GET /openapi.json": Case("public"),
    "GET /docs": Case("public"),
    "GET /redoc": Case("public"),
    "GET /console/verify": Case("public"),
    "GET /console/reset": Case("public"),
    "GET /console/join": Case("public"),
    "GET /health/ready": Case("public"),
    "GET /catalog/models": Case("public"),
    "GET /models": Case("public"),
    "GET /catalog/provider": Case("public"),
    "GET /v1/provider": Case("public"),
    "GET /models/providers": Case("public"),
    "GET /catalog/model/{provider}/{model:path}": Case("public"),
    "GET /catalog/developer/{name}/models": Case("public"),
    "GET /ping": Case("public"),
    "GET /ping/stats": Case("public"),
    "GET /health/providers": Case("user"),
    "GET /health/models": Case("user"),
    **{f"POST {path}": Case("public") for path in ("/auth", "/auth/privy", "/auth/login")},
    **{
        f"POST {path}": Case("public", {"email": "not an address"})
        for path in ("/auth/register", "/create", "/admin/create", "/auth/password-reset", "/auth/verification")
    },
    "POST /auth/reset-password": Case("public", {"password": "a new password", "token": "made up"}),
    "POST /auth/verify-email": Case("public", {"token": "made up"}),
    # Nobody configured this issuer.
    "GET /auth/login/{issuer}": Case("public"),
    "GET /auth/callback/{issuer}": Case("public"),
    "GET /auth/session": Case("user"),
    "DELETE /auth/session": Case("user"),
    "PUT /user/password": Case("user", {"new_password": "correct horse battery"}),
    "GET /user/sessions": Case("user"),
    "DELETE /user/sessions/{session_id:int}": Case("user", make=make_session),
    "GET /user/balance": Case("user"),
    "GET /user/monitor": Case("user"),
    "GET /user/limit": Case("user"),
    "GET /user/profile": Case("user"),
    "PUT /user/profile": Case("user", {"name": "Another"}),
    "DELETE /user/account": Case("user", {"confirmation": "DELETE_ACCOUNT"}),
    "GET /user/credit-transactions": Case("user"),
    "GET /user/activity/stats": Case("user"),
    "GET /user/activity/log": Case("user"),
    "GET /user/api-keys": Case("user"),
    "POST /user/api-keys": Case("developer", {"key_name": "another"}),
    "GET /user/api-keys/{key_id}": Case("user", make=make_key),
    "PUT /user/api-keys/{key_id}": Case("developer", {"key_name": "another"}, make_key),
    "DELETE /user/api-keys/{key_id}": Case("developer", {"confirmation": "DELETE_KEY"}, make_key),
    "POST /user/api-keys/{key_id}/rotate": Case("developer", {}, make_key),
    "POST /user/api-keys/rotate": Case("developer", {}),
    "GET /user/api-keys/usage": Case("user"),
    "GET /user/api-keys/{key_id}/usage": Case("user", make=make_key),
    "GET /user/api-keys/audit-logs": Case("user"),
    "GET /user/provider-keys": Case("user"),
    "POST /user/provider-keys": Case("developer", {"provider": "own", "api_key": "sk-a-key-of-ones-own"}),
    "GET /user/provider-keys/{provider_key_id}": Case("user", make=make_provider_key),
    "PATCH /user/provider-keys/{provider_key_id}": Case("developer", {"enabled": False}, make_provider_key),
    "DELETE /user/provider-keys/{provider_key_id}": Case("developer", make=make_provider_key),
    "GET /user/rate-limits": Case("user"),
    "PUT /user/rate-limits/{key_id}": Case("developer", SIX_LIMITS, make_key),
    "POST /user/rate-limits/bulk-update": Case("developer", {"updates": [{"key_id": "nobody's", **SIX_LIMITS}]}),
    "GET /user/rate-limits/usage/{key_id}": Case("user", make=make_key),
    "GET /admin/rate-limits/system": Case("admin"),
    "GET /admin/rate-limits/alerts": Case("admin"),
    **{
        f"POST {path}": Case("admin", {"account_id": 2**62, "plan_id": "free"})
        for path in ("/admin/assign-plan", "/plans/assign")
    },
    "GET /user/audit-logs": Case("user"),
    "GET /user/audit-logs/export": Case("user"),
    "GET /teams": Case("user"),
    "POST /teams": Case("user", {"name": "Another"}),
    "POST /teams/{account_id:int}/switch": Case("user", make=make_team),
    "GET /team": Case("user"),
    "PUT /team": Case("user", {"name": "Another"}),
    "GET /team/members": Case("user"),
    "PUT /team/members/{user_id:int}": Case("user", {"role": "admin"}, make_member),
    "DELETE /team/members/{user_id:int}": Case("user", {}, make_member),
    "GET /team/invitations": Case("user"),
    "POST /team/invitations": Case("user", {"email": "somebody@example.com"}),
    "DELETE /team/invitations/{invitation_id:int}": Case("user", make=make_invitation),
    "POST /team/invitations/accept": Case("user", {"token": "made up"}),
    "POST /admin/roles/update": Case("admin", {"user_id": 2**62, "new_role": "user"}),
    "GET /admin/roles/audit/log": Case("admin"),
    "GET /admin/roles/list/{role}": Case("admin", make=name_role),
    "GET /admin/roles/permissions/{role}": Case("admin", make=name_role),
    "GET /admin/roles/{user_id:int}": Case("admin", make=make_member),
    "GET /admin/audit-logs": Case("admin"),
    "GET /admin/audit-logs/export": Case("admin"),
    "GET /admin/users": Case("admin"),
    "GET /admin/users/{user_id:int}": Case("admin", make=make_member),
    "POST /admin/users/{user_id:int}/suspend": Case("admin", {"reason": "a test"}, make_person),
    "POST /admin/users/{user_id:int}/activate": Case("admin", {"reason": "a test"}, make_person),
    "GET /admin/balance": Case("admin"),
    "GET /admin/accounts": Case("admin"),
    "GET /admin/accounts/{account_id:int}": Case("admin", make=make_account),
    "POST /admin/accounts/{account_id:int}/suspend": Case("admin", {"reason": "a test"}, make_account),
    "POST /admin/accounts/{account_id:int}/activate": Case("admin", {"reason": "a test"}, make_account),
    "POST /admin/add_credits": Case("admin", {"account_id": 2**62, "credits": 1, "reason": "a test"}),
    "POST /admin/deduct_credits": Case("admin", {"account_id": 2**62, "credits": 1, "reason": "a test"}),
    "GET /admin/credit-transactions": Case("admin"),
    **{
        f"GET /admin/{name}": Case("admin")
        for name in ("monitor", "status", "cache-status", "huggingface-cache-status", "settle-rejects", "models")
    },
    "GET /admin/debug-models": Case("admin"),
    "GET /admin/test-huggingface/{id:path}": Case("admin", make=make_figures),
    **{f"POST /admin/refresh-{name}": Case("admin") for name in ("models", "providers", "huggingface-cache")},
    "POST /admin/settle-rejects/{reject_id:int}/retry": Case("admin", {"reason": "a test"}, make_reject),
    "POST /admin/settle-rejects/{reject_id:int}/discard": Case("admin", {"reason": "a test"}, make_reject),
    "PUT /admin/models/prices": Case("admin", {"model": "echo", "prices": {"markup": 2.0}, "reason": "a test"}),
    "DELETE /admin/models/prices": Case("admin", {"model": "nobody's", "reason": "a test"}),
    "GET /admin/usage": Case("admin"),
    "GET /admin/trial/analytics": Case("admin"),
    "POST /admin/clear-rate-limit-cache": Case("admin"),
    "POST /admin/rate-limits": Case("admin", {"api_key": "nobody's", "requests_per_minute": 1}),
    "POST /admin/limit": Case("admin", {"api_key": "nobody's", "requests_per_minute": 1}),
}


def is_owned(name: str) -> bool:
    """Whether it is about one thing of the caller's; an administrator's business is everybody's things."""
    case = CASES.get(name)
    return case is not None and case.make is not None and case.who != "admin"


DECLARED = [(route, path) for route in (*ROUTES, *documentation(ROUTES)) for path in route.paths]
NAMES = [f"{route.method} {path}" for route, path in DECLARED]


def test_every_route_is_in_the_table_and_nothing_else_is():
    assert sorted(CASES) == sorted(NAMES)


async def test_the_application_has_no_other_route(desk: Desk):
    """What is mounted is what was declared: nobody has added a route behind the guard's back."""
    mounted = {route.path for route in desk.control.router.routes}

    assert mounted == {path for _, path in DECLARED}


@pytest.mark.parametrize("name", NAMES)
async def test_who_is_let_in(desk: Desk, name: str):
    case = CASES[name]
    method, _, pattern = name.partition(" ")

    for who in ("nobody", "user", "developer", "admin"):
        caller = desk.nobody if who == "nobody" else await desk.person(role=who)
        owner = caller if who != "nobody" else await desk.person()
        path = fill(pattern, {} if case.make is None else await case.make(owner))

        answer = await caller.ask(method, path, case.body)

        if who == "nobody" and case.who != "public":
            assert answer.status == 401, (who, answer)
        elif is_let_in(who, case.who):
            assert answer.status not in (401, 403), (who, answer)
            assert answer.status < 500, (who, answer)
        else:
            assert answer.status == 403, (who, answer)


@pytest.mark.parametrize("name", [name for name in NAMES if is_owned(name)])
async def test_what_is_somebody_elses_is_not_found(desk: Desk, name: str):
    case = CASES[name]
    method, _, pattern = name.partition(" ")
    ann, bob = await desk.person(), await desk.person()
    assert case.make is not None

    answer = await bob.ask(method, fill(pattern, await case.make(ann)), case.body)

    assert answer.status == 404, answer


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CASES or CASES[name].who != "public"])
async def test_a_key_without_the_scope_is_refused(desk: Desk, name: str):
    case = CASES[name]
    method, _, pattern = name.partition(" ")
    boss = await desk.person(role="admin")
    key = await boss.key(scopes={"read": ("nothing",)})
    path = fill(pattern, {} if case.make is None else await case.make(boss))

    answer = await key.ask(method, path, case.body)

    assert answer.status == 403, answer


def is_let_in(who: str, needed: Who) -> bool:
    ranks = ("nobody", "user", "developer", "admin")
    return needed == "public" or ranks.index(who) >= ranks.index(needed)


def fill(pattern: str, values: dict[str, object]) -> str:
    """The path with values for its parameters; 1 where none was made."""
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: str(values.get(match[1], 1)), pattern)

"""What has an end is removed after it, in pieces, and nothing else is."""

import secrets
from typing import Final

import pytest

from gateway.control import expiry
from tests.control.desk import Desk

#: Tables with an `expires_at`, and how a row is put there that ends so many seconds from now.
_ADD: Final = {
    "sessions": "insert into sessions (digest, user_id, account_id, kind, created_at, expires_at) "
    "values ($4, $1, $2, 'bearer', now() - interval '1 year', now() + make_interval(secs => $3))",
    "tokens": "insert into tokens (digest, user_id, purpose, email, expires_at) "
    "values ($4, $1, 'reset_password', 'account ' || $2::bigint, now() + make_interval(secs => $3))",
    "invitations": "insert into invitations (account_id, email, role, digest, invited_by, expires_at) values "
    "($2, encode($4, 'hex') || '@example.com', 'member', $4, $1, now() + make_interval(secs => $3))",
    # Those have a beginning and are kept for a day.
    "idempotency_keys": "insert into idempotency_keys (scope, key, request_hash, created_at) "
    "values ($1::bigint || ':' || $2::bigint, encode($4, 'hex'), $4, now() + make_interval(secs => $3))",
}
#: Whose end is seen to elsewhere, or is no reason to forget them.
_OTHERS: Final = {"keys": "stay, with their usage", "objects": "purged by the poller"}
_LONG_AGO_S: Final = -40 * 86_400.0


async def add(desk: Desk, table: str, ends_s: float) -> bytes:
    person = await desk.person()
    digest = secrets.token_bytes(32)
    await desk.parts.database.execute(_ADD[table], person.user_id, person.account_id, ends_s, digest)
    return digest


async def is_there(desk: Desk, table: str, digest: bytes) -> bool:
    column = "request_hash" if table == "idempotency_keys" else "digest"
    query = f"select exists (select from {table} where {column} = $1)"
    return bool(await desk.parts.database.fetch_value(query, digest))


async def test_every_table_whose_rows_expire_is_swept(desk: Desk):
    rows = await desk.parts.database.fetch(
        "select table_name from information_schema.columns where column_name = 'expires_at' and table_schema = 'public'"
    )

    assert {row["table_name"] for row in rows} == (set(_ADD) | set(_OTHERS)) - {"idempotency_keys"}
    assert len(expiry.SWEEPS) == len(_ADD)


@pytest.mark.parametrize("table", _ADD)
async def test_what_is_over_is_removed_and_nothing_else(desk: Desk, table: str):
    over = await add(desk, table, _LONG_AGO_S)
    living = await add(desk, table, 3600.0)

    while await expiry.sweep_once(desk.parts.database):
        pass

    assert not await is_there(desk, table, over)
    assert await is_there(desk, table, living)


async def test_a_round_removes_no_more_than_a_piece_and_says_so(desk: Desk):
    while await expiry.sweep_once(desk.parts.database):
        pass
    added = [await add(desk, "tokens", _LONG_AGO_S) for _ in range(3)]

    first = await expiry.sweep_once(desk.parts.database, piece=2)
    left = sum([await is_there(desk, "tokens", each) for each in added])
    second = await expiry.sweep_once(desk.parts.database, piece=2)

    assert (first, left, second) == (True, 1, False)
    assert not any([await is_there(desk, "tokens", each) for each in added])


async def test_what_another_has_locked_is_left_for_the_next_time(desk: Desk):
    digest = await add(desk, "tokens", _LONG_AGO_S)
    async with desk.parts.database.transaction() as session:
        await session.execute("select from tokens where digest = $1 for update", digest)

        await expiry.sweep_once(desk.parts.database)

        assert await is_there(desk, "tokens", digest)
    await expiry.sweep_once(desk.parts.database)
    assert not await is_there(desk, "tokens", digest)

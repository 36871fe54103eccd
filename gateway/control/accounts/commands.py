"""What commands on the machine do to keys and accounts, written into the audit log like everything else."""

from pathlib import Path
from typing import Final

import msgspec

from gateway.control import audit
from gateway.control.accounts.plans import Moved, assign_plan
from gateway.control.errors import Conflict, Invalid, NotFound
from gateway.errors import ConfigError
from gateway.infra.postgres import Database, Session, load_queries
from gateway.settings import Settings

_queries: Final = load_queries(Path(__file__).with_name("commands.sql"))
PAGE: Final = 500


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of accounts shows."""

    id: int
    name: str
    status: str
    plan: str
    keys: int
    members: int


async def note_key(
    session: Session, action: str, key_id: str, *, account_id: int, before: object = None, after: object = None
) -> None:
    """Write down what a command did to a key; `action` is the verb."""
    await audit.record(
        session,
        audit.OPERATOR,
        f"api_keys.{action}",
        ("key", key_id),
        account_id=account_id,
        before=before,
        after=after,
    )


async def list_accounts(database: Database, *, after_id: int = 0, limit: int = PAGE) -> list[Account]:
    """Accounts with ids above `after_id`, in the order of their ids."""
    rows = await database.fetch(_queries["list_accounts"], after_id, limit)
    return [msgspec.convert(dict(row), Account) for row in rows]


async def move_account(database: Database, settings: Settings, *, account_id: int, plan: str) -> Moved:
    """Put an account on a plan; its keys are to be published.

    Raises:
        ConfigError: there is no such account or plan, or it is closed.
    """
    try:
        async with database.transaction() as session:
            return await assign_plan(
                session, audit.OPERATOR, settings, account_id=account_id, plan=plan, reason="by a command"
            )
    except NotFound as error:
        raise ConfigError("there is no account of that number; `gateway accounts list` shows them all") from error
    except (Invalid, Conflict) as error:
        raise ConfigError(error.message) from error

"""`gateway users create|list|role|suspend|activate`: people, and the first administrator among them."""

import argparse
import getpass
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.cli.notices import Notices, warn_of_lost
from gateway.cli.table import Colour, Printer
from gateway.control.accounts.operators import PAGE, Created, Person, create, list_people, set_role, set_standing
from gateway.control.accounts.standing import Standing
from gateway.control.passwords import LENGTH_MAX, Passwords
from gateway.errors import ConfigError
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.key_store import load_pepper
from gateway.kernel.keys import CHANNEL
from gateway.settings import Settings

#: Where a password comes from that is not typed: the first line of standard input.
STANDARD_INPUT: Final = "-"


def run(arguments: argparse.Namespace) -> int:
    """Do what `action` says.

    Raises:
        GatewayError: it could not be done.
    """
    settings = load_config(arguments).settings
    actions: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "create": _create,
        "list": _list,
        "role": _role,
        "suspend": _suspend,
        "activate": _activate,
    }
    return actions[arguments.action](arguments, settings)


def _create(arguments: argparse.Namespace, settings: Settings) -> int:
    password = read_password(arguments.password, least=settings.identity.password_length_min)
    pepper = load_pepper(settings)

    async def make(database: Database, _: Stores) -> Created:
        password_hash = None if password is None else await Passwords(at_once=1).hash(password)
        return await create(
            database,
            pepper=pepper,
            email=arguments.email,
            password_hash=password_hash,
            role="admin" if arguments.admin else "developer",
            plan=arguments.plan,
            name=arguments.name,
        )

    made = with_database(settings, make, make=True)
    if arguments.quiet:
        print(made.user_id if made.key is None else made.key.text)
        return 0
    hint = Printer(sys.stderr)
    role = "an administrator" if arguments.admin else "a developer"
    if made.key is None:
        hint.line(f"User {made.user_id} was here already and is {role} now.")
        return 0
    print(made.key.text)
    hint.line(f"User {made.user_id} is {role}; account {made.account_id}. This is the only time the key is shown.")
    if password is None:
        hint.line("There is no password: sign in by the key, or ask for a link at POST /auth/password-reset.")
    return 0


def read_password(source: str | None, *, least: int) -> str | None:
    """A password that was typed, twice and unseen, or came through standard input; never one of the command line,
    which others on the machine can read.

    Raises:
        ConfigError: it is too short or too long, was mistyped, or nobody typed one.
    """
    if source is None:
        return None
    if source == STANDARD_INPUT:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        try:
            password = getpass.getpass("password: ")
            again = getpass.getpass("once more: ")
        except EOFError:
            raise ConfigError("--password: nobody is there to type one; `--password -` reads a line") from None
        if again != password:
            raise ConfigError("--password: the two differ")
    if not least <= len(password) <= LENGTH_MAX:
        raise ConfigError(f"--password: it has {least} to {LENGTH_MAX} characters")
    return password


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    people = with_database(settings, lambda database, _: _all(database))
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(people), indent=2).decode() + "\n")
        return 0
    out = Printer(sys.stdout)
    if not people:
        out.line("there is nobody; make an administrator with `gateway users create --admin --email ADDRESS`")
        return 0
    rows = [
        (
            str(each.id),
            each.email or "",
            each.username or "",
            each.role,
            each.status,
            _date(each),
        )
        for each in people
    ]
    colours = [Colour.GREEN if each.status == "active" else Colour.DIM for each in people]
    out.table(("ID", "ADDRESS", "NAME", "ROLE", "STATUS", "CREATED"), rows, colours=colours)
    return 0


def _date(person: Person) -> str:
    return person.created_at.strftime("%Y-%m-%d %H:%M")


async def _all(database: Database) -> list[Person]:
    found: list[Person] = []
    while page := await list_people(database, after_id=found[-1].id if found else 0):
        found += page
        if len(page) < PAGE:
            break
    return found


def _role(arguments: argparse.Namespace, settings: Settings) -> int:
    user_id = with_database(settings, lambda database, _: set_role(database, who=arguments.user, role=arguments.role))
    print(f"user {user_id} is {arguments.role} now")
    return 0


def _suspend(arguments: argparse.Namespace, settings: Settings) -> int:
    return _change_standing(arguments, settings, "suspended", "is suspended, and so are the keys they made")


def _activate(arguments: argparse.Namespace, settings: Settings) -> int:
    return _change_standing(arguments, settings, "active", "may sign in again, and the keys they made work again")


def _change_standing(arguments: argparse.Namespace, settings: Settings, standing: Standing, what: str) -> int:
    async def change(database: Database, stores: Stores) -> tuple[int, bool]:
        user_id, key_ids = await set_standing(database, who=arguments.user, standing=standing)
        async with Notices(stores.redis_url) as notices:
            for key_id in key_ids:
                await notices.publish(CHANNEL, key_id.encode())
            return user_id, notices.lost

    user_id, lost = with_database(settings, change)
    print(f"user {user_id} {what}")
    return warn_of_lost(settings) if lost else 0

"""`gateway usage`: what was used and what it cost, by account, key and model."""

import argparse
import re
import sys
from datetime import UTC, date, datetime, timedelta

import msgspec

from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.cli.table import Printer
from gateway.errors import ConfigError
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.journal import UsageSum, find_key_id, sum_usage
from gateway.kernel.money import format_usd

_DAYS = re.compile(r"([0-9]{1,5})d", re.ASCII)


def run(arguments: argparse.Namespace) -> int:
    """Print the sums.

    Raises:
        GatewayError: they can't be read.
    """
    settings = load_config(arguments).settings
    today = datetime.fromtimestamp(SystemClock().now(), UTC).date()
    since = _since(arguments.since, today)

    async def read(database: Database, _: Stores) -> list[UsageSum]:
        key_id = None if arguments.key is None else await find_key_id(database, arguments.key)
        return await sum_usage(database, since=since, account_id=arguments.account, key_id=key_id)

    sums = with_database(settings, read)
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(sums), indent=2).decode() + "\n")
        return 0
    out = Printer(sys.stdout)
    if not sums:
        out.line(f"nothing was used since {since}")
        return 0
    rows = [
        (
            str(each.account_id),
            each.key_id,
            each.model or "-",
            str(each.requests),
            str(each.input_tokens),
            str(each.output_tokens),
            format_usd(each.cost_nanos),
        )
        for each in sums
    ]
    total = (
        "",
        "",
        "all",
        str(sum(each.requests for each in sums)),
        str(sum(each.input_tokens for each in sums)),
        str(sum(each.output_tokens for each in sums)),
        format_usd(sum(each.cost_nanos for each in sums)),
    )
    out.table(("ACCOUNT", "KEY", "MODEL", "REQUESTS", "TOKENS IN", "TOKENS OUT", "USD"), [*rows, total])
    return 0


def _since(text: str, today: date) -> date:
    """A day (UTC): `2026-01-31`, or `30d` before today.

    Raises:
        ConfigError: it is neither.
    """
    if match := _DAYS.fullmatch(text):
        return today - timedelta(days=int(match[1]))
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError("--since: give a day such as 2026-01-31, or a number of days such as 30d") from error

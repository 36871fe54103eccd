"""What may be typed after `gateway`, and what `-h` says about it.

Only the standard library is imported here, so that `--help`, `--version` and a mistyped command answer at once.
"""

import argparse

from gateway import __version__

_EXIT = "Exit status: 0 it went well, 1 it did not (standard error says why), 2 a mistyped command."
_DOCUMENTED = "Every setting is documented in config/gateway.toml and can be given as GATEWAY__SECTION__KEY."


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. `command` names the subcommand, `action` what `keys` is to do."""
    top = argparse.ArgumentParser(
        prog="gateway",
        description="One fast, exact, OpenAI-compatible gateway between applications and every LLM provider.",
        epilog=f"{_DOCUMENTED} {_EXIT}",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    shared = _shared()

    serve = _command(
        commands,
        shared,
        "serve",
        "run the gateway",
        "Start the gateway. Without DATABASE_URL and REDIS_URL it brings a PostgreSQL and a Valkey of its own.",
    )
    _listening(serve)
    serve.add_argument("--workers", metavar="N", type=int, help="processes; 0 is one for each processor (default 0)")
    serve.add_argument(
        "--plane",
        choices=("all", "data", "control"),
        help="what this process serves: data is inference, control accounts and administration (default all)",
    )
    serve.add_argument(
        "--with-parent",
        action="store_true",
        help="stop when the process that started this one is gone, as if told to; `make serve` gives it (Linux)",
    )
    _command(
        commands,
        shared,
        "check",
        "read the configuration as `serve` does and name every mistake",
        "Read the configuration exactly as `serve` does, set up every provider's adapter, and name each mistake with "
        "its file, line and key. Connects to nothing.",
    )
    _command(
        commands,
        shared,
        "doctor",
        "look for whatever keeps the gateway from running well",
        "Check the configuration, the installation, the data directory, PostgreSQL, Redis and the limits of this "
        "machine, and say what to do about what is wrong. Exit status 1 if anything fails; warnings do not count.",
    )
    migrate = _command(
        commands,
        shared,
        "migrate",
        "bring the database to the shape this release needs",
        "Apply the migrations that the database lacks, in order, each once. `serve` does the same at its start.",
    )
    migrate.add_argument("--check", action="store_true", help="apply nothing; exit status 1 if any is missing")
    _keys(commands, shared)
    _users(commands, shared)
    _accounts(commands, shared)
    _ledger(commands, shared)
    _byok(commands, shared)
    healthcheck = _command(
        commands,
        shared,
        "healthcheck",
        "ask a running gateway whether it can serve",
        "GET /health on the configured address, waiting for at most two seconds. Made for containers.",
    )
    _listening(healthcheck)
    status = _command(
        commands,
        shared,
        "status",
        "show how the gateway that runs here does",
        "Ask the gateway that runs on this data directory for its processes, its providers and their circuit "
        "breakers, and how far its books are. Exit status 1 if something is wrong with it, or none runs.",
    )
    status.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="print it again every so many seconds (2), with what has passed in between, until interrupted",
    )
    _models(commands, shared)
    _adapter(commands)
    _bench(commands, shared)
    return top


def _keys(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    keys = commands.add_parser(
        "keys",
        help="create, list, limit and revoke the keys that applications call with",
        description="Create, list, limit and revoke the keys that applications call the gateway with.",
        allow_abbrev=False,
    )
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = _command(
        actions,
        shared,
        "create",
        "make a key and show it, once",
        "Make a key and show it. It is stored as a keyed hash only, and can't be shown again.",
    )
    create.add_argument("--name", required=True, metavar="NAME", help="what it is for; no two living keys share one")
    create.add_argument("--credits", metavar="USD", help="grant its account this much credit, such as 25 or 0.50")
    create.add_argument("--quiet", action="store_true", help="print the key and nothing else")
    listing = _command(
        actions, shared, "list", "list all keys, newest first", "List all keys, newest first, revoked ones too."
    )
    listing.add_argument("--json", action="store_true", help="print a JSON array, for programs")
    revoke = _command(
        actions,
        shared,
        "revoke",
        "make a key useless, everywhere, within a second",
        "Revoke a key. Every running gateway refuses it within a second; this can't be undone.",
    )
    revoke.add_argument("key", metavar="ID|NAME", help="its public id or its name, as `keys list` shows them")
    limits = _command(
        actions,
        shared,
        "limits",
        "show or change what a key may use",
        "Show what a key may use, or change it: what is named is changed, everything else stays. Every running "
        "gateway goes by it within a second. A limit lets its whole number through at once and refills evenly; a "
        "budget begins anew with each calendar day, week or month (UTC). They hold besides those of the account.",
    )
    limits.add_argument("key", metavar="ID|NAME", help="its public id or its name, as `keys list` shows them")
    for unit in ("requests", "tokens"):
        for window in ("minute", "hour", "day", "month"):
            limits.add_argument(f"--{unit}-per-{window}", metavar="N|none", help=f"{unit} in a {window}")
    limits.add_argument(
        "--burst", metavar="N|none", help="requests at once, where that is less than those per minute"
    )
    limits.add_argument("--concurrency", metavar="N|none", help="requests in flight")
    for window in ("day", "week", "month", "total"):
        until = "for good" if window == "total" else f"in a calendar {window}"
        limits.add_argument(f"--budget-{window}", metavar="USD|none", help=f"dollars it may spend {until}")
    limits.add_argument("--clear", action="store_true", help="lift all limits first")
    limits.add_argument("--json", action="store_true", help="print them as JSON, for programs")


def _users(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    users = commands.add_parser(
        "users",
        help="create, list and suspend people, and make administrators",
        description="Create, list and suspend the people who sign in, and give them roles.",
        allow_abbrev=False,
    )
    actions = users.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = _command(
        actions,
        shared,
        "create",
        "make somebody with an account and a key, such as the first administrator",
        "Make somebody with an account and a key, which is shown once. With --admin, whoever has that address "
        "already becomes one, with the password if one is given. No password is on the command line, and none is "
        "the default.",
    )
    create.add_argument("--email", required=True, metavar="ADDRESS", help="whose; you vouch for it")
    create.add_argument("--admin", action="store_true", help="an administrator (else a developer)")
    create.add_argument(
        "--password",
        nargs="?",
        const="ask",
        choices=("ask", "-"),
        metavar="-",
        help="ask for a password, or read it from standard input with `-` (default: none)",
    )
    create.add_argument("--name", metavar="NAME", help="what they are called")
    create.add_argument("--plan", metavar="PLAN", default="unlimited", help="of the account (default unlimited)")
    create.add_argument("--quiet", action="store_true", help="print the key and nothing else")
    listing = _command(actions, shared, "list", "list everybody", "List everybody, in the order of their numbers.")
    listing.add_argument("--json", action="store_true", help="print a JSON array, for programs")
    role = _command(actions, shared, "role", "give somebody a role", "Give somebody a role; it holds at once.")
    role.add_argument("user", metavar="ID|ADDRESS", help="whose")
    role.add_argument("role", choices=("admin", "developer", "user"), help="which")
    for name, what in (("suspend", "let somebody in nowhere"), ("activate", "let somebody in again")):
        action = _command(actions, shared, name, what, f"{what[0].upper()}{what[1:]}, from their next request on.")
        action.add_argument("user", metavar="ID|ADDRESS", help="whom")


def _accounts(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser
) -> None:
    accounts = commands.add_parser(
        "accounts",
        help="list accounts and put them on plans",
        description="List the accounts that keys belong to, and put them on plans.",
        allow_abbrev=False,
    )
    actions = accounts.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _command(
        actions,
        shared,
        "list",
        "list all accounts",
        "List all accounts with their plans, in the order of their numbers.",
    )
    listing.add_argument("--json", action="store_true", help="print a JSON array, for programs")
    plan = _command(
        actions,
        shared,
        "plan",
        "put an account on a plan",
        "Put an account on a plan of the configuration, or on `unlimited`. Every running gateway goes by it within a "
        "second.",
    )
    plan.add_argument("account", metavar="ID", help="its number, as `accounts list` shows it")
    plan.add_argument("plan", metavar="PLAN", help="as in config/plans.toml")


def _byok(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    byok = commands.add_parser(
        "byok",
        help="how accounts' own provider keys are encrypted",
        description="Show under which master key accounts' own provider keys are encrypted, and encrypt them under "
        "another. The keys themselves are managed by their owners, at /user/provider-keys.",
        allow_abbrev=False,
    )
    actions = byok.add_subparsers(dest="action", metavar="ACTION", required=True)
    _command(
        actions,
        shared,
        "status",
        "count the keys under each master key",
        "Count the keys under each master key. Exit status 1 if one is missing that keys are encrypted under.",
    )
    rotate = _command(
        actions,
        shared,
        "rotate",
        "encrypt all keys under the active master key",
        "Encrypt all keys anew under the active master key, in batches, each of them whole or not at all. Safe while "
        "gateways run, as long as they have both master keys, which is asked of them first; stopped half way, the "
        "next run goes on from there. "
        "Exit status 1 if any key is left under another.",
    )
    rotate.add_argument("--batch", metavar="N", type=_batch, default=100, help="keys at a time (default 100)")
    rotate.add_argument(
        "--force", action="store_true", help="do not ask first whether all running gateways have that master key"
    )


def _batch(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 200:
        raise argparse.ArgumentTypeError("a number from 1 to 200")
    return int(text)


def _models(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    models = _command(
        commands,
        shared,
        "models",
        "list the models that can be called, and what they cost",
        "List the models that the configured providers offer, with what callers pay for a million tokens of input "
        "and output, markup included. What providers list themselves and administrators have set counts where a "
        "gateway has stored it. With --check, name the models that nobody knows a price of, which can't be "
        "called, and the prices that are refused because they can't be meant; exit status 1 if there are any of the "
        "latter.",
    )
    models.add_argument("text", metavar="TEXT", nargs="?", default="", help="only models with this in their name")
    what = models.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print a JSON array, for programs")
    what.add_argument("--check", action="store_true", help="look for models without a price, and for odd prices")


def _adapter(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    adapter = commands.add_parser(
        "adapter",
        help="hold an installed package with adapters or plugins to the contract",
        description="Hold an installed package with adapters or plugins to the contract.",
        allow_abbrev=False,
    )
    actions = adapter.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="try what can go wrong between a gateway and a provider, and print a report",
        description="Look whether the adapters and plugins of an installed package have the right shape, replay the "
        "golden cases of its adapters, and try faults on them: answers that are cut anywhere, garbage, error answers "
        "of every status, streams of a thousandfold length, secrets where none belong. Connects to nothing. Exit "
        "status 1 if anything fails.",
        epilog=_EXIT,
        allow_abbrev=False,
    )
    check.add_argument("package", metavar="PACKAGE", help="as it was installed, or the name of an adapter in it")
    check.add_argument("--cases", metavar="DIR", help="golden cases of its adapters")
    check.add_argument(
        "--fill", action="store_true", help="write what an adapter does into the sections that cases lack, to be read"
    )
    check.add_argument(
        "--table", metavar="FILE", help="what the [providers.NAME] table would hold, as TOML (default: of a case)"
    )


def _ledger(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    credit = commands.add_parser(
        "credits",
        help="give accounts credit, and show what they have",
        description="Give accounts credit, and show what they have.",
        allow_abbrev=False,
    )
    actions = credit.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = _command(
        actions,
        shared,
        "add",
        "give an account credit, or take some",
        "Enter credit for an account into the ledger. Running gateways know it within a second.",
    )
    whose = add.add_mutually_exclusive_group(required=True)
    whose.add_argument("--key", metavar="ID|NAME", help="the account of this key")
    whose.add_argument("--account", metavar="ID", type=int, help="the account of this number")
    add.add_argument("--usd", metavar="AMOUNT", required=True, help="how much, such as 25 or 0.50; -5 takes five")
    add.add_argument("--reason", metavar="TEXT", help="kept with the entry")
    add.add_argument(
        "--idempotency-key", metavar="KEY", help="repeating the command with the same key credits nothing more"
    )
    show = _command(
        actions,
        shared,
        "show",
        "show what accounts have, or one account's latest entries",
        "Show the balance of every account; of one account also its latest entries.",
    )
    whose = show.add_mutually_exclusive_group()
    whose.add_argument("--key", metavar="ID|NAME", help="the account of this key")
    whose.add_argument("--account", metavar="ID", type=int, help="the account of this number")
    show.add_argument("--limit", metavar="N", type=int, default=20, help="most entries to show (default 20)")
    usage = _command(
        commands,
        shared,
        "usage",
        "show what was used and what it cost",
        "Show requests, tokens and cost by account, key and model, the costliest first.",
    )
    usage.add_argument("--key", metavar="ID|NAME", help="only this key")
    usage.add_argument("--account", metavar="ID", type=int, help="only this account")
    usage.add_argument("--since", metavar="DAY", default="30d", help="2026-01-31, or a number of days (default 30d)")
    usage.add_argument("--json", action="store_true", help="print a JSON array, for programs")
    reconcile = _command(
        commands,
        shared,
        "reconcile",
        "compare the balances in Redis with the ledger",
        "Compare the balance of every account in Redis with what the ledger says it must be, and the ledger with the "
        "sum of its entries. Safe while gateways run. Exit status 1 if anything differs.",
    )
    reconcile.add_argument("--fix", action="store_true", help="load accounts that differ into Redis anew")
    rejects = reconcile.add_mutually_exclusive_group()
    rejects.add_argument(
        "--rejects", action="store_true", help="compare nothing; show the usage records that could not be settled"
    )
    rejects.add_argument("--retry", metavar="ID|all", help="settle these again, once what was wrong is mended")
    rejects.add_argument("--discard", metavar="ID|all", help="forget them: what they cost is never entered")


def _bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    bench = _command(
        commands,
        shared,
        "bench",
        "put load on a gateway and report what its callers would see",
        "Send requests to this gateway, or to any OpenAI-compatible server, and report latency, time to first token, "
        "delays between events and errors. Without --rate, --streams requests run at a time, each caller waiting for "
        "its answer; with it, requests start at that rate whatever the server does, and latency counts from when "
        "they were due. The requests are real: a provider behind the server may charge for them. Exit status 1 if "
        "none succeeded, 130 if Ctrl-C ended the run; the report is printed all the same.",
    )
    bench.add_argument("--url", metavar="URL", help="where to send them (default: the gateway configured here)")
    bench.add_argument("--key", metavar="KEY", help="the key to call with, or file:PATH to read it from a file")
    bench.add_argument("--streams", metavar="N", type=int, default=64, help="most requests at a time (default 64)")
    bench.add_argument("--rate", metavar="R", type=float, help="start R requests a second (default: as answers come)")
    bench.add_argument("--duration", metavar="T", default="30s", help="how long to measure: 30s, 2m (default 30s)")
    bench.add_argument("--warmup", metavar="T", default="1s", help="uncounted load before that (default 1s)")
    bench.add_argument(
        "--grace", metavar="T", default="30s", help="how long running requests may take to end then (default 30s)"
    )
    bench.add_argument(
        "--timeout", metavar="T", default="60s", help="a request fails when nothing comes for so long (default 60s)"
    )
    bench.add_argument("--model", metavar="M", default="echo", help="the model to ask for (default echo)")
    bench.add_argument(
        "--prompt", metavar="TEXT", default="Count slowly from one to twenty.", help="the user message to send"
    )
    bench.add_argument("--max-tokens", metavar="N", type=int, help="a bound for each answer")
    bench.add_argument("--no-stream", action="store_true", help="ask for whole answers")
    bench.add_argument("--body", metavar="FILE", help="send this JSON instead of a request made from the above")
    bench.add_argument(
        "--header", metavar="H", action="append", default=[], help="a further header, `name: value`; may be repeated"
    )
    bench.add_argument("--ca-file", metavar="FILE", help="trust these certificate authorities (PEM)")
    bench.add_argument("--insecure", action="store_true", help="accept any TLS certificate")
    bench.add_argument("--json", action="store_true", help="print the result as JSON, for programs")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    shared: argparse.ArgumentParser,
    name: str,
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=description, epilog=_EXIT, parents=[shared], allow_abbrev=False
    )


def _shared() -> argparse.ArgumentParser:
    """What every command takes."""
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("configuration")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="configuration file (default: $GATEWAY_CONFIG, else config/gateway.toml where there is one)",
    )
    group.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where embedded servers and generated secrets live (default .gateway); given that of a running gateway, "
        "a command joins its servers",
    )
    return shared


def _listening(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", metavar="H", help="address (default 127.0.0.1; 0.0.0.0 is every interface)")
    command.add_argument("--port", metavar="P", type=int, help="port (default 8080)")

"""`gateway doctor`: everything that could keep the gateway from running well, and what to do about it.

Rules:
- A finding is `ok`, `warn` (it runs, but not as it should) or `fail` (it does not run, or is not safe to). What is
  not ok comes with a remedy.
- One failure hides no other, except where there is nothing left to look at: without settings there are no stores.
- No secret is shown and no provider called. Stores that nobody configured are brought up the way `serve` would, or
  joined where a gateway runs, and taken down again.
"""

import argparse
import asyncio
import resource
import shutil
import stat
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import asyncpg
import redis
from redis.exceptions import RedisError

import gateway
from gateway.cli.check import body_use, load_hooks, load_registry
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.config import Loaded
from gateway.errors import ConfigError, GatewayError
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.embedded import open_stores
from gateway.infra.migrate import MigrationRefused, check
from gateway.infra.postgres import Database
from gateway.registry import OWN_DISTRIBUTION
from gateway.settings import Settings

POSTGRES_MIN = 14
REDIS_MIN = (7, 0)
TIMEOUT_S = 5.0
SKEW_WARN_S = 1.0
SKEW_FAIL_S = 30.0
#: What a worker has open besides connections of callers and providers.
DESCRIPTORS_SPARE = 256
DESCRIPTORS_MIN = 1024
DISK_FREE_BYTES_MIN = 1024**3

_LIBRARIES = ("uvicorn", "uvloop", "httptools", "starlette", "msgspec", "asyncpg", "redis", "hiredis")
#: Connections that PostgreSQL keeps for administrators, and ours outside the pools.
_POSTGRES_SPARE = 10


class Finding(NamedTuple):
    """One line of the report."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    detail: str
    remedy: str = ""


_COLOURS = {"ok": Colour.GREEN, "warn": Colour.YELLOW, "fail": Colour.RED}


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if anything failed."""
    findings = list(examine(arguments))
    out = Printer(sys.stdout)
    colours = [_COLOURS[finding.state] for finding in findings]
    out.table(("STATE", "SUBJECT", "FOUND"), [finding[:3] for finding in findings], colours=colours)
    troubles = [finding for finding in findings if finding.remedy]
    if troubles:
        out.line()
        out.line("What to do:")
        for finding in troubles:
            out.line(f"  {out.paint(finding.subject, _COLOURS[finding.state])}: {finding.remedy}")
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """All findings, in the order of the report."""
    yield _versions()
    yield from examine_installation(metadata.distribution(OWN_DISTRIBUTION), Path(gateway.__file__).parents[1])
    try:
        loaded = load_config(arguments)
    except ConfigError as error:
        for line in error.message.splitlines():
            yield Finding("fail", "configuration", line, "mend it; `gateway check` reads it again")
        return
    yield Finding("ok", "configuration", ", ".join(loaded.files) or "no file, the defaults")
    for warning in loaded.warnings:
        yield Finding("warn", "configuration", warning, "change it, or keep it if it is meant")
    yield _providers(loaded)
    yield _plugins(loaded)
    yield from examine_data_dir(loaded.settings)
    yield examine_descriptors(loaded.settings, resource.getrlimit(resource.RLIMIT_NOFILE))
    yield from _stores(loaded.settings)


def _versions() -> Finding:
    python = ".".join(str(part) for part in sys.version_info[:3])
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    return Finding("ok", "versions", f"gateway {gateway.__version__}, Python {python}, {libraries}")


def examine_installation(installed: metadata.Distribution, checkout: Path) -> Iterator[Finding]:
    """Whether what is installed is what the code says: in a checkout, entry points are read at installation only."""
    remedy = "install the project again: `make install`, or `pip install -e .` in its directory"
    if installed.version != gateway.__version__:
        detail = f"version {installed.version} is installed, the code is {gateway.__version__}"
        yield Finding("warn", "installation", detail, remedy)
        return
    project = checkout / "pyproject.toml"
    if not project.is_file():
        yield Finding("ok", "installation", "a released package")
        return
    declared: dict[str, dict[str, str]] = tomllib.loads(project.read_text("utf-8"))["project"].get("entry-points", {})
    wanted = {(group, name, value) for group, entries in declared.items() for name, value in entries.items()}
    found = {(each.group, each.name, each.value) for each in installed.entry_points if each.group in declared}
    if names := sorted(name for _, name, _ in wanted ^ found):
        detail = f"the installed entry points are not those of pyproject.toml: {', '.join(names)}"
        yield Finding("fail", "installation", detail, remedy)
    else:
        yield Finding("ok", "installation", f"a checkout, with {len(wanted)} fresh entry points")


def _providers(loaded: Loaded) -> Finding:
    try:
        registry = load_registry(loaded)
    except ConfigError as error:
        return Finding("fail", "providers", error.message, "mend it; `gateway check` reads it again")
    names = ", ".join(registry.providers)
    if not names:
        remedy = "add a [providers.NAME] table, or set a variable such as OPENAI_API_KEY"
        return Finding("fail", "providers", "there are none, so no model can be called", remedy)
    return Finding("ok", "providers", names)


def _plugins(loaded: Loaded) -> Finding:
    try:
        plugged = load_hooks(loaded)
    except ConfigError as error:
        return Finding("fail", "plugins", error.message, "mend it; `gateway check` reads it again")
    if not plugged:
        return Finding("ok", "plugins", "none is on")
    names = [f"{each.name} (bodies are {body_use(each)})" if each.reads_body else each.name for each in plugged]
    left = "; what has a body leaves the zero-copy path" if any(each.reads_body for each in plugged) else ""
    return Finding("ok", "plugins", ", ".join(names) + left)


def examine_data_dir(settings: Settings) -> Iterator[Finding]:
    """Whether the data directory is ours alone, can be written to, and has room."""
    path = Path(settings.server.data_dir)
    if not path.exists():
        yield Finding("ok", "data directory", f"{path} is made at the first start")
        return
    try:
        mode = path.stat().st_mode
        free_bytes = shutil.disk_usage(path).free
    except OSError as error:
        yield Finding("fail", "data directory", f"{path}: {error.strerror}", "give another one with --data-dir")
        return
    if not stat.S_ISDIR(mode):
        yield Finding("fail", "data directory", f"{path} is no directory", "give another one with --data-dir")
        return
    detail = f"{path}, mode {stat.S_IMODE(mode):04o}, {free_bytes / 1024**3:.1f} GiB free"
    if not mode & stat.S_IWUSR:
        yield Finding("fail", "data directory", f"{detail}, not writable", f"chmod u+rwx {path}")
    elif mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding("warn", "data directory", f"{detail}: others can look into it", f"chmod 700 {path}")
    elif free_bytes < DISK_FREE_BYTES_MIN:
        yield Finding("warn", "data directory", detail, "make room, or give another one with --data-dir")
    else:
        yield Finding("ok", "data directory", detail)


def examine_descriptors(settings: Settings, limits: tuple[int, int]) -> Finding:
    """Whether a worker may open as many connections as it is configured to. `limits` are soft and hard."""
    soft, hard = (limit if limit != resource.RLIM_INFINITY else sys.maxsize for limit in limits)
    # Each connection to a provider has a caller behind it.
    wanted = 2 * settings.upstream.connections_max + DESCRIPTORS_SPARE
    shown = "unlimited" if soft == sys.maxsize else str(soft)
    detail = f"a process may have {shown} files open; upstream.connections_max may need {wanted}"
    if soft >= wanted:
        return Finding("ok", "file descriptors", detail)
    how = f"`ulimit -n {wanted}`" if hard >= wanted else "raise the hard limit (LimitNOFILE= in systemd, --ulimit)"
    return Finding(
        "fail" if soft < DESCRIPTORS_MIN else "warn", "file descriptors", detail, f"{how}, or lower connections_max"
    )


def _stores(settings: Settings) -> Iterator[Finding]:
    try:
        with open_stores(settings) as stores:
            yield from asyncio.run(examine_postgres(settings, stores.database_dsn))
            yield from examine_redis(stores.redis_url, SystemClock())
    except GatewayError as error:
        remedy = "set DATABASE_URL and REDIS_URL, or see what the message names"
        yield Finding("fail", "embedded servers", error.message, remedy)


async def examine_postgres(settings: Settings, dsn: str) -> Sequence[Finding]:
    """Whether PostgreSQL answers, is new enough, has room for our pools and the tables we need."""
    subject = "PostgreSQL"
    try:
        async with Database(dsn, pool_size=1, timeout_s=TIMEOUT_S, application="gateway doctor") as database:
            version = int(await database.fetch_value("select current_setting('server_version_num')"))
            connections_max = int(await database.fetch_value("select current_setting('max_connections')"))
        pending = await check(dsn)
    except MigrationRefused as error:
        return [Finding("fail", subject, error.message, "run the release that the database belongs to")]
    except (GatewayError, ValueError, asyncpg.InterfaceError) as error:
        detail = error.detail if isinstance(error, GatewayError) and error.detail else str(error)
        return [Finding("fail", subject, detail, "see database.url (DATABASE_URL), and that the server runs")]
    findings = []
    major = version // 10_000
    name = f"version {major}.{version % 10_000}"
    if major < POSTGRES_MIN:
        findings.append(Finding("fail", subject, name, f"{POSTGRES_MIN} or later is needed"))
    else:
        findings.append(Finding("ok", subject, f"{name}, {connections_max} connections"))
    wanted = settings.database.pool_size * max(settings.server.workers, 1) + _POSTGRES_SPARE
    if wanted > connections_max:
        detail = f"our pools may open {wanted} connections, the server takes {connections_max}"
        findings.append(Finding("warn", subject, detail, "raise max_connections, or lower database.pool_size"))
    if pending:
        embedded = settings.database.url is None
        detail = f"{len(pending)} missing, from {pending[0]}"
        findings.append(
            Finding("ok", "migrations", f"{detail}; applied at the next start")
            if embedded
            else Finding("warn", "migrations", detail, "`gateway migrate`; `serve` does it at its start too")
        )
    else:
        findings.append(Finding("ok", "migrations", "all applied"))
    return findings


def examine_redis(url: str, clock: Clock) -> Sequence[Finding]:
    """Whether Redis answers, is new enough, forgets nothing on its own, and has our time of day."""
    subject = "Redis"
    remedy = "see redis.url (REDIS_URL), and that the server runs"
    try:
        client = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        with client:
            info = client.info("default")
            before_s = clock.now()
            seconds, microseconds = client.time()
            after_s = clock.now()
    except (RedisError, OSError, ValueError) as error:
        return [Finding("fail", subject, f"{type(error).__name__}: {error}", remedy)]
    findings = [_redis_version(info)]
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        findings.append(Finding("ok", "eviction", "maxmemory-policy is noeviction"))
    else:
        how = "set `maxmemory-policy noeviction`: balances and limits must not be thrown away"
        findings.append(Finding("fail", "eviction", f"maxmemory-policy is {policy}", how))
    findings.append(judge_skew(seconds + microseconds / 1e6 - (before_s + after_s) / 2))
    return findings


def _redis_version(info: dict[str, object]) -> Finding:
    # Valkey says a Redis version for old clients, and its own beside it.
    version = str(info.get("redis_version", "0"))
    valkey = info.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"version {version}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < REDIS_MIN:
        return Finding("fail", "Redis", name, "Redis 7.0 or later, or Valkey, is needed")
    return Finding("ok", "Redis", name)


def judge_skew(skew_s: float) -> Finding:
    """What a difference of `skew_s` seconds between Redis' clock and ours means."""
    detail = f"{abs(skew_s):.3f} s {'behind' if skew_s > 0 else 'ahead of'} Redis"
    remedy = "synchronise the clocks of both machines (chrony, systemd-timesyncd)"
    if abs(skew_s) > SKEW_FAIL_S:
        return Finding("fail", "clock", detail, remedy)
    if abs(skew_s) > SKEW_WARN_S:
        return Finding("warn", "clock", detail, remedy)
    return Finding("ok", "clock", detail)

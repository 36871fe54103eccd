"""`gateway bench`: put load on a gateway, or on any OpenAI-compatible server, and report what callers would see.

Results go to standard output, progress to standard error. Ctrl-C ends the run and still reports; a second one does
not wait. The request is made here; how it is sent and measured is `gateway.loadtest`.
"""

import argparse
import asyncio
import contextlib
import re
import resource
import signal
import ssl
import sys
from pathlib import Path

import msgspec
import uvloop

from gateway.cli.bench_view import Progressing, print_result
from gateway.cli.loading import load_config
from gateway.cli.table import Printer, printable
from gateway.errors import ConfigError
from gateway.infra.clock import SystemClock
from gateway.loadtest.engine import Engine, Plan
from gateway.loadtest.origin import Origin, Unreachable
from gateway.loadtest.probe import Answer, probe
from gateway.loadtest.result import Result

_CHAT = "/v1/chat/completions"
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION_S_MAX = 24 * 3600.0
_INTERRUPTED = 130
_CLOCK = SystemClock()


def run(arguments: argparse.Namespace) -> int:
    """0 when at least one request succeeded.

    Raises:
        ConfigError: an argument is wrong, or the first request already failed.
    """
    plan = make_plan(arguments)
    _allow_connections(plan.streams)
    try:
        result, interrupted = uvloop.run(_measure(plan, quiet=arguments.json))
    except Unreachable as error:
        raise ConfigError(f"{plan.origin.url}: {error}") from error
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
    else:
        print_result(Printer(sys.stdout), result, interrupted=interrupted)
    if interrupted:
        return _INTERRUPTED
    return 0 if result.latency.count else 1


def make_plan(arguments: argparse.Namespace) -> Plan:
    """What the arguments ask for.

    Raises:
        ConfigError: they don't fit together, or one is not what it should be.
    """
    if arguments.streams < 1:
        raise ConfigError("--streams: at least 1")
    if arguments.rate is not None and not 0 < arguments.rate <= 1_000_000:
        raise ConfigError("--rate: requests a second, more than 0")
    window_s = parse_duration(arguments.duration, argument="--duration")
    if window_s <= 0:
        raise ConfigError("--duration: more than nothing")
    tls = _tls(arguments)
    try:
        origin = Origin(_url(arguments), tls=tls)
        request = origin.render(_body(arguments), headers=_headers(arguments))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Plan(
        origin=origin,
        request=request,
        streams=arguments.streams,
        rate=arguments.rate,
        window_s=window_s,
        warmup_s=parse_duration(arguments.warmup, argument="--warmup"),
        grace_s=parse_duration(arguments.grace, argument="--grace"),
        timeout_s=max(0.001, parse_duration(arguments.timeout, argument="--timeout")),
        ramp_s=min(1.0, window_s / 10),
    )


def parse_duration(text: str, *, argument: str) -> float:
    """Seconds in `30s`, `500ms`, `2m`, `1h` or a plain number of seconds.

    Raises:
        ConfigError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    if match is None:
        raise ConfigError(f"{argument}: {printable(text)!r} is no duration; write 30s, 500ms, 2m or 1h")
    seconds = float(match[1]) * _UNITS_S[match[2]]
    if seconds > _DURATION_S_MAX:
        raise ConfigError(f"{argument}: a day at most")
    return seconds


async def _measure(plan: Plan, *, quiet: bool) -> tuple[Result, bool]:
    """The result, and whether Ctrl-C cut the run short."""
    answer = await probe(plan.origin, plan.request, clock=_CLOCK, timeout_s=plan.timeout_s)
    _require_success(plan, answer)
    engine = Engine(plan, clock=_CLOCK)
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        engine.stop()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    async with Progressing(engine, sys.stderr, clock=_CLOCK, enabled=not quiet or sys.stderr.isatty()):
        result = await engine.run()
    return result, interrupted


def _require_success(plan: Plan, answer: Answer) -> None:
    if 200 <= answer.status < 300:
        return
    beginning = printable(answer.beginning.decode(errors="replace"))
    raise ConfigError(
        f"{plan.origin.url} answered the first request with HTTP {answer.status}; nothing was measured",
        detail=beginning[:500] or "the answer was empty",
    )


def _url(arguments: argparse.Namespace) -> str:
    """The URL asked for, with the path of chat completions where none is given; else the gateway configured here."""
    if arguments.url is None:
        server = load_config(arguments).settings.server
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)  # noqa: S104  asked, not bound to
        return f"http://{host}:{server.port}{_CHAT}"
    url: str = arguments.url if "://" in arguments.url else f"http://{arguments.url}"
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    if path.rstrip("/") in ("", "v1"):
        return f"{scheme}://{authority}{_CHAT}"
    return url


def _body(arguments: argparse.Namespace) -> bytes:
    if arguments.body is not None:
        try:
            return Path(arguments.body).read_bytes()
        except OSError as error:
            raise ConfigError(f"--body: {error}") from error
    request: dict[str, object] = {
        "model": arguments.model,
        "messages": [{"role": "user", "content": arguments.prompt}],
    }
    if arguments.max_tokens is not None:
        request["max_tokens"] = arguments.max_tokens
    if not arguments.no_stream:
        request["stream"] = True
    return msgspec.json.encode(request)


def _headers(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    headers = []
    if arguments.key is not None:
        headers.append(("authorization", f"Bearer {_key(arguments.key)}"))
    for text in arguments.header:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f"--header: {printable(text)!r} is not of the form `name: value`")
        headers.append((name.strip(), value.strip()))
    return headers


def _key(text: str) -> str:
    """The key itself, or the content of the file that `file:PATH` names, which other users' `ps` doesn't show."""
    if not text.startswith("file:"):
        return text
    try:
        return Path(text.removeprefix("file:")).read_text().strip()
    except OSError as error:
        raise ConfigError(f"--key: {error}") from error


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if not arguments.insecure and arguments.ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=arguments.ca_file)
    except OSError as error:
        raise ConfigError(f"--ca-file: {error}") from error
    if arguments.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _allow_connections(streams: int) -> None:
    """Raise the limit of open files as far as it goes, and refuse what would run into it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = streams + 64
    if soft >= wanted:
        return
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
        soft = granted
    if soft < wanted:
        raise ConfigError(f"--streams: {streams} connections need `ulimit -n {wanted}`, and {soft} is all there is")

"""Three times what can be done: how much of it is still done, and who is refused.

    python -m benchmarks.overload                    a provider with so many places, each so long
    python -m benchmarks.overload --scarce worker    the worker's own processor; --load json, burst or bridge

Arrivals do not wait for answers (open loop), on as many connections as that takes. The peak to compare with is nine
tenths of what the provider can do, or what the worker does when the next request waits for the last answer. Then the
load is threefold, by keys of three priorities. Of each are shown: answers a second, refusals, how long answers took.

Where the worker is scarce it has a processor to itself, and everything else runs on the other one: look whether the
worker was the busy one, and believe the shares within one run alone.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import machine
from benchmarks.process import Process
from benchmarks.targets import CHAT, Cores, Gateway, Providers
from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.key_store import create_key, load_pepper
from gateway.loadtest.engine import Engine, Plan
from gateway.loadtest.origin import Origin
from gateway.loadtest.result import Result

BODY: Final = b'{"model":"bench","max_tokens":16,"messages":[{"role":"user","content":"Hi"}]}'
ANSWER: Final = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1760000000,"model":"bench","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}'
)
CONFIG: Final = """\
[providers.limited]
adapter = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "not-needed"

[routing.concurrency]
slow_s = {slow_s}

[models."*"]
free = true

[log]
access = ""
"""
PLANS: Final = """
[plans.high]
priority = "high"
[plans.normal]
[plans.low]
priority = "low"
"""
PRIORITIES: Final = ("high", "normal", "low")
#: Of a threefold load, in multiples of what can be done.
SHARES: Final = {"high": 0.2, "normal": 0.4, "low": 2.4}
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)


class LimitedGateway(Gateway):
    """One worker before one provider, with a key of each priority."""

    def configure(self, *, port: int, slow_s: float, more: str = "") -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.config = CONFIG.format(port=port, slow_s=slow_s) + PLANS + more

    def render_config(self) -> str:
        return self.config

    def keys(self) -> dict[str, str]:
        """A new key for each priority."""
        arguments = argparse.Namespace(config=str(self._config), data_dir=str(self.scratch / "data"))
        settings = load_config(arguments).settings
        made: dict[str, str] = {}

        async def create(database: Database, _: Stores) -> None:
            pepper = load_pepper(settings)
            for name in PRIORITIES:
                account_id = await database.fetch_value(
                    "insert into accounts (name, plan) values ($1, $1) returning id", name
                )
                made[name] = (await create_key(database, name=name, pepper=pepper, account_id=account_id)).text

        with_database(settings, create)
        return made


@contextlib.asynccontextmanager
async def provider(*, places: int, service_s: float) -> AsyncIterator[int]:
    """A provider that takes as many requests as come and works on so many; its port."""
    free = asyncio.Semaphore(places)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
                await reader.readexactly(length)
                async with free:
                    await asyncio.sleep(service_s)
                writer.write(_HEAD + ANSWER)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
    async with server:
        yield server.sockets[0].getsockname()[1]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked for, and where."""

    path: str
    body: bytes

    def request(self, url: str, key: str) -> tuple[Origin, bytes]:
        origin = Origin(url.replace("/v1/chat/completions", self.path))
        return origin, origin.render(self.body, headers=[("authorization", f"Bearer {key}")])


WORKS: Final = {
    "json": Work(
        path=CHAT, body=b'{"model":"bench-json","max_tokens":16,"messages":[{"role":"user","content":"Hi"}]}'
    ),
    "burst": Work(
        path=CHAT,
        body=b'{"model":"bench-burst-50","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"Hi"}]}',
    ),
    "bridge": Work(
        path="/v1/messages",
        body=b'{"model":"bench-burst-50","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"Hi"}]}',
    ),
}
_OWN_WORK: Final = Work(path=CHAT, body=BODY)


async def load(
    url: str, work: Work, rates: dict[str, float | None], *, warmup_s: float, window_s: float, streams: int = 4096
) -> dict[str, Result]:
    """Requests by several keys at once, each at its own rate; None: the next one when the last is answered."""

    def engine(key: str, rate: float | None) -> Engine:
        origin, request = work.request(url, key)
        plan = Plan(
            origin=origin,
            request=request,
            streams=streams,
            rate=rate,
            window_s=window_s,
            warmup_s=warmup_s,
            grace_s=15.0,
            timeout_s=60.0,
            ramp_s=0.0,
        )
        return Engine(plan, clock=SystemClock())

    results = await asyncio.gather(*(engine(key, rate).run() for key, rate in rates.items()))
    return dict(zip(rates, results, strict=True))


def show(name: str, result: Result) -> None:
    offered = f"{result.rate:7.0f}/s" if result.rate else "  closed "
    print(
        f"{name:18} {offered} offered {result.requests_per_s:8.1f}/s answered {result.failed:7d} refused"
        f" {result.unsent:7d} unsent {result.latency.p50_ms:7.0f} ms p50 {result.latency.p99_ms:7.0f} ms p99"
        f"   {result.errors or ''}",
        flush=True,
    )


async def threefold(
    gateway: LimitedGateway, work: Work, keys: dict[str, str], capacity: float, arguments: argparse.Namespace
) -> float:
    """Three times the capacity, by three keys; how much of it was answered."""
    rates = {name: share * capacity for name, share in SHARES.items()}
    rates["low"] += (arguments.times - 3.0) * capacity
    by_key: dict[str, float | None] = {keys[name]: rate for name, rate in rates.items()}
    times = {"warmup_s": arguments.warmup_s, "window_s": arguments.window_s}
    results = await load(gateway.json_url, work, by_key, **times)
    for name in PRIORITIES:
        show(f"{arguments.times:g} times, {name}", results[keys[name]])
    return sum(result.requests_per_s for result in results.values()) / capacity


async def scarce_provider(arguments: argparse.Namespace, scratch: Path) -> None:
    capacity = arguments.places / arguments.service_s
    async with provider(places=arguments.places, service_s=arguments.service_s) as port:
        providers = Providers(stream_port=port, json_port=port, pids=())
        # Nothing is pinned: the provider is what is scarce here.
        gateway = LimitedGateway(providers=providers, cores=Cores(measured=0, load=0), scratch=scratch / "gateway")
        gateway.configure(port=port, slow_s=arguments.service_s)
        await asyncio.to_thread(gateway.launch)
        try:
            keys = await asyncio.to_thread(gateway.keys)
            peak = await load(
                gateway.json_url, _OWN_WORK, {keys["high"]: 0.9 * capacity}, warmup_s=3.0, window_s=10.0
            )
            show("nine tenths, high", peak[keys["high"]])
            share = await threefold(gateway, _OWN_WORK, keys, capacity, arguments)
            print(f"goodput: {share:.0%} of what the provider can do")
        finally:
            await asyncio.to_thread(gateway.stop)


async def scarce_worker(arguments: argparse.Namespace, scratch: Path) -> None:
    cores = Cores(measured=0, load=1)
    machine.pin(os.getpid(), core=cores.load)
    port = machine.free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", "--port", str(port)]
    scripted = Process(command, log=scratch / "upstream.log", core=cores.load)
    work = WORKS[arguments.load]
    try:
        await asyncio.to_thread(scripted.await_http, port=port, path="/", timeout_s=20)
        providers = Providers(stream_port=port, json_port=port, pids=(scripted.pid,))
        gateway = LimitedGateway(providers=providers, cores=cores, scratch=scratch / "gateway")
        gateway.configure(port=port, slow_s=2.0, more=arguments.config)
        await asyncio.to_thread(gateway.start)
        try:
            keys = await asyncio.to_thread(gateway.keys)
            relay = gateway.relay_pid()
            assert relay is not None
            times = {"warmup_s": 2.0, "window_s": arguments.window_s / 2}
            before = await load(gateway.json_url, work, {keys["high"]: None}, streams=64, **times)
            show("alone, high", before[keys["high"]])
            capacity = before[keys["high"]].requests_per_s
            for _ in range(arguments.rounds):
                busy_s, began_s = machine.cpu_s(relay), SystemClock().monotonic()
                share = await threefold(gateway, work, keys, capacity, arguments)
                busy = (machine.cpu_s(relay) - busy_s) / (SystemClock().monotonic() - began_s)
                after = await load(gateway.json_url, work, {keys["high"]: None}, streams=64, **times)
                show("alone again, high", after[keys["high"]])
                # The machine need not be what it was: both sides of the overload count.
                both = (capacity + after[keys["high"]].requests_per_s) / 2
                print(f"goodput: {share * capacity / both:.0%} of what the worker does alone; it was {busy:.0%} busy")
                capacity = after[keys["high"]].requests_per_s
        finally:
            await asyncio.to_thread(gateway.stop)
    finally:
        await asyncio.to_thread(scripted.stop)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scarce", choices=("provider", "worker"), default="provider")
    parser.add_argument("--load", choices=tuple(WORKS), default="bridge", help="where the worker is scarce")
    parser.add_argument("--rounds", type=int, default=1, help="where the worker is scarce")
    parser.add_argument("--config", default="", help="more lines for the gateway's configuration")
    parser.add_argument("--places", type=int, default=50)
    parser.add_argument("--service-s", type=float, default=0.5)
    parser.add_argument("--times", type=float, default=3.0, help="of what is sustainable")
    parser.add_argument("--window-s", type=float, default=15.0)
    parser.add_argument("--warmup-s", type=float, default=20.0)
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="gw-overload-") as scratch:
        run = scarce_provider if arguments.scarce == "provider" else scarce_worker
        await run(arguments, Path(scratch))


if __name__ == "__main__":
    uvloop.run(main())

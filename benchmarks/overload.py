"""Three times what a provider can do: how much of it is still done, and who is refused.

Run `python -m benchmarks.overload`. A provider with so many places, each so long, stands behind one worker. It is
loaded to nine tenths, which is the peak to compare with, and then threefold: a share of the requests by a live key,
the others by a test key, which matters less. Arrivals do not wait for answers (open loop). What is shown of each kind
of key: answers a second, refusals, and how long answers took.
"""

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.targets import Cores, Gateway, Providers
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
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)


class LimitedGateway(Gateway):
    """One worker before one provider, with two keys."""

    def configure(self, *, port: int, slow_s: float) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.config = CONFIG.format(port=port, slow_s=slow_s)

    def render_config(self) -> str:
        return self.config

    def key(self, environment: str) -> str:
        """A new key."""
        arguments = argparse.Namespace(config=str(self._config), data_dir=str(self.scratch / "data"))
        settings = load_config(arguments).settings
        made: list[str] = []

        async def create(database: Database, _: Stores) -> None:
            pepper = load_pepper(settings)
            made.append((await create_key(database, name=environment, pepper=pepper, environment=environment)).text)

        with_database(settings, create)
        return made[0]


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


async def load(url: str, rates: dict[str, float], *, warmup_s: float, window_s: float) -> dict[str, Result]:
    """Requests by several keys at once, each at its own rate."""
    origin = Origin(url)

    def engine(key: str, rate: float) -> Engine:
        plan = Plan(
            origin=origin,
            request=origin.render(BODY, headers=[("authorization", f"Bearer {key}")]),
            streams=4096,
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
    offered = result.rate or 0.0
    print(
        f"{name:24} {offered:6.0f}/s offered {result.requests_per_s:7.1f}/s answered {result.failed:6d} refused"
        f" {result.latency.p50_ms:7.0f} ms p50 {result.latency.p99_ms:7.0f} ms p99   {result.errors or ''}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=50)
    parser.add_argument("--service-s", type=float, default=0.5)
    parser.add_argument("--times", type=float, default=3.0, help="of what is sustainable")
    parser.add_argument("--window-s", type=float, default=15.0)
    parser.add_argument("--warmup-s", type=float, default=20.0)
    arguments = parser.parse_args()
    capacity = arguments.places / arguments.service_s
    with tempfile.TemporaryDirectory(prefix="gw-overload-") as scratch:
        async with provider(places=arguments.places, service_s=arguments.service_s) as port:
            providers = Providers(stream_port=port, json_port=port, pids=())
            # Nothing is pinned: the provider is what is scarce here.
            cores = Cores(measured=0, load=0)
            gateway = LimitedGateway(providers=providers, cores=cores, scratch=Path(scratch) / "gateway")
            gateway.configure(port=port, slow_s=arguments.service_s)
            await asyncio.to_thread(gateway.launch)
            try:
                live = await asyncio.to_thread(gateway.key, "live")
                test = await asyncio.to_thread(gateway.key, "test")
                times = {"warmup_s": arguments.warmup_s, "window_s": arguments.window_s}
                peak = (await load(gateway.json_url, {live: 0.9 * capacity}, warmup_s=3.0, window_s=10.0))[live]
                show("nine tenths, live key", peak)
                rates = {live: 0.2 * capacity, test: (arguments.times - 0.2) * capacity}
                results = await load(gateway.json_url, rates, **times)
                show("threefold, live key", results[live])
                show("threefold, test key", results[test])
                goodput = sum(result.requests_per_s for result in results.values())
                print(f"goodput: {goodput / capacity:.0%} of what the provider can do")
            finally:
                await asyncio.to_thread(gateway.stop)


if __name__ == "__main__":
    uvloop.run(main())

"""A gateway process with a tiny application, for the tests of the supervisor: `python -m tests.gateway.server.supervised`.

Arguments: `key=value` overrides of settings, or `config=FILE`, or `fail=HOW`. Prints the address when it is ready.
"""

import asyncio
import os
import sys
from pathlib import Path

from gateway.config import load
from gateway.errors import ConfigError, GatewayError
from gateway.infra import logs
from gateway.infra.embedded import Stores
from gateway.infra.link import METRICS, Link
from gateway.infra.metrics import Registry
from gateway.server.supervisor import run
from gateway.server.worker import AsgiApp
from gateway.settings import Settings

arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
fail = arguments.pop("fail", "")
path = arguments.pop("config", None)


def make_app(settings: Settings, stores: Stores, link: Link) -> AsgiApp:
    if fail == "factory":
        raise ConfigError("the factory refuses")
    if settings.log.level == "error":
        raise ConfigError("the application refuses this level")
    registry = Registry(incarnation=link.name)
    requests = registry.counter("gateway_requests_total", "All of them.").cell()

    async def answer(send, body: bytes, *, more: bool = False) -> None:
        headers = [(b"content-type", b"text/plain")] + ([] if more else [(b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def stream(send) -> None:
        """Until the file `finish` is there; leaves `cancelled` behind when it is not let."""
        data_dir = Path(settings.server.data_dir)
        await answer(send, b"begun\n", more=True)
        try:
            while not (data_dir / "finish").exists():  # noqa: ASYNC110  the test is another process
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            # What settling is: some work that has to wait for others.
            await asyncio.sleep(0.05)
            (data_dir / "cancelled").touch()
            raise
        await send({"type": "http.response.body", "body": b"whole\n"})

    async def app(scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            if fail == "lifespan":
                raise RuntimeError("the application refuses")
            if fail == "exit":
                os._exit(7)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            link.push(registry.snapshot())
            await asyncio.sleep(0)
            await send({"type": "lifespan.shutdown.complete"})
            return
        requests[0] += 1
        match scope["path"]:
            case "/stream":
                await stream(send)
            case "/crash":
                os._exit(9)
            case "/level":
                await answer(send, settings.log.level.encode())
            case "/metrics":
                link.push(registry.snapshot())
                await answer(send, await link.ask(METRICS))
            case _:
                link.push(registry.snapshot())
                await answer(send, b"%d" % os.getpid())

    return app


def announce(url: str) -> None:
    print(url, flush=True)


async def bootstrap(settings: Settings, stores: Stores) -> None:
    print(f"bootstrap {stores.redis_url}", flush=True)


if __name__ == "__main__":
    logs.configure(level="info")
    try:
        loaded = load(path, environ={}, overrides=arguments)
        sys.exit(run(loaded, app_factory=make_app, announce=announce, bootstrap=bootstrap))
    except GatewayError as error:
        sys.exit(f"{type(error).__name__}: {error.message}")

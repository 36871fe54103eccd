"""The way to a caller through ASGI's `send`."""

import asyncio

from gateway.downstream import SendDownstream
from gateway.infra.redis.connection import Connection
from gateway.infra.tasks import TaskGroup
from tests.gateway.server.test_protocol import Wire


async def test_a_charge_is_on_its_way_before_the_last_bytes():
    """Also where the rest of the answer had already woken the task that sends."""
    log: list[tuple[str, bytes]] = []
    redis = Connection("redis", timeout_s=5)
    redis.connection_made(Wire("redis", log))
    tasks = TaskGroup()

    async def receive():
        return await asyncio.get_running_loop().create_future()

    async def send(message) -> None:
        log.append(("caller", message.get("body", b"head")))

    downstream = SendDownstream(receive, send, on_gone=lambda: None, tasks=tasks)
    await asyncio.sleep(0)
    downstream.start(200, [], chunked=True)
    downstream.write(b"wh")
    redis.tell("SETTLE")
    downstream.end(b"ole")
    await downstream.flushed()

    assert [name if name == "redis" else data for name, data in log] == [b"head", b"wh", "redis", b"ole"]
    redis.give_up("the test is over")
    await tasks.close()

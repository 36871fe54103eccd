"""The benchmarks' provider in this process, on any free port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks import upstream


@asynccontextmanager
async def provider() -> AsyncIterator[int]:
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.get_running_loop().create_task(
        upstream.serve(host="127.0.0.1", port=0, stop=stop, ready=ready.set_result)
    )
    try:
        yield await ready
    finally:
        stop.set()
        await task

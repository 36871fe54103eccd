"""What one call of a script costs the client: ours beside redis-py, against the Valkey of the `local` extra.

    python -m benchmarks.redis_micro [--calls 200000] [--callers 64]

Each of the callers awaits its reply before it calls again, all in one loop under uvloop, over a Unix socket. The
figure that counts is processor time of this process for each call: the server has the other core.
"""

import argparse
import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis.asyncio
import uvloop

from gateway.infra.binaries import find_valkey
from gateway.infra.redis import Redis

# Short, so that the server is not what is measured; with keys and arguments like those of a limiter.
SCRIPT = b"return {redis.call('INCRBY', KEYS[1], ARGV[1]), ARGV[2]}"
KEYS = [b"{p17}:bucket"]
ARGS: list[bytes | int] = [1, b"0193a1b2c3d4e5f6", 1_700_000_000_000, 4096, 120, b"gpt-4o-mini"]

Call = Callable[[], Awaitable[object]]


async def measure(name: str, call: Call, *, calls: int, callers: int) -> None:
    async def caller() -> None:
        for _ in range(calls // callers):
            await call()

    await asyncio.gather(*(caller() for _ in range(callers)))
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    print(f"{name:<28} {calls / took_s:>10,.0f} calls/s  {cpu_s / calls * 1e6:>7.2f} us CPU a call")


async def run(socket_path: Path, calls: int, callers: int) -> None:
    url = f"unix://{socket_path}"
    ours = Redis(url, timeout_s=5)
    await ours.connect()
    script = ours.script(SCRIPT)
    await measure("gateway.infra.redis", lambda: script(KEYS, ARGS), calls=calls, callers=callers)
    await measure("gateway.infra.redis, GET", lambda: ours.execute("GET", b"{p17}:x"), calls=calls, callers=callers)
    await ours.close()

    theirs = redis.asyncio.Redis(
        connection_pool=redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=callers)
    )
    registered = theirs.register_script(SCRIPT)
    await measure(
        "redis-py, a connection each",
        lambda: registered(keys=KEYS, args=ARGS),
        calls=calls // 10,
        callers=callers,
    )
    await theirs.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--callers", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gw-redis-") as folder:
        socket_path = Path(folder) / "valkey.sock"
        server = subprocess.Popen(
            [find_valkey(), "--port", "0", "--unixsocket", socket_path, "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not socket_path.exists():
                os.sched_yield()
            uvloop.run(run(socket_path, options.calls, options.callers))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()

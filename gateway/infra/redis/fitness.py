"""Whether a Redis may be trusted with balances and limits: asked once at the start, before any worker relies on it.

A server that does not answer yet is no misconfiguration: a gateway starts without it and connects as soon as it is
there. One that answers and refuses our password, or may throw keys away when its memory is full, is.
"""

from gateway.errors import ConfigError, StoreUnavailable
from gateway.infra.redis.address import parse
from gateway.infra.redis.client import Redis
from gateway.infra.redis.connection import CommandRefused

#: How a server says that it does not let us in.
_LOCKED_OUT = ("NOAUTH", "WRONGPASS", "NOPERM")


async def demand_fitness(url: str, *, timeout_s: float) -> None:
    """Ask the server at `url`. Of a cluster, only whether it lets us in.

    Raises:
        ConfigError: it must not be used as it is; the message names the remedy.
        StoreUnavailable: it does not answer.
    """
    redis = Redis(url, timeout_s=timeout_s)
    try:
        await redis.connect()
        if parse(url).mode == "cluster":
            return
        policy = _eviction_policy(await redis.execute("INFO", "memory"))
    except (CommandRefused, StoreUnavailable) as error:
        said = error.detail or ""
        if any(word in said for word in _LOCKED_OUT):
            raise ConfigError(
                "redis.url (REDIS_URL): the server does not let us in; see the user and password in it, and that "
                "the user may run INFO, SCRIPT, EVALSHA and the commands of hashes, sorted sets and streams"
            ) from error
        raise StoreUnavailable(detail=said) from error
    finally:
        await redis.close()
    if policy not in ("noeviction", ""):
        raise ConfigError(
            f"redis.url (REDIS_URL): the server's maxmemory-policy is {policy}, so it may throw balances and limits "
            "away; set it to noeviction"
        )


def _eviction_policy(info: object) -> str:
    """What `INFO memory` says of it; empty where it says nothing."""
    if not isinstance(info, bytes):
        return ""
    for line in info.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name == "maxmemory_policy":
            return value.strip()
    return ""

"""The client for Redis and Valkey on the hot path: one connection to each server, shared by all callers.

Rules:
- Commands issued in one turn of the loop leave in one write; their replies come back in order. A command costs one
  future and one tuple, no task, no timer and no lock.
- While a server is away, calls fail at once with `StoreUnavailable`; in the background it is dialled again. A command
  whose connection broke or timed out may or may not have been executed: it fails, it is never sent twice. What must
  not happen twice has to be idempotent where it is written.
- One silent server fails all that wait for it together: after `timeout_s` the connection is given up.
- A caller that stops waiting costs its reply and nothing else.

What it does not do: blocking commands (they would hold up everyone; use a connection of their own), transactions
(write a script), client-side caching.

`Redis` is what others use. Behind it: `address` reads the URL, `dial` connects, `connection` speaks, `link` keeps one
connection alive, `cluster` knows which server has which slot, `subscription` listens to channels.
"""

from gateway.infra.redis.client import Redis, Script, subscribe
from gateway.infra.redis.connection import CommandRefused
from gateway.infra.redis.subscription import Message, Subscription

__all__ = ["CommandRefused", "Message", "Redis", "Script", "Subscription", "subscribe"]

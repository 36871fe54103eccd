"""Requests that may be sent again: a repeat with the same `idempotency-key` gets the first answer.

Rules:
- A key belongs to the caller's account and person; nobody meets another's. It says nothing without its request: the
  same key with another one is a conflict.
- Of two at the same time one runs; the other is told to come back.
- What was refused (4xx) is answered with the same refusal. What was told to come back (`retry-after`), or failed here
  (5xx), left no answer, and may be tried again.
- A claim whose request never came to an end (its process died), or whose answer could not be kept, stays a claim: it
  may have taken effect, and to run it twice is what nobody wanted. The caller looks, and takes another key.
- Answers are encrypted at rest, because among them are keys that are shown once. They are kept for `KEPT_S`;
  `expiry.py` removes them then.
"""

import hashlib
import hmac
from pathlib import Path
from typing import Final

from gateway.control.errors import Conflict, Invalid
from gateway.infra.postgres import Database, load_queries
from gateway.kernel.sealing import Box, Tampered

HEADER: Final = "idempotency-key"
KEY_MAX: Final = 200
KEPT_S: Final = 86_400.0

_queries: Final = load_queries(Path(__file__).with_name("idempotency.sql"))


class Answers:
    """The first answers of requests with a key."""

    def __init__(self, database: Database, *, pepper: bytes) -> None:
        self._database = database
        self._box = Box(hmac.digest(pepper, b"gateway: idempotency", "sha256"))

    async def claim(self, scope: str, key: str, request: bytes) -> tuple[int, bytes] | None:
        """Status and body of the first answer; None for whoever is first, and must `keep` or `give_up` then.

        Raises:
            Invalid: it is no key. Conflict: the key is another request's, or its first request is not over.
            StoreUnavailable
        """
        if not (0 < len(key) <= KEY_MAX and key.isascii() and key.isprintable()):
            raise Invalid(f"A key has 1 to {KEY_MAX} printable characters.", loc=("header", HEADER))
        request_hash = hashlib.sha256(request).digest()
        async with self._database.session() as session:
            if await session.fetch_value(_queries["claim"], scope, key, request_hash):
                return None
            row = await session.fetch_row(_queries["find"], scope, key)
        if row is not None and row["request_hash"] != request_hash:
            raise Conflict("This idempotency key was used for another request.", code="idempotency_key_reused")
        if row is None or row["status"] is None:
            raise Conflict(
                "The first request with this idempotency key is running, or ended without an answer.",
                code="idempotency_key_in_use",
                retry_after_s=1.0,
            )
        return row["status"], self._open(scope, key, row["answer"])

    async def keep(self, scope: str, key: str, status: int, body: bytes) -> None:
        """This is the first answer."""
        sealed = self._box.seal(body, f"{scope}\n{key}".encode())
        await self._database.execute(_queries["keep"], scope, key, status, sealed)

    async def give_up(self, scope: str, key: str) -> None:
        """There was no answer: the next one with this key is the first."""
        await self._database.execute(_queries["give_up"], scope, key)

    def _open(self, scope: str, key: str, sealed: bytes) -> bytes:
        try:
            return self._box.open(sealed, f"{scope}\n{key}".encode())
        except Tampered as error:
            # The pepper has changed since.
            raise Conflict("The first answer can't be read any more.", code="idempotency_key_in_use") from error

"""Passwords: argon2id with OWASP's parameters, hashed in threads, so many at a time.

One takes some 20 ms and 19 MiB, so it must not run on the loop, and a crowd of them must not take the machine: what
can't begin within `WAIT_S` is told to come back. A person that does not exist costs the same as one that does.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import Overloaded

T = TypeVar("T")

#: OWASP's choice for argon2id with the least memory that it still recommends.
TIME_COST: Final = 2
MEMORY_KIB: Final = 19 * 1024
PARALLELISM: Final = 1
#: Longer ones are refused before they cost anything.
LENGTH_MAX: Final = 128
WAIT_S: Final = 5.0


class Passwords:
    """Of one worker."""

    def __init__(self, *, at_once: int) -> None:
        self._hasher = PasswordHasher(TIME_COST, MEMORY_KIB, PARALLELISM)
        self._places = asyncio.Semaphore(at_once)
        #: Of nobody's password; verified against where there is no person.
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """What is stored.

        Raises:
            Overloaded
        """
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether it is the password; never for a person without one, at the same cost.

        Raises:
            Overloaded
        """
        return await self._run(lambda: self._verify(stored, password))

    def is_outdated(self, stored: str) -> bool:
        """Whether it was hashed with other parameters than these."""
        return self._hasher.check_needs_rehash(stored)

    def _verify(self, stored: str | None, password: str) -> bool:
        if self._nobody is None:
            self._nobody = self._hasher.hash("nobody's")
        try:
            self._hasher.verify(stored or self._nobody, password)
        except (VerificationError, InvalidHashError):
            return False
        return stored is not None

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded("Too many people sign in just now.", retry_after_s=1.0) from None
        try:
            # To its end even if the caller leaves: a thread can't be stopped, and its place is taken until then.
            return await asyncio.shield(task := asyncio.ensure_future(asyncio.to_thread(work)))
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise
        finally:
            self._places.release()

"""What is kept or carried where others can read it, encrypted: AES-256-GCM (NIST SP 800-38D) with a random nonce.

Whose key it is, and what the text is bound to, is each user's own business; so is what happens to what does not open.
"""

import secrets
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: 96 bits, as the mode wants them; what is sealed begins with them.
NONCE_BYTES: Final = 12


class Tampered(Exception):
    """What was to be opened is not what was sealed: under another key, bound to something else, or changed."""


class Box:
    """Seals and opens under one key of 32 bytes."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a key has 32 bytes")
        self._key = key

    def __repr__(self) -> str:
        return "<Box>"

    def seal(self, text: bytes, bound: bytes) -> bytes:
        """The nonce, the encrypted text and its tag; it opens only with the same `bound`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text, bound)

    def open(self, sealed: bytes, bound: bytes) -> bytes:
        """The text again.

        Raises:
            Tampered
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  as below

        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):
            raise Tampered from None

    @cached_property
    def _cipher(self) -> "AESGCM":
        # The library takes 9 MB in each process, and most never seal anything.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        return AESGCM(self._key)

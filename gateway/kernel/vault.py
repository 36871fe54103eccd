"""Accounts' own provider keys at rest: sealed under a master key that the database does not have, and opened again.

Rules:
- AES-256-GCM (NIST SP 800-38D) under a master key of the configuration, with a fresh random nonce of 96 bits for each
  sealing; at the numbers of keys that people keep, that is far from the 2^32 sealings a master key is good for.
- What is sealed is bound to its row: the account, the row's id and the provider are authenticated with it. So a row
  that was copied to another account, or turned to another provider, opens for nobody.
- There may be several master keys, each by an id that stands beside what was sealed under it; one of them is active
  and seals, all of them open. `gateway byok rotate` moves rows from one to another.
- No error here says anything of a key or of what is sealed.

What the rows are and who reads them is in `own_keys.py`.
"""

import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.errors import ConfigError, GatewayError
from gateway.kernel.sealing import NONCE_BYTES, Box, Tampered
from gateway.secret import Secret, decode_key
from gateway.settings import MASTER_BYTES, OwnKeys

#: Goes before what is authenticated: another use of the same master key could never be taken for this one.
_PURPOSE: Final = b"gateway: own provider key, 1"


class Unreadable(GatewayError):
    """A key of this account's own can't be read."""

    error_type = "gateway_own_key"
    code = "own_key_unreadable"


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a sealed key is: what has to be the same again for it to open."""

    account_id: int
    #: Of the row; a UUID.
    id: str
    provider: str

    def bind(self) -> bytes:
        """What is authenticated with it, unambiguous: each part with its length before it, or of a fixed one."""
        row, provider = self.id.encode(), self.provider.encode()
        return b"".join(
            (_PURPOSE, struct.pack(">qII", self.account_id, len(row), len(provider)), row, provider),
        )


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored: under which master key, the nonce, and the text with its tag."""

    master_id: str
    nonce: bytes
    sealed: bytes


class Vault:
    """Seals and opens under the master keys of one configuration; without any it is closed."""

    def __init__(self, masters: Mapping[str, bytes], *, active: str) -> None:
        self._boxes = {name: Box(key) for name, key in masters.items()}
        #: The id of the master key that seals; empty where there is none.
        self.active = active

    def __repr__(self) -> str:
        return f"<Vault: {len(self._boxes)} master keys>"

    @classmethod
    def of(cls, settings: OwnKeys) -> "Vault":
        """The vault of a configuration.

        Raises:
            ConfigError: a master key is none.
        """
        try:
            masters = {name: decode_key(text, size_bytes=MASTER_BYTES) for name, text in settings.masters.items()}
        except ValueError as error:
            # The configuration's check says which.
            raise ConfigError(f"own_keys.masters: {error}") from None
        return cls(masters, active=settings.active or next(iter(masters), ""))

    @property
    def is_open(self) -> bool:
        """Whether anything can be sealed."""
        return self.active in self._boxes

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of the master keys."""
        return tuple(self._boxes)

    def knows(self, master_id: str) -> bool:
        """Whether what was sealed under that master key can be opened."""
        return master_id in self._boxes

    def seal(self, text: str, owner: Owner) -> Sealed:
        """Seal under the active master key. Ask `is_open` before."""
        sealed = self._boxes[self.active].seal(text.encode(), owner.bind())
        return Sealed(master_id=self.active, nonce=sealed[:NONCE_BYTES], sealed=sealed[NONCE_BYTES:])

    def open(self, sealed: Sealed, owner: Owner) -> Secret:
        """The text again.

        Raises:
            Unreadable: its master key is not configured, it is another one by now, or the row was tampered with.
        """
        box = self._boxes.get(sealed.master_id)
        if box is None:
            raise Unreadable(detail=f"master key {sealed.master_id!r} is not configured")
        try:
            return Secret(box.open(sealed.nonce + sealed.sealed, owner.bind()).decode())
        except (Tampered, ValueError):
            raise Unreadable(
                detail=f"not sealed under this master key {sealed.master_id!r}, or changed since"
            ) from None

"""The provider keys that accounts bring themselves, of all accounts that a worker knows: opened, and made usable.

A worker gets them together with a gateway key of the account (`kernel/keys.py`), so they are as new as that is: what
is changed or deleted is told as a change of all gateway keys of the account, and holds everywhere within a second.
While the database is away, what is known goes on being used. No request waits for the database for them.

Rules:
- A key is opened once, where it is used: its text goes into the adapter that is made for it, and nowhere else.
- It is sent where the operator's own would be: the adapter is configured with the provider's table and this key.
- What stays the same when an account's keys change keeps its adapter and what is remembered of it.
- At most `KEYCHAINS_MAX` accounts are kept; those that were asked for longest ago are made anew when they come again.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Literal

from gateway.api import ConfigError, Renewing
from gateway.errors import StoreUnavailable
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database
from gateway.kernel.own_keys import (
    ANNOUNCE_S,
    TEXT_BYTES_MAX,
    Commands,
    SealedKey,
    announce_masters,
    find_own_key,
)
from gateway.kernel.vault import Unreadable, Vault
from gateway.registry import Provider, Registry
from gateway.routing.health import Health
from gateway.routing.keychain import Keychain, OwnKey
from gateway.secret import Secret
from gateway.upstream.renewal import Renewal, Renewals

log = logging.getLogger(__name__)

KEYCHAINS_MAX: Final = 10_000
#: Keys that can't be used are logged once, as far as so many are remembered.
TOLD_MAX: Final = 1000


class Keychains:
    """Of one worker."""

    def __init__(
        self,
        registry: Registry,
        vault: Vault,
        *,
        health: Health,
        renewals: Renewals,
        fee_permille: int,
    ) -> None:
        self.vault = vault
        #: Of all credentials of this worker that run out, the operator's too.
        self.renewals = renewals
        self._registry = registry
        self._health = health
        self._fee_permille = fee_permille
        self._keychains: OrderedDict[int, Keychain] = OrderedDict()
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"<Keychains of {len(self._keychains)} accounts>"

    def unlock(self, account_id: int, sealed: tuple[SealedKey, ...]) -> Keychain | None:
        """The keychain of an account with these keys; None where it has none."""
        known = self._keychains.get(account_id)
        if not sealed:
            if known is not None:
                del self._keychains[account_id]
                _stop(known, ())
            return None
        if known is not None and known.sealed == sealed:
            self._keychains.move_to_end(account_id)
            return known
        before = {} if known is None else {(key.id, key.fingerprint, key.name): key for key in known.keys}
        keys: list[OwnKey] = []
        for each in sealed:
            same = self._carried(before.get((each.id, each.fingerprint, each.provider)), each)
            keys.append(same or self._made(account_id, each))
        keychain = self._keychains[account_id] = Keychain(keys, sealed)
        self._keychains.move_to_end(account_id)
        if known is not None:
            _stop(known, keychain.renewals)
        while len(self._keychains) > KEYCHAINS_MAX:
            _, oldest = self._keychains.popitem(last=False)
            _stop(oldest, ())
        return keychain

    async def ready(self, keychain: Keychain) -> None:
        """Have the credentials that run out fetched; ask where `keychain.renewals` is not empty."""
        await self.renewals.follow(keychain.renewals)

    async def announce_forever(self, redis: Commands, worker: str, clock: Clock) -> None:
        """Say again and again which master keys this worker has."""
        while self.vault.is_open:
            # Where nobody can be told, nobody moves anything.
            with contextlib.suppress(StoreUnavailable):
                await announce_masters(redis, worker, self.vault, now_s=clock.now())
            await asyncio.sleep(ANNOUNCE_S)

    # -- for people who bring one ------------------------------------------------------------------------------

    def providers(self) -> list[str]:
        """Those that may be used with such keys."""
        return [name for name in self._registry.providers if self._registry.takes_own_keys(name)]

    def check(self, provider: str, text: str) -> None:
        """Whether a text is a key that this provider could be used with, as far as can be told without asking it.

        Raises:
            ConfigError: as `Registry.make_own`.
        """
        if len(text.encode()) > TEXT_BYTES_MAX or "\0" in text:
            raise ConfigError("is too long, or no text", param="api_key")
        self._registry.make_own(provider, Secret(text), fingerprint="")

    # -- making them -------------------------------------------------------------------------------------------

    def _carried(self, before: OwnKey | None, key: SealedKey) -> OwnKey | None:
        """The same key as before, with what may have changed of it. It need not be opened again."""
        if before is None or before.provider is None:
            return None
        return OwnKey(
            key, before.provider, health=before.health, fee_permille=self._fee_permille, renewal=before.renewal
        )

    def _made(self, account_id: int, key: SealedKey) -> OwnKey:
        health = self._health.make_own(key.provider)
        provider: Provider | None = None
        renewal: Renewal | None = None
        try:
            provider = make_own(self._registry, self.vault, account_id, key)
        except Unreadable as error:
            self._tell(key, logging.ERROR, f"can't be decrypted: {error.detail}")
        except ConfigError as error:
            self._tell(key, logging.WARNING, f"can't be used for {key.provider}: {error.param or ''} {error.message}")
        else:
            adapter = provider.adapter
            if isinstance(adapter, Renewing) and adapter.renewal(0.0) is not None:
                renewal = Renewal(f"{key.provider} (own key {key.id})", adapter)
        return OwnKey(key, provider, health=health, fee_permille=self._fee_permille, renewal=renewal)

    def _tell(self, key: SealedKey, level: int, what: str) -> None:
        if key.id not in self._told and key.provider in self._registry.providers:
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(key.id)
            log.log(level, "own key %s %s", key.id, what)


def make_own(registry: Registry, vault: Vault, account_id: int, key: SealedKey) -> Provider:
    """The provider of a key, with that key.

    Raises:
        Unreadable: it can't be opened.
        ConfigError: it can't be used here.
    """
    return registry.make_own(key.provider, key.open(vault, account_id), fingerprint=key.fingerprint)


async def find_own(
    database: Database, registry: Registry, vault: Vault, *, account_id: int, provider: str, fingerprint: str
) -> Provider | Literal["off"] | None:
    """For what goes on without a request: the provider with the key that something of an account's was made with.
    "off" where it can't be used at the moment, None where it is gone for good.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    key = await find_own_key(database, account_id=account_id, provider=provider, fingerprint=fingerprint)
    if not isinstance(key, SealedKey):
        return key
    try:
        return make_own(registry, vault, account_id, key)
    except (Unreadable, ConfigError) as error:
        log.warning("own key %s can't be used: %s", key.id, error.detail or error.message)
        return "off"


def _stop(keychain: Keychain, still: Iterable[Renewal]) -> None:
    """Renew no longer for what is gone."""
    kept = {id(renewal) for renewal in still}
    for renewal in keychain.renewals:
        if id(renewal) not in kept:
            renewal.stop()

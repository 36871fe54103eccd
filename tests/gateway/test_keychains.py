"""Own keys in a worker: opened once, carried over what changes, and gone when they are gone."""

import uuid

import msgspec
import pytest

from gateway.infra.clock import SystemClock
from gateway.kernel.own_keys import SealedKey, fingerprint_of
from gateway.kernel.vault import Owner, Vault
from gateway.keychains import Keychains
from gateway.registry import Registry
from gateway.routing.breaker import BreakerRules
from gateway.routing.health import Health
from gateway.secret import Secret
from gateway.settings import Provider, Settings, Upstream
from gateway.upstream.client import UpstreamClient
from gateway.upstream.renewal import Renewals

SETTINGS = Settings(
    providers={
        "local": Provider(adapter="openai", base_url="http://127.0.0.1:9/v1", api_key=Secret("operators")),
        "echo": Provider(adapter="echo"),
    }
)


class Counting(Vault):
    """Says how often it was opened."""

    opened = 0

    def open(self, sealed, owner):
        self.opened += 1
        return super().open(sealed, owner)


@pytest.fixture
def vault() -> Counting:
    return Counting({"k1": b"\1" * 32}, active="k1")


@pytest.fixture
async def keychains(vault):
    client = UpstreamClient(Upstream())
    yield Keychains(
        Registry.load(SETTINGS),
        vault,
        health=Health(BreakerRules()),
        renewals=Renewals(client, clock=SystemClock()),
        fee_permille=50,
    )
    await client.close()


def sealed_key(vault: Vault, text: str = "sk-own", *, account_id: int = 7, provider: str = "local") -> SealedKey:
    key_id = str(uuid.uuid4())
    sealed = vault.seal(text, Owner(account_id=account_id, id=key_id, provider=provider))
    return SealedKey(
        id=key_id,
        provider=provider,
        mode="first",
        fingerprint=fingerprint_of(text, account_id=account_id),
        master_id=sealed.master_id,
        nonce=sealed.nonce,
        sealed=sealed.sealed,
    )


def test_an_account_without_any_has_no_keychain(keychains):
    assert keychains.unlock(7, ()) is None


def test_what_did_not_change_is_not_opened_again(keychains, vault):
    key = sealed_key(vault)

    first = keychains.unlock(7, (key,))

    assert keychains.unlock(7, (key,)) is first
    assert vault.opened == 1


def test_a_change_of_mode_keeps_the_key_and_what_is_remembered_of_it(keychains, vault):
    key = sealed_key(vault)
    (before,) = keychains.unlock(7, (key,)).keys

    (after,) = keychains.unlock(7, (msgspec.structs.replace(key, mode="only"),)).keys

    assert (before.mode, after.mode) == ("first", "only")
    assert after.provider is before.provider
    assert after.health is before.health
    assert vault.opened == 1


def test_a_key_that_was_moved_to_a_master_key_that_is_not_here_goes_on(keychains, vault):
    """A worker that has not heard of the new master key yet: what it has opened it need not open again."""
    key = sealed_key(vault)
    keychains.unlock(7, (key,))
    moved = msgspec.structs.replace(key, master_id="k2", nonce=bytes(12), sealed=bytes(30))

    (after,) = keychains.unlock(7, (moved,)).keys

    assert after.provider is not None


def test_what_can_not_be_opened_is_told_once_and_without_a_word_of_it(keychains, vault, caplog):
    other = sealed_key(vault, account_id=8)

    for _ in range(3):
        keychains.unlock(7, (other,))
        keychains.unlock(7, ())

    assert caplog.text.count("can't be decrypted") == 1
    assert other.id in caplog.text
    assert "sk-own" not in caplog.text
    assert keychains.unlock(7, (other,)).keys[0].provider is None


@pytest.mark.parametrize("provider", ["echo", "gone"])
def test_a_provider_that_takes_no_such_keys_has_none(keychains, vault, provider):
    (key,) = keychains.unlock(7, (sealed_key(vault, provider=provider),)).keys

    assert key.provider is None


def test_nothing_shows_the_key(keychains, vault):
    keychain = keychains.unlock(7, (sealed_key(vault, "sk-shown-nowhere"),))

    assert "sk-shown-nowhere" not in repr([keychains, keychain, keychain.keys, vault, keychain.sealed])


def test_it_is_the_operators_provider_with_another_key_and_fingerprint(keychains, vault):
    (key,) = keychains.unlock(7, (sealed_key(vault),)).keys
    operators = Registry.load(SETTINGS).providers["local"]

    assert key.provider.timeouts == operators.timeouts
    assert key.provider.fingerprints == (key.fingerprint,)
    assert key.fingerprint not in operators.fingerprints
    assert keychains.providers() == ["local"]

"""Keys at rest: what is sealed opens for its owner alone, and not at all once a bit of it is another one."""

import secrets

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.kernel.vault import Owner, Sealed, Unreadable, Vault
from gateway.secret import Secret, decode_key
from gateway.settings import OwnKeys

ROW = "0193ab3c-0000-7000-8000-000000000001"
OWNER = Owner(account_id=7, id=ROW, provider="openai")
vault = Vault({"k1": b"\1" * 32, "k2": b"\2" * 32}, active="k1")

owners = st.builds(
    Owner,
    account_id=st.integers(1, 2**63 - 1),
    id=st.uuids().map(str),
    provider=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()),
)


@given(text=st.text(min_size=1).filter(lambda text: text.isprintable()), owner=owners)
def test_what_is_sealed_opens_for_its_owner(text, owner):
    sealed = vault.seal(text, owner)

    assert vault.open(sealed, owner).reveal() == text


@given(text=st.text("abcdef-0123", min_size=1, max_size=60), flips=st.integers(1, 255), data=st.data())
def test_any_changed_byte_is_noticed(text, flips, data):
    sealed = vault.seal(text, OWNER)
    whole = sealed.nonce + sealed.sealed
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ flips]) + whole[at + 1 :]

    with pytest.raises(Unreadable):
        vault.open(Sealed(master_id="k1", nonce=changed[:12], sealed=changed[12:]), OWNER)


@given(cut=st.integers(0, 20))
def test_nothing_opens_that_was_cut_short(cut):
    sealed = vault.seal("sk-12345", OWNER)
    if cut >= len(sealed.sealed):
        return

    with pytest.raises(Unreadable):
        vault.open(msgspec.structs.replace(sealed, sealed=sealed.sealed[:cut]), OWNER)


@given(owner=owners, other=owners)
def test_a_row_that_was_copied_to_another_owner_does_not_open(owner, other):
    if owner == other:
        return
    sealed = vault.seal("sk-12345", owner)

    with pytest.raises(Unreadable):
        vault.open(sealed, other)


@given(owner=owners, other=owners)
def test_no_two_owners_are_authenticated_alike(owner, other):
    assert (owner.bind() == other.bind()) == (owner == other)


@pytest.mark.parametrize("field", ["account_id", "id", "provider"])
def test_each_part_of_the_owner_counts(field):
    other = {"account_id": 8, "id": ROW[:-1] + "2", "provider": "openai2"}[field]
    sealed = vault.seal("sk-12345", OWNER)

    with pytest.raises(Unreadable):
        vault.open(sealed, msgspec.structs.replace(OWNER, **{field: other}))


def test_the_same_text_is_never_sealed_alike():
    sealed = [vault.seal("sk-12345", OWNER) for _ in range(100)]

    assert len({each.nonce for each in sealed}) == len({each.sealed for each in sealed}) == 100


def test_another_master_key_of_the_same_id_opens_nothing():
    sealed = vault.seal("sk-12345", OWNER)

    with pytest.raises(Unreadable) as raised:
        Vault({"k1": b"\3" * 32}, active="k1").open(sealed, OWNER)

    assert "sk-12345" not in f"{raised.value} {raised.value.detail}"


def test_a_master_key_that_is_not_there_is_named():
    sealed = vault.seal("sk-12345", OWNER)

    with pytest.raises(Unreadable) as raised:
        Vault({"k2": b"\2" * 32}, active="k2").open(sealed, OWNER)

    assert "'k1' is not configured" in raised.value.detail


def test_all_master_keys_open_and_the_active_one_seals():
    later = Vault({"k1": b"\1" * 32, "k2": b"\2" * 32}, active="k2")

    assert later.open(vault.seal("sk-12345", OWNER), OWNER).reveal() == "sk-12345"
    assert later.seal("sk-12345", OWNER).master_id == "k2"


def test_without_a_master_key_it_is_closed():
    assert not Vault.of(OwnKeys()).is_open
    assert Vault.of(OwnKeys(masters={"k1": Secret("ab" * 32)})).is_open


@pytest.mark.parametrize("size", [16, 31, 33])
def test_a_master_key_of_another_length_is_refused(size):
    with pytest.raises(ConfigError):
        Vault.of(OwnKeys(masters={"k1": Secret(secrets.token_hex(size))}))


def test_master_keys_are_written_in_hexadecimal_digits_or_base64():
    key = bytes(range(224, 256))

    for text in (
        key.hex(),
        "4OHi4+Tl5ufo6err7O3u7/Dx8vP09fb3+Pn6+/z9/v8=",
        "4OHi4-Tl5ufo6err7O3u7_Dx8vP09fb3-Pn6-_z9_v8=",
    ):
        assert decode_key(Secret(f" {text}\n"), size_bytes=32) == key

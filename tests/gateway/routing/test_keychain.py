"""Where an account's own keys stand on a menu, by their mode, and what they leave of it."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import OwnKeyUnusable
from gateway.kernel.own_keys import SealedKey
from gateway.routing.keychain import Keychain, OwnKey, own_menu, pin_own
from gateway.routing.menu import Menu, lowest, narrow
from gateway.routing.preferences import Preferences
from gateway.settings import Model
from tests.gateway.routing.offers import CHAT, group, health_of, menus, offer

NEEDS: frozenset[str] = frozenset()


def own_key(provider: str, mode: Any, *, name: str = "", usable: bool = True) -> OwnKey:
    sealed = SealedKey(
        id=name or f"{provider}-{mode}",
        provider=provider,
        mode=mode,
        fingerprint=f"own:{name or provider}",
        master_id="k1",
        nonce=b"",
        sealed=b"",
    )
    made: Any = SimpleNamespace(name=provider) if usable else None
    return OwnKey(sealed, made, health=health_of(provider).make_own(provider), fee_permille=50, renewal=None)


def keychain(*keys: OwnKey) -> Keychain:
    return Keychain(keys, ())


def shown(several) -> list[str]:
    """The candidates of a group, best first; `+` is an own key's."""
    left, order = list(several.candidates), []
    while left:
        best = list(lowest(left))
        order += [each.offer.provider + ("+" if each.offer.own else "") for each in best]
        left = [each for each in left if each not in best]
    return order


@pytest.mark.parametrize(
    ("keys", "order"),
    [
        ([("a", "first")], ["a+", "a", "b"]),
        ([("a", "fallback")], ["a", "b", "a+"]),
        ([("a", "only")], ["a+"]),
        ([("b", "first"), ("a", "fallback")], ["b+", "a", "b", "a+"]),
        ([("b", "only"), ("a", "fallback")], ["b+", "a+"]),
        ([("c", "only")], ["a", "b"]),
        ([], ["a", "b"]),
    ],
)
def test_a_mode_says_where_a_key_stands(keys, order):
    menu = Menu(group(offer("a"), offer("b", priority=1)))

    extended = keychain(*(own_key(*each) for each in keys)).extend(menu, keep=True)

    assert shown(extended.own) == order


def test_a_menu_that_no_key_is_for_stays_what_it_is():
    menu = Menu(group(offer("a")))

    assert keychain(own_key("z", "only")).extend(menu, keep=True) is menu


def test_a_menu_is_made_once():
    keys, menu = keychain(own_key("a", "first")), Menu(group(offer("a")))

    assert keys.extend(menu, keep=True) is keys.extend(menu, keep=True)
    assert keys.extend(menu, keep=False) is not keys.extend(menu, keep=False)


def test_what_allows_no_other_leaves_no_fallback_model_that_it_does_not_serve():
    found = menus(
        {"m": (offer("a"),), "x": (offer("b", "x"),), "y": (offer("a", "y"), offer("b", "y"))},
        {"m": Model(fallbacks=("x", "y"), context_fallbacks=("x",))},
    ).find("m", CHAT)

    only = keychain(own_key("a", "only")).extend(found, keep=True)
    first = keychain(own_key("a", "first")).extend(found, keep=True)

    assert [shown(each) for each in only.groups] == [["a+"], ["a+"]]
    assert only.context == ()
    assert [shown(each) for each in first.groups] == [["a+", "a"], ["b"], ["a+", "a", "b"]]


def test_a_key_that_can_not_be_used_is_passed_over_unless_it_allows_no_other():
    menu = Menu(group(offer("a")))

    assert keychain(own_key("a", "first", usable=False)).extend(menu, keep=True) is menu
    with pytest.raises(OwnKeyUnusable):
        keychain(own_key("a", "only", usable=False)).extend(menu, keep=True)
    both = keychain(own_key("a", "only", usable=False), own_key("a", "fallback", name="2")).extend(menu, keep=True)
    assert shown(both.own) == ["a+"]


def test_nobody_is_asked_as_well_with_what_an_own_key_serves():
    found = menus({"m": (offer("a"),), "s": (offer("b", "s"),)}, {"m": Model(shadow="s")}).find("m", CHAT)
    assert found.shadow is not None

    assert keychain(own_key("a", "first")).extend(found, keep=True).shadow is None


@pytest.mark.parametrize(
    ("wishes", "order"),
    [
        (Preferences(order=("b", "a")), ["b", "a+", "a"]),
        (Preferences(order=("a",)), ["a+", "a", "b"]),
        (Preferences(only=("b",)), ["b"]),
        (Preferences(ignore=("b",)), ["a+", "a"]),
    ],
)
def test_a_callers_order_is_kept_and_the_key_stands_beside_its_provider(wishes, order):
    menu = keychain(own_key("a", "first")).extend(Menu(group(offer("a"), offer("b"))), keep=True)

    assert shown(narrow(menu, wishes, needs=NEEDS, tokens=0).own) == order


def test_what_is_remembered_of_an_own_key_is_nothing_of_the_operators():
    menu = keychain(own_key("a", "first")).extend(Menu(group(offer("a"))), keep=True)
    own, operators = menu.own.candidates

    assert own.health is not operators.health
    assert own.health.provider is not operators.health.provider
    assert own.health.provider.keys[0] is not operators.health.provider.keys[0]


def test_objects_of_an_own_key_are_asked_for_with_it_alone_and_cost_nothing():
    key, other = own_key("a", "first"), own_key("a", "first", name="2")
    menu = keychain(key, other).extend(Menu(group(offer("a"), offer("b"))), keep=True)

    pinned, free = pin_own(menu, other), own_menu(key)

    assert pinned is not None
    assert [each.own for each in pinned.offers] == [other]
    assert [(each.own, each.free, each.provider) for each in free.offers] == [(key, True, "a")]
    assert pin_own(Menu(group(offer("a"))), key) is None


def test_what_is_nobodys_yet_is_made_with_a_key_that_comes_first():
    first, fallback = own_key("a", "first"), own_key("a", "fallback", name="2")

    assert keychain(fallback, first).maker("a") is first
    assert keychain(fallback).maker("a") is None
    assert keychain(first).maker("b") is None
    assert keychain(first).find("a", first.fingerprint) is first
    assert keychain(first).find("b", first.fingerprint) is None
    with pytest.raises(OwnKeyUnusable):
        keychain(own_key("a", "only", usable=False)).maker("a")

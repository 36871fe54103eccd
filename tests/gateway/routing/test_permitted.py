"""What is left of a menu for a key that may not use everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Forbidden, UnknownModel
from gateway.kernel.constraints import Constraints, Names
from gateway.routing.permitted import may_use, permit, permit_instead, permit_names, permit_operation
from gateway.settings import Model
from gateway.wire.objects import Operation
from tests.gateway.routing.offers import CHAT, menus, offer, providers_of

A, B = offer("a"), offer("b")


def constraints(*models: str, providers: tuple[str, ...] = ()) -> Constraints:
    exact = frozenset(name for name in models if not name.endswith("*"))
    prefixes = tuple(name[:-1] for name in models if name.endswith("*"))
    return Constraints(
        models=Names(exact, prefixes) if models else None, providers=frozenset(providers) if providers else None
    )


def test_a_menu_that_may_be_used_as_it_is_stays_the_same_object():
    menu = menus({"m": (A, B)}).find("m", CHAT)

    assert permit(menu, constraints("m"), "m") is menu
    assert permit(menu, constraints("*", providers=("a", "b")), "m") is menu


def test_a_provider_that_is_not_allowed_is_nowhere_on_it():
    rows = {"m": Model(fallbacks=("n",), context_fallbacks=("p",), policy_fallbacks=("q",), hedge=True)}
    all_offers = {name: (offer("a", name), offer("b", name)) for name in "mnpq"}
    menu = menus(all_offers, rows).find("m", CHAT)

    left = permit(menu, constraints(providers=("b",)), "m")

    assert {each.provider for each in left.offers} == {"b"}
    assert [each.model for each in left.offers] == ["m", "n", "p", "q"]
    assert left.hedge


def test_fallbacks_are_models_like_others():
    rows = {"m": Model(fallbacks=("n", "p"))}
    menu = menus({name: (offer("a", name),) for name in "mnp"}, rows).find("m", CHAT)

    left = permit(menu, constraints("m", "p"), "m")

    assert [each.model for each in left.offers] == ["m", "p"]


def test_an_alias_is_enough_and_so_is_what_it_stands_for():
    menu = menus({"m": (A,)}).find("m", CHAT)

    assert providers_of(permit(menu, constraints("fast"), "fast")) == ["a"]
    assert providers_of(permit(menu, constraints("m"), "fast")) == ["a"]
    with pytest.raises(UnknownModel):
        permit(menu, constraints("fast"), "m")


@pytest.mark.parametrize(
    "allowed", [constraints("n"), constraints(providers=("c",)), constraints("m", providers=("c",))]
)
def test_what_may_not_be_used_is_not_there(allowed):
    with pytest.raises(UnknownModel):
        permit(menus({"m": (A, B)}).find("m", CHAT), allowed, "m")


def test_who_names_no_model_may_use_none_that_could_be_another():
    menu = menus({"": (offer("a", ""),)}).find("", CHAT)

    with pytest.raises(Forbidden):
        permit(menu, constraints("m"), "")
    assert permit(menu, constraints(providers=("a",)), "") is menu


def test_of_several_names_those_are_left_that_may_be_used():
    table = {"m": (A,), "n": (offer("b", "n"),), "p": (offer("a", "p"), offer("b", "p"))}

    def find(name):
        return table.get(name, ())

    assert permit_names(("m", "n", "p", "gone"), constraints("*", providers=("b",)), find) == ("n", "p")
    assert permit_names(("m", "n", "p"), constraints("p", "m"), find) == ("m", "p")
    with pytest.raises(UnknownModel, match="`m`"):
        permit_names(("m", "n"), constraints("p"), find)


@pytest.mark.parametrize(
    ("operation", "allowed", "code"),
    [
        (Operation("file", "create"), constraints("m"), None),
        (Operation("file", "create"), constraints(providers=("b",)), "provider_not_allowed"),
        (Operation("batch", "create"), constraints(providers=("a",)), None),
        (Operation("batch", "create"), constraints("m"), "model_not_checked"),
        (Operation("batch", "read"), constraints("m"), None),
        (Operation("other", "relay"), constraints("m"), "model_not_checked"),
        (Operation("response", "delete"), constraints("m"), None),
    ],
)
def test_operations_on_objects(operation, allowed, code):
    if code is None:
        permit_operation(operation, "a", allowed)
        return
    with pytest.raises(Forbidden) as refused:
        permit_operation(operation, "a", allowed)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("allowed", "asked_unheard"),
    [
        (constraints("m", "n"), True),
        (constraints("m"), False),
        (constraints(providers=("a",)), False),
        (constraints(providers=("a", "b")), True),
    ],
)
def test_who_is_asked_unheard_is_asked_all_the_same(allowed, asked_unheard):
    table = {"m": (A,), "n": (offer("b", "n"),)}
    menu = menus(table, {"m": Model(shadow="n", shadow_percent=50.0)}).find("m", CHAT)
    assert menu.shadow is not None

    left = permit(menu, allowed, "m")

    assert (left.shadow is not None) == asked_unheard
    assert (left is menu) == asked_unheard


def test_what_stands_in_for_a_model_has_to_be_allowed_as_well():
    made = menus({"m": (A,), "n": (offer("b", "n"),)})
    menu, instead = made.find("m", CHAT), made.find("n", CHAT)

    permit_instead(menu, instead, constraints("m", "n"), "m")
    permit_instead(menu, menu, constraints("fast"), "fast")
    with pytest.raises(UnknownModel, match="`m`"):
        permit_instead(menu, instead, constraints("m"), "m")


names = st.sampled_from("mnpq")


@given(
    served=st.dictionaries(names, st.sets(st.sampled_from("abc"), min_size=1), min_size=1),
    models=st.none() | st.sets(names, min_size=1),
    providers=st.none() | st.sets(st.sampled_from("abc"), min_size=1),
    fallbacks=st.lists(names, max_size=3),
)
def test_nothing_else_is_ever_on_a_menu(served, models, providers, fallbacks):
    table = {name: tuple(offer(each, name) for each in sorted(by)) for name, by in served.items()}
    allowed = Constraints(
        models=None if models is None else Names(frozenset(models)),
        providers=None if providers is None else frozenset(providers),
    )
    asked = min(served)
    menu = menus(table, {asked: Model(fallbacks=tuple(fallbacks))}).find(asked, CHAT)

    try:
        left = permit(menu, allowed, asked)
    except UnknownModel:
        assert not may_use(allowed, asked, table[asked])
        return

    assert may_use(allowed, asked, table[asked])
    assert all(allowed.allows_model(each.model) and allowed.allows_provider(each.provider) for each in left.offers)

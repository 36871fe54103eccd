"""Which requests meet a condition."""

import msgspec
import pytest

from gateway.errors import NoOffer
from gateway.routing.conditions import holds, read_members
from gateway.settings import Condition, Model
from tests.gateway.routing.offers import CHAT, menus, offer, providers_of

BODY = b'{"model":"m","max_tokens":2000,"temperature":0,"stream":true,"tools":[],"user":null,"metadata":{"team":"legal"}}'


def meets(body: bytes = BODY, **when) -> bool:
    condition = msgspec.convert({"when": {name.replace("__", "."): value for name, value in when.items()}}, Condition)
    return holds(condition, read_members(body))


@pytest.mark.parametrize(
    ("when", "met"),
    [
        ({"metadata__team": "legal"}, True),
        ({"metadata__team": "sales"}, False),
        ({"metadata__team": ["sales", "legal"]}, True),
        ({"metadata__team__name": "legal"}, False),
        ({"metadata": True}, True),
        ({"tools": True}, True),
        ({"functions": False}, True),
        ({"user": True}, False),
        ({"stream": True}, True),
        ({"stream": False}, False),
        ({"temperature": 0}, True),
        ({"temperature": 1}, False),
        ({"max_tokens": {"above": 1000}}, True),
        ({"max_tokens": {"above": 2000}}, False),
        ({"max_tokens": {"above": 1000, "below": 1500}}, False),
        ({"metadata__team": {"above": 1}}, False),
        ({"temperature": 0, "metadata__team": "sales"}, False),
        ({}, True),
    ],
)
def test_all_of_it_must_hold(when, met):
    assert meets(**when) is met


def test_true_is_not_one():
    assert not meets(b'{"n":true}', n=1)
    assert not meets(b'{"n":true}', n={"above": 0})


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"text"', b"\xff", b"[" * 100_000])
def test_what_can_not_be_read_meets_none(body):
    assert not meets(body, temperature=0)


def test_a_condition_leaves_what_it_names():
    offers = {
        "m": (offer("near", tags=("eu",)), offer("far"), offer("last", tags=("eu",))),
        "other": (offer("far", "other"), offer("near", "other", tags=("eu",))),
    }
    conditions = (
        Condition(when={"temperature": 0.0}, require=("eu",), providers=("last", "far")),
        Condition(when={"stream": True}, model="other", routing="cost"),
        Condition(when={"tools": True}, require=("moon",)),
    )
    menu = menus(offers, {"m": Model(conditions=conditions)}).find("m", CHAT)
    found = [instead for _, instead in menu.conditions]
    assert providers_of(menu) == ["near", "far", "last"]
    assert providers_of(found[0]) == ["last"]
    assert [each.offer.model for each in found[1].own.candidates] == ["other", "other"]
    assert found[1].own.strategy == "cost"
    assert isinstance(found[2], NoOffer)

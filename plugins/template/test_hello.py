"""No gateway runs: requests and records are made by hand."""

import asyncio

import pytest
from gateway_plugin_hello import Hello

from gateway.api import ConfigError, Offer, Origin, Rejected, UpstreamRequest
from gateway.testing import make_request, make_settled

BODY = b'{"model":"small","messages":[]}'
OFFER = Offer(model="small", provider="p", upstream_model="small")
SENT = UpstreamRequest(method=b"POST", origin=Origin("https", "h", 443), target=b"/", headers=[], body=b"")


def hello() -> Hello:
    plugin = Hello()
    plugin.configure({"teams": ["blue", "green"]})
    return plugin


def test_a_request_with_a_team_passes_and_carries_its_name() -> None:
    plugin, x = hello(), make_request(BODY, headers=[(b"x-hello-team", b"blue")])

    assert asyncio.run(plugin.on_request(x)) is None

    assert x.tags == {"team": "blue"}
    assert plugin.on_attempt(x, OFFER, SENT) == [(b"x-hello-team", b"blue")]
    assert plugin.on_head(x, 200, []) == [(b"x-hello-team", b"blue")]


@pytest.mark.parametrize("headers", [[], [(b"x-hello-team", b"red")]])
def test_a_request_without_one_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Rejected):
        asyncio.run(hello().on_request(make_request(BODY, headers=headers)))


def test_what_a_team_spends_is_summed_up() -> None:
    plugin = hello()

    for cost in (5, 7):
        asyncio.run(plugin.on_settled(make_settled(cost_nanos=cost, tags={"team": "blue"})))

    assert plugin.spent_nanos == {"blue": 12}


@pytest.mark.parametrize("table", [{}, {"teams": []}, {"teams": "blue"}, {"teams": ["blue"], "colour": 1}])
def test_a_wrong_table_stops_the_start(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Hello().configure(table)

"""One image, two planes: together, and each alone."""

import msgspec
import pytest

from gateway.settings import Control, Server, Settings
from tests.acceptance.answers import ASK, CHAT
from tests.upstreams import RECEIVE, REPEAT, answer, play

SERVED = play(RECEIVE, answer(CHAT), REPEAT)


@pytest.mark.parametrize(
    ("plane", "inference", "about", "balance"),
    [("all", 200, 200, 200), ("data", 200, 200, 404), ("control", 404, 200, 200)],
)
async def test_each_plane_serves_its_own_and_nothing_else(stage, plane, inference, about, balance):
    gateway, upstream = await stage.gateway(SERVED, settings=Settings(server=Server(plane=plane)))

    asked = await gateway.ask(ASK)
    described = await gateway.ask(method=b"GET", path=b"/")
    owned = await gateway.ask(method=b"GET", path=b"/user/balance")
    alive = await gateway.ask(method=b"GET", path=b"/health", key="")

    assert (asked.status, described.status, owned.status, alive.status) == (inference, about, balance, 200)
    assert upstream.connections == (1 if inference == 200 else 0)


async def test_inference_goes_on_while_the_control_plane_has_no_room(stage):
    """Nothing at the control plane is more than a count away from being refused; nothing of it is asked for /v1."""
    gateway, _ = await stage.gateway(SERVED, settings=Settings(control=Control(requests_max=1)))
    slow = await gateway.connect()
    await slow.send(gateway.request(b"", method=b"POST", path=b"/auth", headers=[(b"content-length", b"10")]))

    crowded = await gateway.ask(method=b"GET", path=b"/user/balance")
    served = await gateway.ask(ASK)

    assert crowded.status == 503
    assert crowded.header(b"retry-after") == b"1"
    assert served.status == 200


async def test_a_request_that_takes_too_long_is_ended(stage):
    gateway, _ = await stage.gateway(SERVED, settings=Settings(control=Control(timeout_s=0.2)))
    slow = await gateway.connect()
    await slow.send(gateway.request(b"", method=b"POST", path=b"/auth", headers=[(b"content-length", b"10")]))

    ended = await slow.receive()

    assert ended.status == 503
    assert msgspec.json.decode(ended.body)["detail"] == "This took longer than it may."


async def test_a_body_that_is_too_large_is_refused_unread(stage):
    gateway, _ = await stage.gateway(SERVED, settings=Settings(control=Control(body_bytes_max=100)))

    announced = await gateway.ask(b"x" * 101, path=b"/auth")
    chunked = await gateway.connect()
    head = gateway.request(method=b"POST", path=b"/auth", headers=[(b"transfer-encoding", b"chunked")])
    await chunked.send(head + b"3c\r\n" + b" " * 60 + b"\r\n3c\r\n" + b" " * 60 + b"\r\n")
    sent = await chunked.receive()

    assert (announced.status, sent.status) == (413, 413)

"""What is answered beside the pipeline: health and metrics."""

import pytest

from gateway.dataplane import Health, Metrics
from gateway.errors import Overloaded


async def ask(endpoint, method: str = "GET", headers: list[tuple[bytes, bytes]] | None = None) -> tuple[int, bytes]:
    sent = []

    async def receive():
        raise AssertionError("nobody reads the body of a GET")

    async def send(message) -> None:
        sent.append(message)

    await endpoint({"type": "http", "method": method, "headers": headers or []}, receive, send)

    start, body = sent
    length = int(dict(start["headers"])[b"content-length"])
    assert method == "HEAD" or length == len(body["body"])
    return start["status"], body["body"]


async def render() -> bytes:
    return b"gateway_up 1\n"


async def turned_away() -> bytes:
    raise Overloaded


@pytest.mark.parametrize(("method", "body"), [("GET", b'{"status":"ok"}'), ("HEAD", b"")])
async def test_health_costs_nothing(method, body):
    assert await ask(Health(), method) == (200, body)


async def test_metrics_without_a_token_are_for_whoever_reaches_the_port():
    assert await ask(Metrics(render, token=None)) == (200, b"gateway_up 1\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"Bearer other")], 401),
        ([(b"authorization", b"secret")], 401),
        ([(b"x-api-key", b"secret")], 401),
        ([(b"authorization", b"Bearer secret")], 200),
    ],
)
async def test_metrics_with_a_token_are_for_those_who_have_it(headers, status):
    answered, body = await ask(Metrics(render, token=b"secret"), headers=headers)

    assert answered == status
    assert (b"gateway_up" in body) is (status == 200)


async def test_metrics_that_cannot_be_had_are_not_an_empty_page():
    status, body = await ask(Metrics(turned_away, token=None))

    assert status == 503
    assert b"gateway_up" not in body

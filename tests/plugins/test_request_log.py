"""Where lines go: files that are moved away, receivers that fail, and addresses that lead inside."""

import asyncio
import base64
import hmac
from pathlib import Path

import msgspec
import pytest

from gateway.api import ConfigError, Settled, Usage
from gateway.testing import make_request
from gateway_plugins.request_log import RequestLog
from gateway_plugins.sinks import TRIES_MAX, FileSink, SinkFailed, WebhookSink, is_public
from tests.upstreams import CLOSE, RECEIVE, REPEAT, ScriptedUpstream, answer, play

SECRET = b"whsec-0123456789abcdef0123"
OK = answer(b"", status=204)


def settled(number: int = 1, **facts) -> Settled:
    plain = {
        "id": f"r-{number}",
        "method": "POST",
        "route": "/v1/chat/completions",
        "dialect": "openai.chat",
        "operation": "chat",
        "status": 200,
        "error_type": "",
        "aborted_by": "",
        "account_id": 7,
        "key_id": "k1",
        "model": "m",
        "upstream_model": "m-1",
        "provider": "p",
        "attempts": (("p", "ok"),),
        "stream": False,
        "started_at": 1790000000.5,
        "duration_s": 0.25,
        "first_byte_s": None,
        "upstream_s": 0.2,
        "bytes_in": 10,
        "bytes_out": 20,
        "usage": Usage(input_tokens=3, output_tokens=2),
        "cost_nanos": 5,
        "client": "10.0.0.1",
        "tags": {},
        "notes": {},
    }
    return Settled(**(plain | facts))


def lines(path: Path) -> list[dict]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def webhook(url: str, **options) -> WebhookSink:
    return WebhookSink(url, secret=SECRET, backoff_s=0.001, **({"allow_private": True} | options))


async def test_a_line_for_each_request_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    plugin = RequestLog()
    plugin.configure({"file": str(file), "flush_s": 60})
    await plugin.start()

    await plugin.on_settled(settled(1))
    await plugin.on_settled(settled(2, error_type="caller_bad_request", usage=None, tags={"team": "blue"}))
    await plugin.stop()

    first, second = lines(file)
    assert first["id"] == "r-1"
    assert first["time"] == 1790000000.5
    assert first["usage"] == {"input_tokens": 3, "output_tokens": 2, "source": "reported"}
    assert "error_type" not in first
    assert "body" not in first
    assert (second["error_type"], second["tags"]) == ("caller_bad_request", {"team": "blue"})


async def test_a_full_batch_does_not_wait(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    plugin = RequestLog()
    plugin.configure({"file": str(file), "flush_s": 600, "batch": 2})
    await plugin.start()

    for number in range(2):
        await plugin.on_settled(settled(number))
    async with asyncio.timeout(20):
        while not file.exists() or len(lines(file)) < 2:  # noqa: ASYNC110  a thread writes it
            await asyncio.sleep(0.01)
    await plugin.stop()


async def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file, old = tmp_path / "log.jsonl", tmp_path / "log.jsonl.1"
    sink = FileSink(file)

    await sink.write(b"1\n")
    await sink.write(b"2\n")
    file.rename(old)
    await sink.write(b"3\n")
    file.unlink()
    await sink.write(b"4\n")
    await sink.close()

    assert (old.read_bytes(), file.read_bytes()) == (b"1\n2\n", b"4\n")


async def test_what_is_there_is_appended_to_by_all(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    sinks = [FileSink(file) for _ in range(4)]

    await asyncio.gather(*(sink.write(b"%d" % number * 1000 + b"\n") for number, sink in enumerate(sinks * 20)))

    assert {len(line) for line in file.read_bytes().splitlines()} <= {1000, 2000}
    assert len(file.read_bytes().splitlines()) == 80
    for sink in sinks:
        await sink.close()


async def test_a_folder_that_is_not_there_is_a_loss_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(SinkFailed, match="No such file"):
        await FileSink(tmp_path / "no" / "log").write(b"1\n")


async def test_bodies_are_logged_if_asked_and_bounded() -> None:
    plugin = RequestLog()
    plugin.configure({"file": "x", "bodies": True, "body_bytes_max": 4})

    x = make_request(b'{"model":"m","messages":[]}', reads_body=True)

    assert await plugin.on_request(x) is None
    await plugin.on_settled(settled(notes=x.notes))

    (line,) = (msgspec.json.decode(line) for line in plugin._lines)
    assert (line["body"], line["body_cut"]) == ('{"mo', True)
    assert x.notes == {"request_log.body": (b'{"mo', True)}
    assert plugin.reads_body


async def test_lines_beyond_the_queue_are_dropped_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    plugin = RequestLog()
    plugin.configure({"file": "x", "queue_max": 2})

    for number in range(4):
        await plugin.on_settled(settled(number))

    assert (len(plugin._lines), plugin.dropped) == (2, 2)
    assert "1 lines were dropped" in caplog.text


# -- webhooks --------------------------------------------------------------------------------------------------


async def test_what_is_posted_is_signed() -> None:
    async with ScriptedUpstream(play(RECEIVE, OK, REPEAT)) as receiver:
        host = receiver.url.removeprefix("http://").encode()
        sink = webhook(f"{receiver.url}/hook?a=b")
        await sink.write(b'{"id":"r-1"}\n')
        await sink.close()

    (got,) = receiver.requests
    assert (got.method, got.target, got.body) == (b"POST", b"/hook?a=b", b'{"id":"r-1"}\n')
    assert got.header(b"content-type") == b"application/x-ndjson"
    assert got.header(b"host") == host
    told = b".".join([got.header(b"webhook-id") or b"", got.header(b"webhook-timestamp") or b"", got.body])
    signature = base64.b64encode(hmac.digest(SECRET, told, "sha256"))
    assert got.header(b"webhook-signature") == b"v1," + signature


async def test_a_receiver_that_fails_is_asked_again_with_the_same_id() -> None:
    script = play(RECEIVE, answer(b"", status=503), RECEIVE, answer(b"", status=429), RECEIVE, CLOSE)
    async with ScriptedUpstream(script, play(RECEIVE, OK, REPEAT)) as receiver:
        sink = webhook(receiver.url)
        await sink.write(b"1\n")
        await sink.close()

    assert len(receiver.requests) == 4
    assert len({request.header(b"webhook-id") for request in receiver.requests}) == 1


async def test_tries_are_bounded_and_a_refusal_is_not_repeated() -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(b"", status=500), REPEAT)) as receiver:
        sink = webhook(receiver.url)
        with pytest.raises(SinkFailed, match="status 500"):
            await sink.write(b"1\n")
        await sink.close()
    assert len(receiver.requests) == TRIES_MAX

    for status in (400, 302):
        async with ScriptedUpstream(play(RECEIVE, answer(b"", status=status), REPEAT)) as receiver:
            sink = webhook(receiver.url)
            with pytest.raises(SinkFailed, match=f"status {status}"):
                await sink.write(b"1\n")
            await sink.close()
        assert len(receiver.requests) == 1


async def test_a_name_that_leads_inside_is_not_followed() -> None:
    async with ScriptedUpstream(play(RECEIVE, OK, REPEAT)) as receiver:
        port = int(receiver.url.rpartition(":")[2])

        async def inside(host: str, _: int) -> list[str]:
            return ["93.184.216.34", "127.0.0.1"]

        sink = webhook(f"http://logs.example:{port}", allow_private=False, resolve=inside)
        with pytest.raises(SinkFailed, match="leads inside"):
            await sink.write(b"1\n")
        await sink.close()

    assert receiver.requests == []


async def test_the_connection_goes_to_the_address_that_was_looked_at() -> None:
    asked = []
    async with ScriptedUpstream(play(RECEIVE, OK, REPEAT)) as receiver:
        port = int(receiver.url.rpartition(":")[2])

        async def resolve(host: str, _: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"]

        sink = webhook(f"http://logs.example:{port}/x", resolve=resolve)
        await sink.write(b"1\n")
        await sink.close()

    assert asked == ["logs.example"]
    assert receiver.requests[0].header(b"host") == b"logs.example:%d" % port


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("no address", False),
    ],
)
def test_which_addresses_lead_inside(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "needs either"),
        ({"file": "a", "url": "https://a.example"}, "needs either"),
        ({"file": "a", "colour": 1}, "is not a key of request_log"),
        ({"file": "a", "batch": 0}, "must be more than 0"),
        ({"url": "ftp://a.example", "secret": "s" * 24}, "must begin with https://"),
        ({"url": "http://a.example", "secret": "s" * 24}, "must begin with https://, but"),
        ({"url": "https://10.0.0.1", "secret": "s" * 24}, "leads inside"),
        ({"url": "https://[::1]/", "secret": "s" * 24}, "leads inside"),
        ({"url": "https://u:p@a.example", "secret": "s" * 24}, "no credentials"),
        ({"url": "https://a.example", "secret": "short"}, "needs at least 24 bytes"),
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RequestLog().configure(table)

    assert message in caught.value.message

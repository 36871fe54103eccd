"""Pictures, speech, recordings, moderations and ranked documents: as their callers meet them, and what they cost."""

import asyncio
import io
import struct
from decimal import Decimal

import msgspec
import openai
import pytest

from gateway.infra.postgres import Database
from gateway.kernel.journal import credit
from gateway.kernel.key_store import create_key
from gateway.settings import Model, Server, Settings
from tests.gateways import PATIENCE_S, PEPPER, ServedGateway, connect
from tests.upstreams import HANG, RECEIVE, REPEAT, Peer, Until, answer, chunk, chunked, play


class Shop:
    """A stage whose callers have credit."""

    def __init__(self, stage):
        self._stage = stage
        self.upstream = stage.upstream
        self.provider = stage.provider

    async def gateway(self, *scripts, **options):
        gateway, upstream = await self._stage.gateway(*scripts, **options)
        async with Database(self._stage.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
            account = await database.fetch_value("insert into accounts (name) values ('media') returning id")
            amount = 100 * 10**9
            await credit(database, account, type="bonus", amount_nanos=amount, idempotency_key=f"media {account}")
            key = await create_key(database, name=f"media {account}", pepper=PEPPER.encode(), account_id=account)
        gateway.key, gateway.key_id = key.text, key.id
        return gateway, upstream


@pytest.fixture
def shop(stage):
    return Shop(stage)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
WAV_RATE = 16_000


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


def wav(seconds: float) -> bytes:
    """Silence, 16 bits at 16 kHz."""
    size = int(seconds * WAV_RATE) * 2
    head = (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, WAV_RATE, 32_000, 2, 16)
    )
    return head + b"data" + struct.pack("<I", size) + bytes(size)


def usd(text: str) -> int:
    return int(Decimal(text) * 10**9)


async def test_pictures_are_relayed_and_paid_for_by_their_tokens(shop):
    """Case 12."""
    body = (
        b'{"created":1,"data":[{"b64_json":"iVBORw0K"}],"quality":"high","usage":{"input_tokens":50,'
        b'"input_tokens_details":{"text_tokens":10,"image_tokens":40},"output_tokens":4160,"total_tokens":4210}}'
    )
    price = Model(input_usd_per_mtok=5.0, output_usd_per_mtok=40.0)
    gateway, upstream = await shop.gateway(same(answer(body)), models={"gpt-image-1": price})

    raw = await gateway.openai().images.with_raw_response.generate(model="gpt-image-1", prompt="A cat")

    assert raw.content == body
    assert upstream.requests[0].target == b"/v1/images/generations"
    assert upstream.requests[0].body == raw.http_request.content
    [record] = await gateway.records(1)
    assert (record.route, record.usage_source) == ("/v1/images/generations", "reported")
    assert (record.input_tokens, record.output_tokens) == (50, 4160)
    assert record.cost_nanos == 50 * 5_000 + 4160 * 40_000


@pytest.mark.parametrize(
    ("asked", "each"),
    [
        ({}, "0.04"),
        ({"size": "1024x1024"}, "0.04"),
        ({"quality": "hd"}, "0.08"),
        ({"size": "1024x1792"}, "0.07"),
        ({"quality": "hd", "size": "1024x1792"}, "0.12"),
        ({"quality": "standard", "size": "1024x1792"}, "0.07"),
    ],
)
async def test_pictures_have_a_price_by_quality_and_size(shop, asked, each):
    body = b'{"created":1,"data":[{"url":"https://x/1"},{"url":"https://x/2", "b64_json":null}]}'
    prices = {"hd": 0.08, "1024x1792": 0.07, "hd 1024x1792": 0.12}
    gateway, _ = await shop.gateway(same(answer(body)), models={"dall-e-3": Model(image_usd=0.04, images_usd=prices)})

    await gateway.openai().images.generate(model="dall-e-3", prompt="A cat", n=2, **asked)

    [record] = await gateway.records(1)
    assert record.cost_nanos == 2 * usd(each)


async def test_only_the_pictures_that_came_are_paid_for(shop):
    body = b'{"data":[{"url":"https://x/1"}]}'
    gateway, _ = await shop.gateway(same(answer(body)), models={"m": Model(image_usd=0.04)})

    await gateway.openai().images.generate(model="m", prompt="A cat", n=3)

    [record] = await gateway.records(1)
    assert (record.cost_nanos, record.usage_source) == (usd("0.04"), "estimated")


async def test_the_hold_covers_every_picture(shop):
    gateway, upstream = await shop.gateway(same(answer(b"{}")), models={"m": Model(image_usd=1.0)})

    with pytest.raises(openai.APIStatusError) as caught:
        await gateway.openai().images.generate(model="m", prompt="A cat", n=1000)

    assert caught.value.status_code == 402
    assert not upstream.requests


async def test_a_stream_of_pictures_passes_and_its_last_event_counts(shop, server):
    """Case 13."""
    partial = b'event: image_generation.partial_image\ndata: {"type":"image_generation.partial_image","b64_json":"aaaa"}\n\n'
    usage = b'"usage":{"input_tokens":7,"output_tokens":1000,"total_tokens":1007}'
    last = (
        b'event: image_generation.completed\ndata: {"type":"image_generation.completed","b64_json":"'
        + b"QUJD" * 50_000
        + b'",'
        + usage
        + b"}\n\n"
    )
    events = chunked(partial, last, headers=[(b"content-type", b"text/event-stream")])
    price = Model(input_usd_per_mtok=5.0, output_usd_per_mtok=40.0)
    gateway, _ = await shop.gateway(same(events), models={"gpt-image-1": price}, server=server)

    stream = await gateway.openai().images.generate(
        model="gpt-image-1", prompt="A cat", stream=True, partial_images=1
    )
    seen = [event.type async for event in stream]

    assert seen == ["image_generation.partial_image", "image_generation.completed"]
    [record] = await gateway.records(1)
    assert (record.output_tokens, record.usage_source, record.stream) == (1000, "reported", True)
    assert record.cost_nanos == 7 * 5_000 + 1000 * 40_000


async def test_an_edit_without_a_model_goes_the_default_way_byte_for_byte(shop):
    """Case 12."""
    body = b'{"data":[{"b64_json":"aaaa"}],"usage":{"input_tokens":9,"output_tokens":5,"total_tokens":14}}'
    gateway, upstream = await shop.gateway(same(answer(body)), default_provider="local")

    images = [("a.png", io.BytesIO(PNG), "image/png"), ("b.png", io.BytesIO(PNG)), ("c.png", io.BytesIO(PNG))]
    raw = await gateway.openai().images.with_raw_response.edit(image=images, prompt="Brighter")

    assert raw.content == body
    sent = upstream.requests[0]
    assert sent.target == b"/v1/images/edits"
    assert sent.body.count(b'name="image[]"') == 3
    assert sent.body.count(PNG) == 3
    again = await gateway.ask(
        sent.body, path=b"/v1/images/edits", headers=[(b"content-type", sent.header(b"content-type"))]
    )
    assert again.body == body
    assert upstream.requests[1].body == sent.body
    record, _ = await gateway.records(2)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (9, 5, "reported")


async def test_a_large_edit_is_spooled_and_its_model_renamed(shop, server):
    gateway, upstream = await shop.gateway(
        same(answer(b'{"data":[{"b64_json":"aaaa"}]}')),
        models={"m": Model(image_usd=0.02, upstream={"local": "the-provider's-name-for-it"})},
        server=server,
    )
    picture = PNG + bytes(range(256)) * 8_000

    await gateway.openai().images.edit(model="m", image=("a.png", picture), prompt="Brighter")

    [sent] = upstream.requests
    assert sent.header(b"content-length") == b"%d" % len(sent.body)
    assert b"\r\n\r\nthe-provider's-name-for-it\r\n" in sent.body
    assert picture in sent.body
    [record] = await gateway.records(1)
    assert record.cost_nanos == usd("0.02")
    assert record.bytes_in > len(picture)


async def test_speech_is_heard_before_it_is_whole(shop, server):
    """Case 14."""
    heard = asyncio.Event()
    head = chunked(headers=[(b"content-type", b"audio/mpeg")]).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    script = same(head, chunk(b"\xff\xf3first"), Until(heard), chunk(b"last\x00"), b"0\r\n\r\n")
    gateway, _ = await shop.gateway(script, models={"tts-1": Model(character_usd=0.000015)}, server=server)
    text = "Grüße, 世界."

    speech = gateway.openai().audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input=text)
    async with speech as response:
        assert response.headers["content-type"] == "audio/mpeg"
        pieces = response.iter_bytes()
        first = await anext(pieces)
        heard.set()
        rest = b"".join([piece async for piece in pieces])

    assert first + rest == b"\xff\xf3firstlast\x00"
    [record] = await gateway.records(1)
    assert record.cost_nanos == len(text) * 15_000


async def test_speech_that_is_paid_for_by_tokens_is_estimated_unless_it_reports(shop):
    price = Model(input_usd_per_mtok=0.6, output_usd_per_mtok=12.0)
    done = (
        b'data: {"type":"speech.audio.done","usage":{"input_tokens":14,"output_tokens":101,"total_tokens":115}}\n\n'
    )
    delta = b'data: {"type":"speech.audio.delta","audio":"aaaa"}\n\n'
    events = chunked(delta, done, headers=[(b"content-type", b"text/event-stream")])
    sound = answer(b"\xff\xf3", headers=[(b"content-type", b"audio/mpeg")])
    gateway, _ = await shop.gateway(play(RECEIVE, events, RECEIVE, sound, HANG), models={"gpt-4o-mini-tts": price})
    body = b'{"model":"gpt-4o-mini-tts","voice":"alloy","input":"%b","stream_format":"sse"}' % (b"word " * 20)

    reported = await gateway.ask(body, path=b"/v1/audio/speech")
    estimated = await gateway.ask(body, path=b"/v1/audio/speech")

    assert (reported.status, estimated.status) == (200, 200)
    one, other = await gateway.records(2)
    assert (one.input_tokens, one.output_tokens, one.usage_source) == (14, 101, "reported")
    assert one.cost_nanos == 14 * 600 + 101 * 12_000
    assert (other.input_tokens, other.output_tokens, other.usage_source) == (25, 140, "estimated")


TRANSCRIPT = b'{"text":"Hi.","usage":{"type":"duration","seconds":9}}'
PLAIN = [(b"content-type", b"text/plain; charset=utf-8")]


@pytest.mark.parametrize(
    ("form", "body", "headers", "charged"),
    [
        ("json", TRANSCRIPT, [], (9, "reported")),
        ("verbose_json", b'{"task":"transcribe","duration":8.5,"text":"Hi.","segments":[]}', [], (8.5, "reported")),
        ("text", b"Hi.\n", PLAIN, (2, "estimated")),
        ("srt", b"1\n00:00:00,000 --> 00:00:01,000\nHi.\n\n", PLAIN, (2, "estimated")),
        ("vtt", b"WEBVTT\n\n00:00.000 --> 00:01.000\nHi.\n", [(b"content-type", b"text/vtt")], (2, "estimated")),
    ],
)
async def test_a_transcript_keeps_its_form_and_is_paid_for_by_the_second(shop, form, body, headers, charged):
    """Case 15."""
    gateway, upstream = await shop.gateway(
        same(answer(body, headers=headers)), models={"whisper-1": Model(second_usd=0.0001)}
    )

    raw = await gateway.openai().audio.transcriptions.with_raw_response.create(
        model="whisper-1", file=("a.wav", wav(2)), response_format=form
    )

    assert raw.content == body
    assert raw.headers["content-type"] == (dict(headers).get(b"content-type") or b"application/json").decode()
    assert wav(2) in upstream.requests[0].body
    [record] = await gateway.records(1)
    seconds, source = charged
    assert record.cost_nanos == int(Decimal(seconds) * usd("0.0001"))
    assert (record.route, record.usage_source) == ("/v1/audio/transcriptions", source)


async def test_a_stream_of_a_transcript_passes_and_its_tokens_count(shop, server):
    """Case 15."""
    delta = b'data: {"type":"transcript.text.delta","delta":"Hi."}\n\n'
    done = (
        b'data: {"type":"transcript.text.done","text":"Hi.","usage":{"type":"tokens","input_tokens":20,'
        b'"input_token_details":{"text_tokens":5,"audio_tokens":15},"output_tokens":3,"total_tokens":23}}\n\n'
    )
    price = Model(input_usd_per_mtok=2.5, output_usd_per_mtok=10.0, input_audio_usd_per_mtok=6.0)
    events = chunked(delta, done, headers=[(b"content-type", b"text/event-stream")])
    gateway, _ = await shop.gateway(same(events), models={"gpt-4o-transcribe": price}, server=server)

    stream = await gateway.openai().audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("a.wav", wav(2)), stream=True
    )

    assert [event.type async for event in stream] == ["transcript.text.delta", "transcript.text.done"]
    [record] = await gateway.records(1)
    assert record.cost_nanos == 5 * 2_500 + 15 * 6_000 + 3 * 10_000


async def test_a_translation_is_understood_too(shop):
    gateway, upstream = await shop.gateway(same(answer(TRANSCRIPT)), models={"whisper-1": Model(second_usd=0.0001)})

    # The official client has it still, deprecated.
    received = await gateway.ask(
        form((b'"model"', b"whisper-1"), (FILE, wav(1))), path=b"/v1/audio/translations", headers=FORM
    )

    assert received.body == TRANSCRIPT

    assert upstream.requests[0].target == b"/v1/audio/translations"
    [record] = await gateway.records(1)
    assert record.cost_nanos == 9 * usd("0.0001")


async def test_moderations_cost_nothing_and_need_no_price(shop):
    """Case 16."""
    body = b'{"id":"modr-1","model":"omni-moderation-latest","results":[{"flagged":false,"categories":{}}]}'
    gateway, upstream = await shop.gateway(same(answer(body)), models={"*": Model()})
    client = gateway.openai()

    raw = await client.moderations.with_raw_response.create(model="omni-moderation-latest", input="Hi")
    await client.moderations.create(input="Hi")

    assert raw.content == body
    assert upstream.requests[0].body == raw.http_request.content
    assert msgspec.json.decode(upstream.requests[1].body)["model"] == "omni-moderation-latest"
    records = await gateway.records(2)
    assert [(record.cost_nanos, record.status, record.route) for record in records] == [
        (0, 200, "/v1/moderations")
    ] * 2


@pytest.mark.parametrize(
    ("body", "price", "cost", "source"),
    [
        (b'{"results":[],"meta":{"billed_units":{"search_units":2}}}', {"search_usd": 0.002}, "0.004", "reported"),
        (b'{"results":[],"usage":{"total_tokens":700}}', {"input_usd_per_mtok": 0.05}, "0.000035", "reported"),
        (b'{"results":[]}', {"search_usd": 0.002}, "0.004", "estimated"),
    ],
)
async def test_ranked_documents_are_paid_for_by_search_or_token(shop, body, price, cost, source):
    price = Model(**{"input_usd_per_mtok": 0.0, **price})
    upstream = await shop.upstream(same(answer(body)))
    providers = {"local": shop.provider(upstream, adapter="compatible")}
    gateway, _ = await shop.gateway(same(b""), providers=providers, models={"rerank-v3.5": price})
    request = msgspec.json.encode({"model": "rerank-v3.5", "query": "x", "documents": ["d"] * 150})

    raw = await gateway.ask(request, path=b"/v1/rerank")

    assert raw.body == body
    assert upstream.requests[0].target == b"/v1/rerank"
    [record] = await gateway.records(1)
    assert (record.cost_nanos, record.usage_source) == (usd(cost), source)


# -- uploads ---------------------------------------------------------------------------------------------------------


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"XX") -> bytes:
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts
    )
    return body + b"--%b--\r\n" % boundary


FORM = [(b"content-type", b"multipart/form-data; boundary=XX")]
FILE = b'"file"; filename="a.wav"'
PATH = b"/v1/audio/transcriptions"
BIG = wav(30)
SECONDS = {"whisper-1": Model(second_usd=0.0001, upstream={"local": "whisper-large-v3-turbo"})}


async def test_an_upload_is_passed_on_while_it_comes_in(shop, server):
    """The provider has its beginning before the caller has sent the rest."""
    begun = asyncio.Event()
    heads = []

    async def script(peer: Peer) -> None:
        head = await peer.receive_head()
        heads.append(head)
        size = int(head.header(b"content-length") or 0)
        body = await peer.reader.readexactly(200_000)
        begun.set()
        body += await peer.reader.readexactly(size - len(body))
        heads.append(body)
        await peer.send(answer(TRANSCRIPT))
        await peer.gone()

    gateway, _ = await shop.gateway(script, models=SECONDS, server=server)
    body = form((b'"model"', b"whisper-1"), (FILE, BIG))
    request = gateway.request(body, path=PATH, headers=FORM)
    connection = await gateway.connect()

    await connection.send(request[: -len(body) + 400_000])
    await asyncio.wait_for(begun.wait(), 30)
    await connection.send(request[-len(body) + 400_000 :])
    received = await connection.receive()

    assert received.body == TRANSCRIPT
    renamed = body.replace(b"whisper-1", b"whisper-large-v3-turbo")
    assert heads[0].header(b"content-length") == b"%d" % len(renamed)
    assert heads[1] == renamed
    [record] = await gateway.records(1)
    assert (record.cost_nanos, record.bytes_in) == (9 * usd("0.0001"), len(body))


async def test_a_file_before_the_model_waits_in_a_file(shop, server):
    """Case 62."""
    gateway, upstream = await shop.gateway(same(answer(TRANSCRIPT)), models=SECONDS, server=server)
    body = form((FILE, BIG), (b'"model"', b"whisper-1"), (b'"language"', b"de"))

    received = await gateway.ask(body, path=PATH, headers=FORM)

    assert received.status == 200
    assert upstream.requests[0].body == body.replace(b"whisper-1", b"whisper-large-v3-turbo")


async def test_an_upload_of_unknown_length_is_sent_with_its_length(shop, server):
    gateway, upstream = await shop.gateway(same(answer(TRANSCRIPT)), models=SECONDS, server=server)
    body = form((b'"model"', b"whisper-1"), (FILE, BIG))
    head = gateway.request(b"", path=PATH, headers=[*FORM, (b"transfer-encoding", b"chunked")])
    connection = await gateway.connect()

    await connection.send(head + b"".join(chunk(body[at : at + 50_000]) for at in range(0, len(body), 50_000)))
    await connection.send(b"0\r\n\r\n")
    received = await connection.receive()

    assert received.status == 200
    sent = upstream.requests[0]
    assert sent.header(b"content-length") == b"%d" % len(sent.body)
    assert sent.body == body.replace(b"whisper-1", b"whisper-large-v3-turbo")


@pytest.mark.parametrize(
    "end", [b"", b"\r\n--XX\r\nContent-Disposition: form-data; name=model\r\n\r\nother\r\n--XX--\r\n"]
)
async def test_what_is_wrong_at_the_end_is_refused_and_never_looks_whole(shop, server, end):
    """Case 62: a missing boundary; and case 61: the model twice."""
    gateway, upstream = await shop.gateway(same(answer(TRANSCRIPT)), models=SECONDS, server=server)
    body = form((b'"model"', b"whisper-1"), (FILE, BIG)).removesuffix(b"\r\n--XX--\r\n") + end

    received = await gateway.ask(body, path=PATH, headers=FORM)

    assert received.status == 400
    assert not upstream.requests
    [record] = await gateway.records(1)
    assert (record.cost_nanos, record.error_type) == (0, "caller_bad_request")


async def test_a_spooled_upload_goes_to_the_next_provider_and_a_passed_one_does_not(shop):
    broken = await shop.upstream(play(RECEIVE, answer(b"{}", status=500), REPEAT))
    well = await shop.upstream(same(answer(TRANSCRIPT)))
    providers = {
        "broken": shop.provider(broken, models=("whisper-1",), priority=0),
        "well": shop.provider(well, models=("whisper-1",), priority=1),
    }
    gateway, _ = await shop.gateway(
        same(answer(b"{}")), providers=providers, models={"whisper-1": Model(second_usd=0.0001)}
    )
    spooled = form((FILE, BIG), (b'"model"', b"whisper-1"))
    passed = form((b'"model"', b"whisper-1"), (FILE, BIG))

    first = await gateway.ask(spooled, path=PATH, headers=FORM)
    second = await gateway.ask(passed, path=PATH, headers=FORM)

    assert (first.status, first.header(b"x-gateway-attempts")) == (200, b"2")
    assert well.requests[0].body == spooled
    assert (second.status, second.header(b"x-gateway-attempts")) == (500, b"1")
    assert len(well.requests) == 1


async def test_a_provider_that_refuses_at_once_is_heard_at_once(shop, server):
    async def script(peer: Peer) -> None:
        await peer.receive_head()
        await peer.send(answer(b'{"error":{"message":"too large","type":"invalid_request_error"}}', status=413))
        await peer.gone()

    gateway, _ = await shop.gateway(script, models=SECONDS, server=server)
    body = form((b'"model"', b"whisper-1"), (FILE, BIG))
    connection = await gateway.connect()

    await connection.send(gateway.request(body, path=PATH, headers=FORM)[:-100_000])
    received = await connection.receive()

    assert received.status == 413
    [record] = await gateway.records(1)
    assert record.cost_nanos == 0


async def test_a_caller_who_leaves_amid_an_upload_costs_nothing(shop, server):
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive_head()
        await peer.reader.readexactly(100_000)
        gone.set()
        await peer.gone()

    gateway, upstream = await shop.gateway(script, models=SECONDS, server=server)
    body = form((b'"model"', b"whisper-1"), (FILE, BIG))
    connection = await gateway.connect()

    await connection.send(gateway.request(body, path=PATH, headers=FORM)[:-100_000])
    await asyncio.wait_for(gone.wait(), 30)
    connection.abort()
    await asyncio.wait_for(upstream.all_closed(), 30)

    [record] = await gateway.records(1)
    assert (record.cost_nanos, record.error_type) == (0, "caller_gone")


async def test_a_refused_upload_is_not_read(shop, server):
    """Case 84, for forms: no credit for it, and the caller hears of that before it sends its file."""
    model = Model(second_usd=1000.0)
    gateway, upstream = await shop.gateway(same(answer(TRANSCRIPT)), models={"whisper-1": model}, server=server)
    body = form((b'"model"', b"whisper-1"), (FILE, BIG))
    request = gateway.request(body, path=PATH, headers=FORM)
    connection = await gateway.connect()

    await connection.send(request[: -len(body) + 1_000])
    received = await connection.receive()

    assert received.status == 402
    assert not upstream.requests


@pytest.mark.parametrize(("key", "status"), [("wrong", 401), (None, 413)])
async def test_an_upload_that_is_refused_by_its_head_is_never_asked_for(shop, server, key, status):
    settings = Settings(server=Server(upload_bytes_max=1_000_000))
    gateway, _ = await shop.gateway(same(answer(TRANSCRIPT)), settings=settings, models=SECONDS, server=server)
    headers = [*FORM, (b"expect", b"100-continue"), (b"content-length", b"2000000")]
    connection = await gateway.connect()

    await connection.send(gateway.request(b"", path=PATH, headers=headers, key=key))
    received = await connection.receive()

    assert received.status == status
    if server == "direct":
        # What comes next on this connection could be the body, or another request.
        assert received.header(b"connection") == b"close"


async def test_an_upload_that_is_expected_is_asked_for(shop, server):
    gateway, upstream = await shop.gateway(same(answer(TRANSCRIPT)), models=SECONDS, server=server)
    body = form((b'"model"', b"whisper-1"), (FILE, BIG))
    headers = [*FORM, (b"expect", b"100-continue"), (b"content-length", b"%d" % len(body))]
    connection = await gateway.connect()

    await connection.send(gateway.request(b"", path=PATH, headers=headers))
    assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n" or server == "h11"
    await connection.send(body)
    received = await connection.receive()

    assert received.status == 200
    assert upstream.requests[0].header(b"expect") is None


@pytest.mark.parametrize("options", [{"body_timeout_s": 0.3}, {"upload_timeout_s": 0.3}])
@pytest.mark.parametrize("spooled", [False, True])
async def test_an_upload_that_takes_too_long_is_given_up(shop, server, options, spooled):
    settings = Settings(server=Server(**options))
    script = play(RECEIVE, answer(TRANSCRIPT), REPEAT)
    gateway, upstream = await shop.gateway(script, settings=settings, models=SECONDS, server=server)
    parts = [(b'"model"', b"whisper-1"), (FILE, BIG)]
    body = form(*(reversed(parts) if spooled else parts))
    connection = await gateway.connect()

    await connection.send(gateway.request(body, path=PATH, headers=FORM)[:-100])
    received = await connection.receive()

    assert received.status == 408
    assert not upstream.requests


CONFIG = """
default_provider = "local"
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
models = ["*"]
[models."*"]
free = true
"""
UPLOAD_BYTES = 50 * 1024 * 1024


_FILE_PART = b"--XX\r\nContent-Disposition: form-data; name=%b\r\n\r\n" % FILE
_MODEL_PART = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
_PURPOSE_PART = b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
_LAST = b"--XX--\r\n"
KEPT = b'{"id":"file-%d","object":"file","bytes":1,"created_at":1,"filename":"f","purpose":"assistants"}'


@pytest.mark.parametrize(
    ("path", "start", "end", "reply"),
    [
        pytest.param(b"/v1/audio/transcriptions", _MODEL_PART + _FILE_PART, _LAST, TRANSCRIPT, id="passed on"),
        pytest.param(b"/v1/audio/transcriptions", _FILE_PART, _MODEL_PART + _LAST, TRANSCRIPT, id="spooled"),
        pytest.param(b"/v1/files", _PURPOSE_PART + _FILE_PART, _LAST, KEPT, id="file"),
        pytest.param(b"/v1/files", _FILE_PART, _PURPOSE_PART + _LAST, KEPT, id="file first"),
    ],
)
async def test_a_large_upload_is_not_held(stage, path, start, end, reply):
    """Case 17, for recordings too: 50 MB go through a worker that grows by less than 10 MB."""
    end = b"\r\n" + end
    received = []

    async def script(peer: Peer) -> None:
        while True:
            head = await peer.receive_head()
            left = int(head.header(b"content-length") or 0)
            received.append(left)
            while left:
                left -= len(await peer.reader.read(min(left, 262_144)))
            await peer.send(answer(reply.replace(b"%d", b"%d" % len(received))))

    upstream = await stage.upstream(script)
    async with ServedGateway(stage.stores, CONFIG.format(url=upstream.url)) as gateway:
        most_bytes = before_bytes = 0
        # The first upload brings in what every worker needs once.
        for size in (1024 * 1024, UPLOAD_BYTES):
            before_bytes = most_bytes = gateway.resident_bytes()
            connection = await connect(gateway.port)
            head = (
                b"POST %b HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
                b"content-type: multipart/form-data; boundary=XX\r\ncontent-length: %d\r\n\r\n"
            )
            await connection.send(head % (path, gateway.key.encode(), len(start) + size + len(end)) + start)
            for _ in range(size // 262_144):
                await connection.send(bytes(262_144))
                most_bytes = max(most_bytes, gateway.resident_bytes())
            await connection.send(end)
            assert (await connection.receive()).status == 200
            most_bytes = max(most_bytes, gateway.resident_bytes())
            connection.abort()

    assert received[1] == len(start) + UPLOAD_BYTES + len(end)
    assert most_bytes - before_bytes < 10 * 1024 * 1024

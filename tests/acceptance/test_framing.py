"""Odd bytes in requests and answers: what has to survive, what is repaired, and what is refused."""

import asyncio
import gzip
import time
import zlib

import msgspec
import openai
import pytest

from gateway.secret import Secret
from gateway.settings import Model, Objects, Provider, Settings, Timeouts
from tests.acceptance.answers import (
    ASK,
    ASK_STREAM,
    ASK_STREAM_USAGE,
    CHAT,
    DONE,
    LAST_CHUNK,
    MESSAGES,
    SSE,
    USAGE,
    chat_stream,
    delta,
    response_object,
    responses_event,
    sse,
    stream,
    stream_head,
)
from tests.gateways import PROVIDER_KEY
from tests.upstreams import RECEIVE, REPEAT, Pause, Until, answer, chunk, chunked, play

JSON_TYPE = (b"content-type", b"application/json")


def same(*parts: bytes, each: int | None = None):
    return play(RECEIVE, *parts, REPEAT, each=each)


async def read_stream(gateway, **options: object) -> str:
    chunks = await gateway.openai(**options).chat.completions.create(model="gpt-x", messages=MESSAGES, stream=True)
    return "".join([part.choices[0].delta.content or "" async for part in chunks if part.choices])


# -- requests --------------------------------------------------------------------------------------------------------

BODIES = {
    "unknown members": b'{"foo":{"bar":[1,null]},"model":"gpt-x","messages":[{"role":"user","content":"x","weird":1}]}',
    "numbers": b'{"model":"gpt-x","temperature":1.0,"seed":9007199254740993,"a":1e-7,"b":-0.0,"c":1e400,"d":0.10}',
    "white space": b' {\n\t"model" :  "gpt-x" ,\r\n "messages" : [ ] }\n\n',
    "order": b'{"z":1,"messages":[],"a":2,"model":"gpt-x","b":3}',
    "escapes": b'{"mod\\u0065l":"gpt\\u002dx","messages":[{"content":"\\ud83d\\ude00 \\/ \\u0041"}]}',
    "lone surrogate": b'{"model":"gpt-x","messages":[{"content":"\\ud800"}]}',
    "invalid utf-8": b'{"model":"gpt-x","messages":[{"content":"\xff\xfe"}]}',
    "deep": b'{"model":"gpt-x","x":' + b"[" * 500 + b"]" * 500 + b"}",
    "line separators": '{"model":"gpt-x","messages":[{"content":"a\u2028b\u2029c\u0085d"}]}'.encode(),
    "tool history": b'{"model":"gpt-x","messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},'
    b'{"role":"assistant","content":""},{"role":"assistant"},{"role":"tool","tool_call_id":"nobody"}]}',
    "empty names": b'{"":1,"model":"gpt-x","":2}',
    "null stream": b'{"model":"gpt-x","stream":null}',
    "text stream": b'{"model":"gpt-x","stream":"true"}',
    "number stream": b'{"model":"gpt-x","stream":1}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_request_body_leaves_as_it_came(stage, name):
    """Cases 25, 26, 36, 37, 54 and 60."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)))

    answered = await gateway.ask(BODIES[name])

    assert answered.status == 200, answered.body
    assert upstream.requests[0].body == BODIES[name]


async def test_nothing_changes_but_the_models_name(stage, server):
    """Case 38: also where its key is spelt with an escape."""
    models = {"public": Model(free=True, upstream={"local": "private/name"})}
    gateway, upstream = await stage.gateway(same(answer(CHAT)), models=models, server=server)
    bodies = [
        b'{ "z": 1.0,\n "model" : "public" , "a":{"model":"public"}, "messages":["model","public"]}\n',
        b'{"mod\\u0065l":"pub\\u006cic","x":1}',
    ]

    for body in bodies:
        assert (await gateway.ask(body)).status == 200

    assert upstream.requests[0].body == bodies[0].replace(b' : "public"', b' : "private/name"')
    assert upstream.requests[1].body == b'{"mod\\u0065l":"private/name","x":1}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"[]",
        b'"text"',
        b"17",
        b"null",
        b"{",
        b'{"model":"gpt-x"',
        b'{"model":"gpt-x"}}',
        b"model=gpt-x",
        b"{'model':'gpt-x'}",
        b'{"messages":[]}',
        b'{"model":null}',
        b'{"model":7}',
        b'{"model":["gpt-x"]}',
        b'{"model":""}',
        b'{"model":"gpt-x","model":"gpt-y"}',
        b'{"model":"gpt-x","mod\\u0065l":"gpt-y"}',
        b'{"model":"gpt-x","stream":true,"stream":false}',
        b'{"model":"gpt-x","max_tokens":1,"max_tokens":1000000}',
        b"\x00\x01\x02",
        b"[" * 100_000,
        b'{"model":"gpt-x","x":' + b"[" * 2000 + b"]" * 2000 + b"}",
    ],
)
async def test_a_body_that_can_not_be_acted_on_is_refused(stage, body):
    """Cases 53, 55 and 61: in the caller's error object, without asking the provider."""
    models = {"known": Model(free=True)}
    gateway, upstream = await stage.gateway(same(answer(CHAT)), models=models)

    answered = await gateway.ask(body)

    assert answered.status == 400
    assert answered.error["type"] == "invalid_request_error"
    assert answered.header(b"x-request-id")
    assert upstream.connections == 0


async def test_a_body_with_a_byte_order_mark_is_understood_or_refused(stage):
    """Case 54."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)))

    answered = await gateway.ask(b"\xef\xbb\xbf" + ASK)

    if answered.status == 200:
        assert upstream.requests[0].body.endswith(ASK)
    else:
        assert answered.status == 400
        assert answered.error["type"] == "invalid_request_error"


async def test_a_request_in_chunks(stage, server):
    """Case 53."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)
    connection = await gateway.connect()
    head = gateway.request(headers=[(b"transfer-encoding", b"chunked")])

    await connection.send(head)
    for byte in ASK:
        await connection.send(chunk(bytes([byte])))
    await connection.send(LAST_CHUNK)
    answered = await connection.receive()

    assert (answered.status, answered.body) == (200, CHAT)
    assert upstream.requests[0].body == ASK
    assert upstream.requests[0].header(b"content-length") == b"%d" % len(ASK)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"GZIP"])
async def test_a_compressed_request_is_understood(stage, server, coding):
    """Case 52: the provider gets it plain."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)
    packed = gzip.compress(ASK) if coding.lower() == b"gzip" else zlib.compress(ASK)

    answered = await gateway.ask(packed, headers=[(b"content-encoding", coding)])

    assert answered.status == 200
    assert upstream.requests[0].body == ASK
    assert upstream.requests[0].header(b"content-encoding") is None


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        (b"zstd", ASK, 415),
        (b"gzip, gzip", gzip.compress(gzip.compress(ASK)), 415),
        (b"gzip", ASK, 400),
        (b"gzip", gzip.compress(ASK)[:-9], 400),
        (b"gzip", gzip.compress(b" " * 50_000_000), 413),
    ],
    ids=["unknown", "twice", "not_gzip", "cut", "bomb"],
)
async def test_a_compressed_request_that_is_none_is_refused(stage, coding, body, status):
    """Cases 49 and 52."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)))

    answered = await gateway.ask(body, headers=[(b"content-encoding", coding)])

    assert answered.status == status
    assert answered.error["message"]
    assert upstream.connections == 0


async def test_large_pictures_go_through(stage, server):
    """Case 56."""
    picture = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + b"A" * 10_000_000 + b'"}}'
    body = b'{"model":"gpt-x","messages":[{"role":"user","content":[' + b",".join([picture] * 3) + b"]}]}"
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    answered = await gateway.ask(body)

    assert answered.status == 200
    assert upstream.requests[0].body == body


async def test_a_large_request_holds_nobody_up(stage, server):
    """Case 116: others get their turn soon, by the processor's clock, which other programs do not move.

    Client, gateway and provider share the loop; together they should take a tenth of what is allowed here.
    """
    text = msgspec.json.encode("na\u00efve \u00abwords\u00bb,\n" * 600_000)
    body = b'{"messages":[{"role":"user","content":' + text + b'}],"stream":false,"model":"public"}'
    provider = await stage.upstream(same(answer(CHAT)))
    models = {"*": Model(free=True), "public": Model(free=True, upstream={"local": "vendor/gpt-x"})}
    gateway, _ = await stage.gateway(same(answer(CHAT)), providers={"local": provider}, models=models, server=server)
    waits = []

    async def wait_in_line() -> None:
        while True:
            began_s = time.thread_time()
            await asyncio.sleep(0)
            waits.append(time.thread_time() - began_s)

    async with asyncio.TaskGroup() as others:
        in_line = others.create_task(wait_in_line())
        answered = await gateway.ask(body)
        in_line.cancel()

    assert answered.status == 200
    assert len(body) > 10_000_000
    assert provider.requests[0].body == body.replace(b'"public"', b'"vendor/gpt-x"')
    assert max(waits) < 0.2


FORM = (
    b"a preamble\r\n--b7 7\r\n"
    b'Content-Disposition: form-data; name="file"; filename="a \\"b\\" \xc3\xa9.wav"\r\n\r\n'
    b"RIFF\x00\x01--b7 not a boundary\r\n\r\n"
    b'--b7 7\r\ncontent-disposition: form-data; name="model"\r\n\r\npublic\r\n'
    b"--b7 7--\r\nan epilogue"
)


async def test_the_model_of_a_form_is_found_behind_the_file(stage, server):
    """Case 62: quoted boundary, odd file name, parts without a type; renamed, with the file left as it is."""
    models = {"public": Model(free=True, upstream={"local": "private"})}
    gateway, upstream = await stage.gateway(same(answer(b'{"text":"hi"}')), models=models, server=server)
    headers = [(b"content-type", b'multipart/form-data; boundary="b7 7"')]

    answered = await gateway.ask(FORM, path=b"/v1/audio/transcriptions", headers=headers)

    assert answered.status == 200
    assert upstream.requests[0].body == FORM.replace(b"public", b"private")
    assert upstream.requests[0].header(b"content-type") == b'multipart/form-data; boundary="b7 7"'
    assert upstream.requests[0].target == b"/v1/audio/transcriptions"


async def test_a_form_that_is_not_whole_is_refused(stage):
    """Case 62."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)))
    headers = [(b"content-type", b'multipart/form-data; boundary="b7 7"')]

    answered = await gateway.ask(FORM[:-30], path=b"/v1/audio/transcriptions", headers=headers)

    assert answered.status == 400
    assert upstream.connections == 0


# -- streams ---------------------------------------------------------------------------------------------------------

EMOJI = "na\u00efve \U0001f469\u200d\U0001f4bb \u4f60\u597d \u2028 \u2029 \u0085 \u00e9"
TRAPS = 'data: [DONE]\n\ndata: {"usage":{"prompt_tokens":1}} \\"usage\\":{ "choices":[] event: error'


@pytest.mark.parametrize("text", [EMOJI, TRAPS], ids=["unicode", "traps"])
@pytest.mark.parametrize("each", [None, 1], ids=["whole", "bytes"])
async def test_text_survives_any_cut(stage, server, text, each):
    """Cases 39, 42 and 43: the stream arrives byte by byte, and nothing in the text is taken for framing."""
    data = [event.replace(b"\\u2028", "\u2028".encode()) for event in chat_stream(*text)]
    gateway, _ = await stage.gateway(same(stream(sse(*data)), each=each), server=server)

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert answered.body == sse(*data)
    assert answered.whole
    assert await read_stream(gateway) == text
    for record in await gateway.records(2):
        assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("each", [None, 1], ids=["whole", "bytes"])
async def test_any_line_end(stage, server, end, each):
    """Case 40."""
    body = sse(*chat_stream("One ", "two."), end=end)
    gateway, _ = await stage.gateway(same(stream(body), each=each), server=server)

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert answered.body == body
    assert await read_stream(gateway) == "One two."
    for record in await gateway.records(2):
        assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")


async def test_mixed_line_ends(stage):
    """Case 40."""
    ends = [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"]
    data = chat_stream("One ", "two.")
    body = b"".join(b"data: " + event + ends[number % 5] for number, event in enumerate(data[:-1])) + sse(DONE)
    gateway, _ = await stage.gateway(same(stream(body), each=1))

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert answered.body == body
    assert await read_stream(gateway) == "One two."


async def test_one_enormous_event(stage, server):
    """Case 41: relayed, and its usage found."""
    response = response_object("completed", "x" * 12_000_000)
    body = responses_event("response.completed", 0, response=response)
    gateway, _ = await stage.gateway(same(stream(body)), server=server)

    answered = await gateway.ask(b'{"model":"gpt-x","stream":true,"input":"Hi"}', path=b"/v1/responses")

    assert answered.body == body
    assert answered.whole
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (8, 2, "reported")


async def test_signs_of_life_go_through(stage, server):
    """Case 44: at once, and they are no first token."""
    more = asyncio.Event()
    comments = b": OPENROUTER PROCESSING\n\n" * 50
    rest = sse(*chat_stream("One", usage=False))
    script = play(RECEIVE, stream_head(), chunk(comments), Until(more), chunk(rest), LAST_CHUNK, REPEAT)
    gateway, _ = await stage.gateway(script, server=server)
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK_STREAM))
    await connection.receive_head()
    seen = b""
    async for piece in connection.pieces():
        seen += piece
        if seen == comments:
            more.set()

    assert seen == comments + rest
    assert await read_stream(gateway) == "One"


REPAIRS = {
    "retry": (b"retry: 3000\n\n", b""),
    "id": (b"id: 5\n", b""),
    "empty event": (b"event: ping\n\n", b""),
    "byte order mark": (b"\xef\xbb\xbf", b""),
}


@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("each", [None, 1], ids=["whole", "bytes"])
async def test_what_the_official_client_chokes_on_is_repaired(stage, server, name, each):
    """Cases 45 and 46."""
    broken, repaired = REPAIRS[name]
    body = sse(*chat_stream("One ", "two.", usage=False))
    gateway, _ = await stage.gateway(same(stream(broken + body), each=each), server=server)

    answered = await gateway.ask(ASK_STREAM)

    assert answered.body == repaired + body
    assert await read_stream(gateway) == "One two."


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (sse(*chat_stream("One"))[:-1], b"\n"),
        (sse(*chat_stream("One"))[:-2], b"\n\n"),
        (sse(*chat_stream("One")[:-1])[:-1], b"\n"),
    ],
    ids=["done_line", "done_bare", "usage_line"],
)
async def test_a_last_event_without_its_blank_line_is_completed(stage, server, body, missing):
    """Case 47."""
    gateway, _ = await stage.gateway(same(stream(body)), server=server)

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert answered.body == body + missing
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.usage_source) == (20, "reported")


async def test_fields_without_a_space(stage, server):
    """Case 48."""
    body = sse(*chat_stream("One ", "two.", usage=False)).replace(b"data: ", b"data:")
    gateway, _ = await stage.gateway(same(stream(body)), server=server)

    assert (await gateway.ask(ASK_STREAM)).body == body
    assert await read_stream(gateway) == "One two."


ODD = {
    "azure": b'{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0}]}',
    "groq": b'{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"r","usage":'
    b'{"queue_time":0.01,"prompt_tokens":20,"completion_tokens":9,"total_tokens":29}}}',
    "vllm": b'{"id":"c","choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"total_tokens":6}}',
    "reasoning": b'{"choices":[{"index":0,"delta":{"reasoning_content":"Hm.","reasoning":"Hm.",'
    b'"reasoning_details":[{"type":"x"}]}}]}',
    "refusal": b'{"choices":[{"index":0,"delta":{"refusal":"No.","annotations":[{"type":"url_citation"}]}}]}',
    "logprobs": b'{"choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.0,'
    b'"bytes":[97],"top_logprobs":[{"token":"b","logprob":-1e-05,"bytes":null}]}]}}]}',
    "obfuscation": b'{"choices":[{"index":0,"delta":{"content":"a"}}],"obfuscation":"a8Zq"}',
    "ends": b'{"choices":[{"index":0,"delta":{},"finish_reason":"insufficient_system_resource"},'
    b'{"index":1,"delta":{},"finish_reason":"eos"},{"index":2,"delta":{},"finish_reason":"model_length"}]}',
    "duplicates": b'{"choices":[{"index":0,"delta":{"content":"a","content":"b"}}],"choices":[],"x":1,"x":1.50}',
    "not json": b"hello",
}


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_event_goes_through_as_it_is(stage, name):
    """Cases 24, 31, 32 and 35."""
    body = sse(delta(role="assistant", content=""), ODD[name], delta(finish="stop"), USAGE, DONE)
    gateway, _ = await stage.gateway(same(stream(body)))

    asked = await gateway.ask(ASK_STREAM_USAGE)
    unasked = await gateway.ask(ASK_STREAM)

    assert asked.body == body
    assert unasked.body == body.replace(sse(USAGE), b"")


# -- codings and content types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
async def test_an_answer_compressed_unasked_is_readable(stage, server, coding):
    """Cases 49 and 51."""
    packed = gzip.compress(CHAT) if coding == b"gzip" else zlib.compress(CHAT)
    gateway, upstream = await stage.gateway(
        same(answer(packed, headers=[(b"content-encoding", coding)])), server=server
    )

    answered = await gateway.ask(ASK, headers=[(b"accept-encoding", b"gzip, br, zstd")])
    completion = await gateway.openai().chat.completions.create(model="gpt-x", messages=MESSAGES)

    assert upstream.requests[0].header(b"accept-encoding") == b"identity"
    assert (answered.status, answered.body) == (200, CHAT)
    assert answered.header(b"content-encoding") is None
    assert answered.header(b"content-length") == b"%d" % len(CHAT)
    assert completion.choices[0].message.content == "Hello."
    for record in await gateway.records(2):
        assert (record.input_tokens, record.output_tokens) == (9, 2)


async def test_an_answer_in_an_unknown_coding_is_an_error(stage):
    gateway, _ = await stage.gateway(same(answer(b"\x28\xb5\x2f\xfd", headers=[(b"content-encoding", b"zstd")])))

    answered = await gateway.ask(ASK)

    assert answered.status == 502
    assert answered.error["code"] == "upstream_protocol_error"


async def test_a_bomb_is_defused(stage, server):
    """Case 49."""
    bomb = gzip.compress(b" " * 50_000_000)
    gateway, _ = await stage.gateway(same(answer(bomb, headers=[(b"content-encoding", b"gzip")])), server=server)

    answered = await gateway.ask(ASK)

    assert answered.status == 502 or not answered.whole
    assert len(answered.body) < 20_000_000


async def test_a_compressed_stream_is_followed_event_by_event(stage, server):
    """Case 50: each event arrives while the provider waits for the caller to have it."""
    turns = [asyncio.Event() for _ in range(3)]
    packer = zlib.compressobj(wbits=31)
    words = [sse(delta(f"{number}")) for number in range(3)]
    frames = [chunk(packer.compress(word) + packer.flush(zlib.Z_SYNC_FLUSH)) for word in words]
    last = sse(delta(finish="stop"), DONE)
    end = chunk(packer.compress(last) + packer.flush())
    steps = [step for frame, turn in zip(frames, turns, strict=True) for step in (frame, Until(turn))]
    head = stream_head(headers=[*SSE, (b"content-encoding", b"gzip")])
    gateway, _ = await stage.gateway(play(RECEIVE, head, *steps, end, LAST_CHUNK), server=server)
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK_STREAM))
    head_seen = await connection.receive_head()
    seen = b""
    async for piece in connection.pieces():
        seen += piece
        for number, turn in enumerate(turns):
            if seen == b"".join(words[: number + 1]):
                turn.set()

    assert head_seen.header(b"content-encoding") is None
    assert seen == b"".join(words) + last


async def test_blank_lines_before_a_body_keep_it_alive(stage, server):
    """Case 57: white space before the object is part of it, and resets the idle timer."""
    blanks = [step for _ in range(8) for step in (chunk(b"\n" * 250), Pause(0.1))]
    head = chunked(headers=[JSON_TYPE]).removesuffix(LAST_CHUNK)
    timeouts = Timeouts(first_byte_s=0.5, idle_s=0.5, total_s=30.0)
    gateway, _ = await stage.gateway(
        play(RECEIVE, head, *blanks, chunk(CHAT), LAST_CHUNK, REPEAT), server=server, timeouts=timeouts
    )

    answered = await gateway.ask(ASK)
    completion = await gateway.openai().chat.completions.create(model="gpt-x", messages=MESSAGES)

    assert (answered.status, answered.body) == (200, b"\n" * 2000 + CHAT)
    assert completion.choices[0].message.content == "Hello."


@pytest.mark.parametrize("kind", [b"application/json; charset=utf-8", b"application/problem+json", b"text/plain"])
async def test_the_content_type_is_the_providers(stage, server, kind):
    """Case 58."""
    gateway, _ = await stage.gateway(same(answer(CHAT, headers=[(b"content-type", kind)])), server=server)

    answered = await gateway.ask(ASK)

    assert answered.header(b"content-type") == kind
    assert answered.body == CHAT


async def test_an_answer_without_a_content_type(stage, server):
    """Case 58."""
    bare = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(CHAT) + CHAT
    gateway, _ = await stage.gateway(same(bare), server=server)

    assert (await gateway.ask(ASK)).body == CHAT


async def test_events_labelled_as_json_are_relayed_and_counted(stage, server):
    """Case 59."""
    body = sse(*chat_stream("One ", "two."))
    gateway, _ = await stage.gateway(same(stream(body, headers=[JSON_TYPE])), server=server)

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert (answered.status, answered.body) == (200, body)
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")


@pytest.mark.parametrize("ask", [ASK_STREAM, ASK_STREAM_USAGE], ids=["bare", "usage"])
async def test_a_plain_answer_to_a_stream_becomes_the_stream_and_is_counted(stage, server, ask):
    """Case 59: official clients would read no chunk at all in it, and raise nothing."""
    gateway, _ = await stage.gateway(same(answer(CHAT, headers=[JSON_TYPE])), server=server)
    whole = msgspec.json.decode(CHAT)

    answered = await gateway.ask(ask)
    text = await read_stream(gateway)

    assert answered.header(b"content-type").startswith(b"text/event-stream")
    *events, mark = answered.body.removesuffix(b"\n\n").split(b"\n\n")
    assert mark == b"data: [DONE]"
    chunks = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events]
    assert {(one["id"], one["object"], one["model"]) for one in chunks} == {
        (whole["id"], "chat.completion.chunk", whole["model"])
    }
    assert [one.get("usage") for one in chunks][-1] == (whole["usage"] if ask is ASK_STREAM_USAGE else None)
    assert text == whole["choices"][0]["message"]["content"]
    for record in await gateway.records(2):
        assert (record.input_tokens, record.output_tokens, record.usage_source) == (9, 2, "reported")


async def test_a_plain_error_to_a_stream_is_raised(stage, server):
    """Case 59, with a good status on something that is none."""
    body = b'{"error":{"message":"Not today.","type":"server_error","code":"busy"}}'
    gateway, _ = await stage.gateway(same(answer(body, headers=[JSON_TYPE])), server=server)

    with pytest.raises(openai.APIError, match=r"Not today\."):
        await read_stream(gateway, max_retries=0)


@pytest.mark.parametrize("status", [204, 205, 201, 299])
async def test_any_good_status_is_the_callers(stage, server, status):
    relayed = Settings(objects=Objects(relay=("/fine_tuning",)))
    body = b"" if status in {204, 205} else b"{}"
    bare = b"HTTP/1.1 204 No Content\r\n\r\n" if status == 204 else answer(body, status=status)
    gateway, _ = await stage.gateway(same(bare), server=server, settings=relayed)

    answered = await gateway.ask(path=b"/v1/fine_tuning/jobs/one", method=b"DELETE")

    assert (answered.status, answered.body, answered.whole) == (status, body, True)


async def test_binary_goes_through(stage, server):
    """Paths that are not understood carry anything, both ways."""
    audio = bytes(range(256)) * 5000
    gateway, upstream = await stage.gateway(
        same(chunked(audio, headers=[(b"content-type", b"audio/mpeg")])), server=server
    )

    answered = await gateway.ask(ASK, path=b"/v1/audio/speech?x=%2F&y")

    assert answered.body == audio
    assert answered.header(b"content-type") == b"audio/mpeg"
    assert upstream.requests[0].target == b"/v1/audio/speech?x=%2F&y"


async def test_the_client_reads_a_stream_of_another_provider(stage):
    """A provider may live below a path of its own, and names of models may have slashes."""
    upstream = await stage.upstream(same(stream(sse(*chat_stream("One")))))
    provider = Provider(
        adapter="compatible", base_url=f"{upstream.url}/api/openai/v1/", api_key=Secret(PROVIDER_KEY), models=("*",)
    )
    gateway, _ = await stage.gateway(same(answer(CHAT)), providers={"other": provider})

    chunks = await gateway.openai().chat.completions.create(model="a/b:free", messages=MESSAGES, stream=True)
    assert [part async for part in chunks]

    assert upstream.requests[0].target == b"/api/openai/v1/chat/completions"
    assert msgspec.json.decode(upstream.requests[0].body)["model"] == "a/b:free"


async def test_a_stream_of_nothing_is_not_finished(stage, server):
    gateway, _ = await stage.gateway(same(stream(b"")), server=server)

    with pytest.raises(openai.APIError):
        await read_stream(gateway)

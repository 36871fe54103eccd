"""What the echo provider answers: from a request's bytes to the frames of an answer, the same ones every time.

It says back the words of the last user message. A word (with the white space after it) is a token, so the usage of
any request can be counted by hand. The model's name may hold instructions, in any order; `adapters/README.md` lists
them. Identifiers and times are made from the request's bytes: nothing here is random, and nothing reads a clock.

No sockets here: `echo.py` writes the frames and does the waiting.
"""

import base64
import hashlib
import itertools
import re
import struct
import zlib
from collections.abc import Iterator

import msgspec

from gateway_adapters import echo_media, echo_objects, echo_tools

DEFAULT_TEXT = "Hello! This is the gateway's echo provider: whatever you say comes back, word by word."
#: More than this is refused, so that a typing error can't fill the memory.
TOKENS_MAX = 1_000_000
DELAY_S_MAX = 600.0
SLOW_S = 0.1
DIMENSIONS = 8
DIMENSIONS_MAX = 8192
PICTURES_MAX = 10
CHOICES_MAX = 16
#: As many tokens as a picture is said to be.
PICTURE_TOKENS = 100
#: Where made-up times begin, seconds since 1970.
_EPOCH = 1_760_000_000

#: Paths of what is kept; a response is asked for by its id.
_KEPT = (b"/files", b"/batches", b"/responses/")
_FILE_NAME = re.compile(rb'filename="([^"\r\n]*)"')
_WORD = re.compile(r"\s*\S+\s*")
_INSTRUCTION = re.compile(r"-(?:(slow)|(delay|ttft)-(\d+(?:\.\d+)?)(ms|s)|(fail|cut|stall|tokens)-(\d+))(?=-|$)")
_STATUS_TYPES = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", None),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable_error", "server_is_overloaded"),
}

_encode = msgspec.json.encode


#: An event: the pause before it, its type, and what else is in it.
_Event = tuple[float, str, dict[str, object]]


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's name asks for."""

    #: Between two words, and before the first byte.
    delay_s: float = 0.0
    ttft_s: float = 0.0
    #: Answer with this error status.
    fail: int = 0
    #: After so many events close the connection, or say no more. For an answer that is no stream: after half of it.
    cut: int | None = None
    stall: int | None = None
    tokens: int | None = None


class Answer(msgspec.Struct, kw_only=True):
    """An answer in frames. Each is written `pause_s` after the one before; a stream has as many as it has events."""

    status: int = 200
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    #: Before the head.
    wait_s: float = 0.0
    frames: Iterator[tuple[float, bytes]]
    #: None for a stream.
    size_bytes: int | None = None
    script: Script = Script()


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    """The members of the dialects' requests that matter here; everything else is accepted and ignored."""

    model: str = "echo"
    messages: list[dict[str, object]] = []
    prompt: object = ""
    input: object = ""
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    dimensions: int | None = None
    encoding_format: str | None = None
    n: int | None = None
    stop: object = None
    tools: object = None
    tool_choice: object = None
    query: str = ""
    documents: list[object] = []
    top_n: int | None = None
    response_format: object = None
    stream_format: str | None = None
    #: Of a form: the bytes of its file.
    file: bytes | None = None
    background: bool | None = None


def script_of(model: str) -> Script | None:
    """The instructions in a model's name, or None where it holds something that is none.

    A name that does not begin with `echo` holds no instructions: the provider answers to any.
    """
    if model != "echo" and not model.startswith("echo-"):
        return Script()
    values: dict[str, float | int] = {}
    end = len("echo")
    while end < len(model):
        match = _INSTRUCTION.match(model, end)
        if match is None:
            return None
        slow, wait, amount, unit, verb, number = match.groups()
        if slow:
            values["delay_s"] = SLOW_S
        elif wait:
            values[f"{wait}_s"] = min(float(amount) / (1000 if unit == "ms" else 1), DELAY_S_MAX)
        else:
            values[verb] = int(number)
        end = match.end()
    return msgspec.convert(values, Script)


def answer(method: bytes, path: bytes, body: bytes) -> Answer:
    """The answer to one request; `path` is without the query."""
    if path in (b"/v1/models", b"/models") and method == b"GET":
        return _json({"object": "list", "data": [_model(name) for name in ("echo", "echo-slow", "echo-fail-500")]})
    path = path.removeprefix(b"/v1")
    if path.startswith(_KEPT):
        return _kept(method, path.decode("latin-1"), body)
    make = _DIALECTS.get(path)
    if make is None:
        return _refusal(404, f"echo serves no {path.decode('latin-1')}", code=None)
    if method != b"POST":
        return _refusal(405, "POST is needed here")
    try:
        request = _of_form(echo_media.read_form(body)) or msgspec.json.decode(body, type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _refusal(400, f"not a request: {error}")
    script = script_of(request.model)
    if script is None or (script.tokens or 0) > TOKENS_MAX or (script.fail and not 400 <= script.fail < 600):
        return _refusal(404, f"The model `{request.model}` does not exist.")
    if script.fail:
        refusal = _refusal(script.fail, f"echo was asked to fail with {script.fail}")
        refusal.wait_s = script.ttft_s
        return refusal
    made = make(_Turn(request, body, script))
    if request.background and made.size_bytes is not None:
        ordered = _encode({"model": request.model, "input": request.input})
        whole = msgspec.json.decode(b"".join(frame for _, frame in made.frames))
        made = _json(echo_objects.in_background(ordered, whole))
    made.script = script
    made.wait_s = script.ttft_s
    return made


def _kept(method: bytes, path: str, body: bytes) -> Answer:
    """The answer about an object that `echo_objects.py` makes believe to keep."""
    form = echo_media.read_form(body)
    upload = None
    if "file" in form:
        name = _FILE_NAME.search(body)
        upload = (
            name[1].decode("utf-8", "replace") if name else "",
            form.get("purpose", b"").decode("utf-8", "replace"),
            form["file"],
        )
    try:
        made = echo_objects.answer(method, path, body, upload=upload, ask=_ask)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _refusal(400, f"not a request: {error}")
    if made is None:
        return _refusal(404, f"echo keeps no {path}", code=None)
    if isinstance(made, bytes):
        frames = iter(((0.0, made),))
        return Answer(content_type=b"application/octet-stream", frames=frames, size_bytes=len(made))
    return _json(made)


def _ask(path: bytes, body: bytes) -> bytes | None:
    """The whole answer to a request of a batch."""
    made = answer(b"POST", path, body)
    return b"".join(frame for _, frame in made.frames) if made.status == 200 and made.size_bytes is not None else None


class _Turn:
    """One request and the words of its answer, ready to be written in any dialect."""

    def __init__(self, request: _Request, body: bytes, script: Script) -> None:
        self.request = request
        self.script = script
        self.model = request.model
        self.digest = hashlib.blake2b(body, digest_size=12).hexdigest()
        self.created = _EPOCH + zlib.crc32(body) % 10_000_000
        said = _last_said(request) or DEFAULT_TEXT
        words: list[str] = _WORD.findall(said)
        self.input_tokens = sum(len(_WORD.findall(text)) for text in _everything_said(request))
        wanted = len(words) if script.tokens is None else script.tokens
        limits = (request.max_tokens, request.max_completion_tokens, request.max_output_tokens)
        limit = min((number for number in limits if number is not None), default=wanted)
        self.finished = wanted <= limit
        count = max(min(wanted, limit), 0)
        if count <= len(words):
            self.words = words[:count]
        else:
            words[-1] = words[-1].rstrip() + " "
            self.words = list(itertools.islice(itertools.cycle(words), count))
        if request.stop:
            self._stop(request.stop)
            count = len(self.words)
        last = request.messages[-1] if request.messages else {}
        asked = said if last.get("role") == "user" else ""
        #: A tool and its arguments, which are said instead of the words.
        self.tool = echo_tools.choose(request.tools, request.tool_choice, asked) if request.tools else None
        if self.tool is not None:
            self.words, self.finished, count = [], True, 1
        self.choices = min(max(request.n or 1, 1), CHOICES_MAX) if request.messages else 1
        count *= self.choices
        self.usage = {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": count,
            "total_tokens": self.input_tokens + count,
        }

    def _stop(self, stop: object) -> None:
        """End before the first of the texts that the request names."""
        text = self.text
        marks = [mark for mark in (stop if isinstance(stop, list) else [stop]) if isinstance(mark, str) and mark]
        ends = [at for mark in marks if (at := text.find(mark)) >= 0]
        if ends:
            self.words = _WORD.findall(text[: min(ends)])
            self.finished = True

    @property
    def text(self) -> str:
        return "".join(self.words)


def _chat(turn: _Turn) -> Answer:
    head = {
        "id": f"chatcmpl-{turn.digest}",
        "object": "chat.completion",
        "created": turn.created,
        "model": turn.model,
    }
    finish = "stop" if turn.finished else "length"
    calls: list[dict[str, object]] = []
    if turn.tool is not None:
        name, filled = turn.tool
        finish = "tool_calls"
        function = {"name": name, "arguments": filled}
        calls = [{"id": f"call_{turn.digest}", "type": "function", "function": function}]
    if not turn.request.stream:
        message: dict[str, object] = {"role": "assistant", "content": turn.text, "refusal": None}
        if calls:
            message |= {"content": None, "tool_calls": calls}
        choice = {"message": message, "logprobs": None, "finish_reason": finish}
        choices = [{"index": index, **choice} for index in range(turn.choices)]
        return _json({**head, "choices": choices, "usage": turn.usage}, turn)
    start = _encode({**head, "object": "chat.completion.chunk"})[:-1]

    def chunk(delta: bytes, reason: bytes = b"null", index: int = 0) -> bytes:
        return b'data: %b,"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (
            start,
            index,
            delta,
            reason,
        )

    def frames() -> Iterator[tuple[float, bytes]]:
        for index in range(turn.choices):
            yield 0.0, chunk(b'{"role":"assistant","content":""}', index=index)
            for pause_s, word in _paced(turn):
                yield pause_s, chunk(b'{"content":%b}' % _encode(word), index=index)
            for call in calls:
                yield 0.0, chunk(_encode({"tool_calls": [{"index": 0, **call}]}), index=index)
            yield 0.0, chunk(b"{}", _encode(finish), index)
        if turn.request.stream_options is not None and turn.request.stream_options.include_usage:
            yield 0.0, b'data: %b,"choices":[],"usage":%b}\n\n' % (start, _encode(turn.usage))
        yield 0.0, b"data: [DONE]\n\n"

    return _stream(frames())


def _completions(turn: _Turn) -> Answer:
    head = {"id": f"cmpl-{turn.digest}", "object": "text_completion", "created": turn.created, "model": turn.model}
    finish = "stop" if turn.finished else "length"

    def choice(text: str, reason: str | None) -> dict[str, object]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}

    if not turn.request.stream:
        return _json({**head, "choices": [choice(turn.text, finish)], "usage": turn.usage}, turn)

    def frames() -> Iterator[tuple[float, bytes]]:
        for pause_s, word in _paced(turn):
            yield pause_s, b"data: %b\n\n" % _encode({**head, "choices": [choice(word, None)]})
        yield 0.0, b"data: %b\n\n" % _encode({**head, "choices": [choice("", finish)]})
        if turn.request.stream_options is not None and turn.request.stream_options.include_usage:
            yield 0.0, b"data: %b\n\n" % _encode({**head, "choices": [], "usage": turn.usage})
        yield 0.0, b"data: [DONE]\n\n"

    return _stream(frames())


def _responses(turn: _Turn) -> Answer:
    item_id = f"msg_{turn.digest}"
    usage = {
        "input_tokens": turn.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": len(turn.words),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": turn.usage["total_tokens"],
    }
    outcome = "completed" if turn.finished else "incomplete"

    def part(text: str) -> dict[str, object]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def item(status: str, content: list[dict[str, object]]) -> dict[str, object]:
        return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def response(status: str, output: list[dict[str, object]], used: dict[str, object] | None) -> dict[str, object]:
        return {
            "id": f"resp_{turn.digest}",
            "object": "response",
            "created_at": turn.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": turn.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": used,
        }

    whole = response(outcome, [item(outcome, [part(turn.text)])], usage)
    if not turn.request.stream:
        return _json(whole, turn)

    def events() -> Iterator[tuple[float, str, dict[str, object]]]:
        place = {"item_id": item_id, "output_index": 0, "content_index": 0}
        yield 0.0, "response.created", {"response": response("in_progress", [], None)}
        yield 0.0, "response.in_progress", {"response": response("in_progress", [], None)}
        yield 0.0, "response.output_item.added", {"output_index": 0, "item": item("in_progress", [])}
        yield 0.0, "response.content_part.added", {**place, "part": part("")}
        for pause_s, word in _paced(turn):
            yield pause_s, "response.output_text.delta", {**place, "delta": word, "logprobs": []}
        yield 0.0, "response.output_text.done", {**place, "text": turn.text, "logprobs": []}
        yield 0.0, "response.content_part.done", {**place, "part": part(turn.text)}
        yield 0.0, "response.output_item.done", {"output_index": 0, "item": item(outcome, [part(turn.text)])}
        yield 0.0, f"response.{outcome}", {"response": whole}

    def frames() -> Iterator[tuple[float, bytes]]:
        for number, (pause_s, kind, members) in enumerate(events()):
            data = _encode({"type": kind, "sequence_number": number, **members})
            yield pause_s, b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    return _stream(frames())


def _embeddings(turn: _Turn) -> Answer:
    request = turn.request
    given = request.input if isinstance(request.input, list) else [request.input]
    if given and all(isinstance(token, int) for token in given):
        given = [given]  # one input, as token numbers
    size = min(max(request.dimensions or DIMENSIONS, 1), DIMENSIONS_MAX)
    data = []
    for index, text in enumerate(given):
        vector = _vector(_encode(text), size)
        packed = struct.pack(f"<{size}f", *vector) if request.encoding_format == "base64" else None
        data.append({"object": "embedding", "index": index, "embedding": vector if packed is None else packed})
    tokens = sum(len(text) if isinstance(text, list) else len(_WORD.findall(str(text))) for text in given)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data, "model": turn.model, "usage": usage}, turn)


def _pictures(turn: _Turn) -> Answer:
    count = min(max(turn.request.n or 1, 1), PICTURES_MAX)
    drawn = [base64.b64encode(echo_media.picture(b"%d %b" % (index, turn.text.encode()))) for index in range(count)]
    usage = {
        "input_tokens": turn.input_tokens,
        "input_tokens_details": {"text_tokens": turn.input_tokens, "image_tokens": 0},
        "output_tokens": PICTURE_TOKENS * count,
        "total_tokens": turn.input_tokens + PICTURE_TOKENS * count,
    }
    if not turn.request.stream:
        data = [{"b64_json": each.decode()} for each in drawn]
        return _json({"created": turn.created, "output_format": "png", "data": data, "usage": usage}, turn)
    kind = "image_generation" if turn.request.file is None else "image_edit"
    return _stream(
        _named(
            (turn.script.delay_s, f"{kind}.partial_image", {"partial_image_index": 0, "b64_json": drawn[0].decode()}),
            (turn.script.delay_s, f"{kind}.completed", {"b64_json": drawn[0].decode(), "usage": usage}),
        )
    )


def _speech(turn: _Turn) -> Answer:
    pieces = echo_media.sound(turn.words)
    pause_s = turn.script.delay_s
    if turn.request.stream_format == "sse":
        usage = {
            "input_tokens": turn.input_tokens,
            "output_tokens": len(turn.words),
            "total_tokens": turn.input_tokens + len(turn.words),
        }
        deltas: list[_Event] = [
            (pause_s, "speech.audio.delta", {"audio": base64.b64encode(piece).decode()}) for piece in pieces[1:]
        ]
        return _stream(_named(*deltas, (0.0, "speech.audio.done", {"usage": usage})))
    frames = ((pause_s if index > 1 else 0.0, piece) for index, piece in enumerate(pieces))
    return Answer(content_type=b"audio/wav", frames=iter(frames))


def _transcript(turn: _Turn) -> Answer:
    file = turn.request.file or b""
    seconds = echo_media.recorded_s(file)
    text = f"A recording of {len(file)} bytes."
    usage = {"type": "duration", "seconds": seconds}
    if turn.request.stream:
        deltas: list[_Event] = [
            (turn.script.delay_s, "transcript.text.delta", {"delta": word}) for word in _WORD.findall(text)
        ]
        return _stream(_named(*deltas, (0.0, "transcript.text.done", {"text": text, "usage": usage})))
    match turn.request.response_format:
        case "text":
            return _plain(text + "\n")
        case "srt":
            return _plain(f"1\n00:00:00,000 --> {_clock(seconds, ',')}\n{text}\n\n")
        case "vtt":
            return _plain(f"WEBVTT\n\n00:00:00.000 --> {_clock(seconds, '.')}\n{text}\n\n")
        case "verbose_json":
            whole = {"task": "transcribe", "language": "english", "duration": seconds, "text": text, "segments": []}
            return _json({**whole, "usage": usage}, turn)
    return _json({"text": text, "usage": usage}, turn)


def _moderations(turn: _Turn) -> Answer:
    given = turn.request.input if isinstance(turn.request.input, list) else [turn.request.input]
    results = [{"flagged": False, "categories": {}, "category_scores": {}} for _ in given]
    return _json({"id": f"modr-{turn.digest}", "model": turn.model, "results": results}, turn)


def _ranks(turn: _Turn) -> Answer:
    """Documents by the share of the query's words that they have."""
    wanted = {word.strip().lower() for word in _WORD.findall(turn.request.query)} or {""}
    scored = []
    for index, document in enumerate(turn.request.documents):
        words = {word.strip().lower() for word in _WORD.findall(_text(document))}
        scored.append({"index": index, "relevance_score": len(wanted & words) / len(wanted)})
    scored.sort(key=lambda each: -each["relevance_score"])
    searches = max(1, -(-len(scored) // 100))
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": searches}}
    top = turn.request.top_n
    return _json({"id": turn.digest, "results": scored if top is None else scored[: max(top, 0)], "meta": meta}, turn)


_DIALECTS = {
    b"/chat/completions": _chat,
    b"/completions": _completions,
    b"/responses": _responses,
    b"/embeddings": _embeddings,
    b"/images/generations": _pictures,
    b"/images/edits": _pictures,
    b"/images/variations": _pictures,
    b"/audio/speech": _speech,
    b"/audio/transcriptions": _transcript,
    b"/audio/translations": _transcript,
    b"/moderations": _moderations,
    b"/rerank": _ranks,
}


def _of_form(fields: dict[str, bytes]) -> _Request | None:
    """The request that a form makes; None where there is none."""
    if not fields:
        return None
    texts = {name: value.decode("utf-8", "replace").strip() for name, value in fields.items() if len(value) < 10_000}
    number = texts.get("n", "")
    return _Request(
        model=texts.get("model") or "echo",
        prompt=texts.get("prompt", ""),
        response_format=texts.get("response_format"),
        n=int(number) if number.isdecimal() and len(number) < 4 else None,
        stream=texts.get("stream", "").lower() == "true",
        file=next((fields[name] for name in ("file", "image", "image[]") if name in fields), b""),
    )


def _named(*events: _Event) -> Iterator[tuple[float, bytes]]:
    """Frames of events that have their type in their data, as OpenAI's for media have."""
    for pause_s, kind, members in events:
        yield pause_s, b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **members}))


def _plain(text: str) -> Answer:
    body = text.encode()
    return Answer(content_type=b"text/plain; charset=utf-8", frames=iter(((0.0, body),)), size_bytes=len(body))


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"


def _paced(turn: _Turn) -> Iterator[tuple[float, str]]:
    """The words with the pause before each; there is none before the first."""
    pause_s = 0.0
    for word in turn.words:
        yield pause_s, word
        pause_s = turn.script.delay_s


def _stream(frames: Iterator[tuple[float, bytes]]) -> Answer:
    return Answer(content_type=b"text/event-stream; charset=utf-8", frames=frames)


def _json(document: dict[str, object], turn: _Turn | None = None) -> Answer:
    """A whole answer, in two frames so that it can be cut; it takes as long as its stream would have."""
    body = _encode(document)
    half = len(body) // 2
    pause_s = turn.script.delay_s * max(len(turn.words) - 1, 0) if turn is not None else 0.0
    return Answer(frames=iter(((pause_s, body[:half]), (0.0, body[half:]))), size_bytes=len(body))


def _refusal(status: int, message: str, *, code: str | None = "") -> Answer:
    """An error in OpenAI's shape; `code` where it is not the usual one of its status."""
    kind, usual = _STATUS_TYPES.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    code = usual if code == "" else code
    refused = _json({"error": {"message": message, "type": kind, "param": None, "code": code}})
    refused.status = status
    if status in (429, 503):
        refused.headers = ((b"retry-after", b"1"),)
    return refused


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": _EPOCH, "owned_by": "echo"}


def _vector(text: bytes, size: int) -> list[float]:
    """A direction that depends on nothing but the text, of length one."""
    raw = hashlib.shake_128(text).digest(2 * size)
    numbers = [number / 32768 - 1 for number in struct.unpack(f"<{size}H", raw)]
    length = sum(number * number for number in numbers) ** 0.5 or 1.0
    return [number / length for number in numbers]


def _everything_said(request: _Request) -> Iterator[str]:
    for message in request.messages:
        yield _text(message.get("content"))
    yield _text(request.prompt)
    yield _text(request.input)


def _last_said(request: _Request) -> str:
    """The last thing the user said, in whichever dialect."""
    turns = request.messages or (request.input if isinstance(request.input, list) else [])
    for message in reversed(turns):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text(message.get("content")).strip()
    return (_text(request.prompt) or _text(request.input)).strip()


def _text(content: object, depth: int = 4) -> str:
    """The text in a message's content: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    if depth and isinstance(content, dict):
        return _text(content.get("text") or content.get("content"), depth - 1)
    if depth and isinstance(content, list):
        return " ".join(filter(None, (_text(part, depth - 1) for part in content)))
    return ""

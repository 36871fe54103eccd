"""The answer to a responses request as it grows: output items, and in a stream the numbered events that tell of them.

Rules:
- One item after the other, in the order in which the model spoke: reasoning, text, calls, and again. Calls may be
  open together, as their arguments may come in turns.
- Every item is told of from beginning to end: added, its parts, their pieces, done. The last event repeats all of it.
- That repetition is this dialect's contract, and why this is the one translation whose state grows with the answer:
  what was said is kept, as JSON text, once. `ANSWER_BYTES_MAX` bounds it; an answer that outgrows it fails, honestly.
- Texts stay encoded from the moment they come: an event is put together from bytes.
- Ids are made of the request's own, so that a response can be found again by it.

Source: the API reference of OpenAI, "Responses: streaming events"; what official SDKs require is tried in
`tests/acceptance/test_responses_bridge.py`.
"""

from typing import Final

import msgspec

from gateway.api import Failure
from gateway.bridges.hub import UNREADABLE, encode
from gateway.bridges.reasoning import Detail, seal
from gateway.bridges.responses_request import CUSTOM_INPUT
from gateway.bridges.taps import Unwritable
from gateway.wire.sse import EVENT_BYTES_MAX
from gateway.wire.usage import Usage

#: As much of an answer is kept for its last event as a single event may have elsewhere.
ANSWER_BYTES_MAX: Final = EVENT_BYTES_MAX
#: What a detail of a reasoning that came in pieces has of each.
_GROWING: Final = ("text", "summary", "data", "signature")

_decode_any = msgspec.json.Decoder().decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_list = msgspec.json.Decoder(list[dict[str, object]]).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode


class AnswerTooLong(Unwritable):
    """The answer is longer than this gateway can repeat at the end of a response."""

    def failure(self) -> Failure:
        # It would be as long from anybody else: nobody is asked again, and nobody is thought the worse of.
        message = str(self.__doc__)
        return Failure(blame="caller", message=message, code="answer_too_long", status=502, detail=message)


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the request says about the answer."""

    #: The request's own id, without dashes.
    id: str
    streams: bool
    #: The members of the response object that only say the request back, as JSON without its braces.
    echo: bytes
    #: What to call the model where the provider does not say.
    model: str
    custom_tools: frozenset[str] = frozenset()
    #: Reasoning is shown as a summary, not as it is.
    summarises: bool = False
    #: The provider's reasoning members are wanted, to be sent back.
    seals: bool = False
    logprobs: bool = False


class _Item:
    """An output item that is not whole yet."""

    __slots__ = ("id", "index", "lead", "text")

    def __init__(self, item_id: bytes, index: int) -> None:
        self.id = item_id
        self.index = index
        #: What was said, as JSON text without its quotes.
        self.text = bytearray()
        #: A piece's event up to the piece.
        self.lead = b""


class _Message(_Item):
    """One with the parts that are whole, and the one that is not: `output_text`, `refusal`, or none."""

    __slots__ = ("annotations", "kind", "logprobs", "parts")

    def __init__(self, item_id: bytes, index: int) -> None:
        super().__init__(item_id, index)
        self.kind = b""
        self.parts: list[bytes] = []
        self.annotations: list[bytes] = []
        self.logprobs = bytearray()


class _Call(_Item):
    __slots__ = ("announced", "call_id", "custom", "name")

    def __init__(self, item_id: bytes, index: int, call_id: str) -> None:
        super().__init__(item_id, index)
        self.call_id = call_id
        self.name = ""
        self.custom = False
        #: How much of the text was told of; None before the item was.
        self.announced: int | None = None


class Output:
    """Takes what the model says, piece by piece. `taken` gives the events for it, where the caller streams."""

    __slots__ = (
        "_calls",
        "_created_s",
        "_details",
        "_events",
        "_items",
        "_message",
        "_model",
        "_reasoning",
        "_reasoning_name",
        "_room",
        "_sequence",
        "_service_tier",
        "_wishes",
        "told",
    )

    def __init__(self, wishes: Wishes, *, bytes_max: int = ANSWER_BYTES_MAX) -> None:
        #: How many events `taken` has given, which is the number of the next.
        self.told = 0
        self._sequence = 0
        self._wishes = wishes
        self._events: list[bytes] = []
        #: By index; None for those that are open.
        self._items: list[bytes | None] = []
        self._room = bytes_max
        self._created_s = 0
        self._model = b""
        self._service_tier = b"null"
        self._reasoning: _Item | None = None
        self._reasoning_name = ""
        self._details: list[dict[str, object]] = []
        self._message: _Message | None = None
        #: By number, in the order in which they began.
        self._calls: list[_Call] = []

    @property
    def begun(self) -> bool:
        return bool(self._model)

    def taken(self) -> bytes:
        """The events since the last time."""
        events = self._events
        if not events:
            return b""
        out = events[0] if len(events) == 1 else b"".join(events)
        events.clear()
        self.told = self._sequence
        return out

    def begin(self, *, model: str, created_s: int) -> None:
        self._model = encode(model or self._wishes.model)
        self._created_s = created_s
        if self._wishes.streams:
            response = self._response("in_progress", b"null", b"null")
            self._tell(b"response.created", b'"response":' + response)
            self._tell(b"response.in_progress", b'"response":' + response)

    def serve_as(self, tier: bytes) -> None:
        """Say what the answer is served as, JSON text; the last word counts."""
        self._service_tier = tier

    # -- what the model says -----------------------------------------------------------------------------------

    def think(self, text: str, name: str) -> None:
        """A piece of reasoning, which the provider calls `name`."""
        body = self._keep(encode(text)[1:-1])
        item = self._reasoning
        if item is None:
            self._close_message("completed")
            item = self._open_reasoning()
        self._reasoning_name = name
        if self._wishes.streams:
            if not item.lead:
                self._open_reasoning_part(item)
            self._piece(item.lead, body, b"")
        item.text += body

    def detail(self, raw: bytes) -> None:
        """Reasoning in the provider's own form, of which pieces make a whole again."""
        if not self._wishes.seals:
            return
        self._keep(raw)
        try:
            details = _decode_list(raw)
        except UNREADABLE:
            return
        if self._reasoning is None:
            self._close_message("completed")
            self._open_reasoning()
        for detail in details:
            last = self._details[-1] if self._details else None
            # What has an id is whole: the signature of a call.
            named = "id" in detail
            if last is None or named or any(last.get(name) != detail.get(name) for name in ("type", "index")):
                self._details.append(detail)
            else:
                _grow(last, detail)

    def sign_call(self, detail: Detail) -> None:
        """The signature of a call that comes next.

        Of several at once only the first has one; between them, it could not come back with what it belongs to.
        """
        if self._wishes.seals and not self._calls:
            self.detail(encode([detail]))

    def say(self, text: str, logprobs: bytes = b"") -> None:
        """A piece of text; `logprobs` is a list, as JSON, or empty."""
        body = self._keep(encode(text)[1:-1])
        message = self._message
        if message is None or message.kind != b"output_text":
            message = self._open_part(b"output_text")
        message.text += body
        if logprobs:
            self._keep(logprobs)
            message.logprobs += (b"," if message.logprobs else b"") + logprobs[1:-1]
        if self._wishes.streams:
            self._piece(message.lead, body, b',"logprobs":' + (logprobs or b"[]"))

    def refuse(self, text: str) -> None:
        body = self._keep(encode(text)[1:-1])
        message = self._message
        if message is None or message.kind != b"refusal":
            message = self._open_part(b"refusal")
        message.text += body
        if self._wishes.streams:
            self._piece(message.lead, body, b"")

    def annotate(self, raw: bytes) -> None:
        """Sources of the text: the hub has their members one level deeper than this dialect."""
        try:
            annotations = _decode_list(raw)
        except UNREADABLE:
            return
        for annotation in annotations:
            kind = annotation.get("type")
            inner = annotation.get(kind) if isinstance(kind, str) else None
            flat = encode({"type": kind, **inner} if isinstance(inner, dict) else annotation)
            self._keep(flat)
            message = self._message
            if message is None or message.kind != b"output_text":
                message = self._open_part(b"output_text")
            if self._wishes.streams:
                place = b'"item_id":"%b","output_index":%d,"content_index":%d,"annotation_index":%d' % (
                    message.id,
                    message.index,
                    len(message.parts),
                    len(message.annotations),
                )
                self._tell(b"response.output_text.annotation.added", place + b',"annotation":' + flat)
            message.annotations.append(flat)

    def call(self, number: int, call_id: str | None, name: str | None, arguments: str) -> None:
        """A call to a tool or a piece of one; those of an answer are numbered from 0."""
        call = self._calls[number] if number < len(self._calls) else self._open_call(call_id)
        if name and call.announced is None:
            call.name = name
            call.custom = name in self._wishes.custom_tools
        call.text += self._keep(encode(arguments)[1:-1])
        if call.name:
            self._tell_call(call)

    def draw(self, raw: bytes) -> None:
        """Pictures, as `data:` URLs."""
        try:
            pictures = _decode_list(raw)
        except UNREADABLE:
            return
        for picture in pictures:
            place = picture.get("image_url")
            url = place.get("url") if isinstance(place, dict) else None
            kind, found, data = url.partition(";base64,") if isinstance(url, str) else ("", "", "")
            if found:
                self._add_picture(kind.rpartition("/")[2], data)

    # -- the end -----------------------------------------------------------------------------------------------

    def finish(self, reason: str | None, usage: Usage) -> bytes:
        """Close everything; the whole response. A stream's last event is among those that `taken` gives."""
        incomplete = _INCOMPLETE.get(reason or "")
        status = "incomplete" if incomplete else "completed"
        self._close_reasoning(status)
        self._close_message(status)
        for call in self._calls:
            self._close_call(call, status)
        details = b'{"reason":"%b"}' % incomplete if incomplete else b"null"
        response = self._response(status, details, _usage(usage))
        if self._wishes.streams:
            self._tell(b"response." + status.encode(), b'"response":' + response)
        return response

    # -- events ------------------------------------------------------------------------------------------------

    def _tell(self, kind: bytes, members: bytes) -> None:
        self._events.append(
            b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (kind, kind, self._sequence, members)
        )
        self._sequence += 1

    def _piece(self, lead: bytes, body: bytes, rest: bytes) -> None:
        self._events.append(b'%b%b"%b,"sequence_number":%d}\n\n' % (lead, body, rest, self._sequence))
        self._sequence += 1

    def _keep(self, data: bytes) -> bytes:
        """`data`, if there is room for it.

        Raises:
            AnswerTooLong: there is not.
        """
        self._room -= len(data)
        if self._room < 0:
            raise AnswerTooLong
        return data

    def _next(self, prefix: bytes) -> tuple[bytes, int]:
        index = len(self._items)
        self._items.append(None)
        return b"%b_%b%02d" % (prefix, self._wishes.id.encode("ascii"), index), index

    def _add(self, item: _Item, body: bytes) -> None:
        """Tell of a new item."""
        if self._wishes.streams:
            self._tell(b"response.output_item.added", b'"output_index":%d,"item":%b' % (item.index, body))

    def _done(self, item: _Item, body: bytes) -> None:
        self._items[item.index] = body
        if self._wishes.streams:
            self._tell(b"response.output_item.done", b'"output_index":%d,"item":%b' % (item.index, body))

    # -- reasoning ---------------------------------------------------------------------------------------------

    def _open_reasoning(self) -> _Item:
        item = self._reasoning = _Item(*self._next(b"rs"))
        self._add(item, b'{"id":"%b","type":"reasoning","status":"in_progress","summary":[]}' % item.id)
        return item

    def _open_reasoning_part(self, item: _Item) -> None:
        place = b'"item_id":"%b","output_index":%d,' % (item.id, item.index)
        if self._wishes.summarises:
            place += b'"summary_index":0'
            part = b'{"type":"summary_text","text":""}'
            self._tell(b"response.reasoning_summary_part.added", place + b',"part":' + part)
            item.lead = _lead(b"response.reasoning_summary_text.delta", place)
        else:
            place += b'"content_index":0'
            part = b'{"type":"reasoning_text","text":""}'
            self._tell(b"response.content_part.added", place + b',"part":' + part)
            item.lead = _lead(b"response.reasoning_text.delta", place)

    def _close_reasoning(self, status: str) -> None:
        item = self._reasoning
        if item is None:
            return
        self._reasoning = None
        text = bytes(item.text)
        summarises = self._wishes.summarises
        part = b'{"type":"%b","text":"%b"}' % (b"summary_text" if summarises else b"reasoning_text", text)
        if not text:
            part = b""
        elif self._wishes.streams:
            place = b'"item_id":"%b","output_index":%d,' % (item.id, item.index)
            if summarises:
                place += b'"summary_index":0,'
                self._tell(b"response.reasoning_summary_text.done", b'%b"text":"%b"' % (place, text))
                self._tell(b"response.reasoning_summary_part.done", b'%b"part":%b' % (place, part))
            else:
                place += b'"content_index":0,'
                self._tell(b"response.reasoning_text.done", b'%b"text":"%b"' % (place, text))
                self._tell(b"response.content_part.done", b'%b"part":%b' % (place, part))
        shown = b'"summary":[%b]' % part if summarises else b'"summary":[],"content":[%b]' % part
        sealed = self._sealed(text)
        self._done(
            item,
            b'{"id":"%b","type":"reasoning","status":"%b",%b%b}' % (item.id, status.encode(), shown, sealed),
        )

    def _sealed(self, text: bytes) -> bytes:
        if not self._wishes.seals:
            return b""
        members: dict[str, object] = {}
        if text:
            members[self._reasoning_name] = msgspec.Raw(b'"%b"' % text)
        if self._details:
            members["reasoning_details"] = self._details
            self._details = []
        return b',"encrypted_content":' + encode(seal(members)) if members else b""

    # -- messages ----------------------------------------------------------------------------------------------

    def _open_part(self, kind: bytes) -> _Message:
        message = self._message
        if message is None:
            self._close_reasoning("completed")
            message = self._message = _Message(*self._next(b"msg"))
            empty = b'{"id":"%b","type":"message","status":"in_progress","role":"assistant","content":[]}'
            self._add(message, empty % message.id)
        else:
            self._close_part(message)
        message.kind = kind
        if self._wishes.streams:
            place = _place(message)
            self._tell(b"response.content_part.added", place + b',"part":' + _EMPTY_PARTS[kind])
            message.lead = _lead(b"response.%b.delta" % kind, place)
        return message

    def _close_part(self, message: _Message) -> None:
        kind, text = message.kind, bytes(message.text)
        logprobs = b"[%b]" % bytes(message.logprobs)
        if kind == b"output_text":
            part = b'{"type":"output_text","text":"%b","annotations":[%b],"logprobs":%b}' % (
                text,
                b",".join(message.annotations),
                logprobs,
            )
            said = b'"text":"%b","logprobs":%b' % (text, logprobs)
        else:
            part = b'{"type":"refusal","refusal":"%b"}' % text
            said = b'"refusal":"%b"' % text
        if self._wishes.streams:
            place = _place(message)
            self._tell(b"response.%b.done" % kind, place + b"," + said)
            self._tell(b"response.content_part.done", place + b',"part":' + part)
        message.parts.append(part)
        message.text = bytearray()
        message.annotations = []
        message.logprobs = bytearray()

    def _close_message(self, status: str) -> None:
        message = self._message
        if message is None:
            return
        self._message = None
        self._close_part(message)
        self._done(
            message,
            b'{"id":"%b","type":"message","status":"%b","role":"assistant","content":[%b]}'
            % (message.id, status.encode(), b",".join(message.parts)),
        )

    # -- calls -------------------------------------------------------------------------------------------------

    def _open_call(self, call_id: str | None) -> _Call:
        self._close_reasoning("completed")
        self._close_message("completed")
        item_id, index = self._next(b"fc")
        call = _Call(item_id, index, call_id or f"call_{self._wishes.id}{index:02}")
        self._calls.append(call)
        return call

    def _tell_call(self, call: _Call) -> None:
        """Tell of the call, and of what its arguments grew by. A custom tool's are only known when they are whole."""
        streams = self._wishes.streams
        if call.announced is None:
            call.announced = 0
            self._add(call, self._call_item(call, b"", "in_progress"))
            if streams and not call.custom:
                place = b'"item_id":"%b","output_index":%d' % (call.id, call.index)
                call.lead = _lead(b"response.function_call_arguments.delta", place)
        if streams and not call.custom and len(call.text) > call.announced:
            self._piece(call.lead, bytes(call.text[call.announced :]), b"")
            call.announced = len(call.text)

    def _close_call(self, call: _Call, status: str) -> None:
        self._tell_call(call)
        text = bytes(call.text)
        if call.custom:
            text = _custom_input(text)
        if self._wishes.streams:
            place = b'"item_id":"%b","output_index":%d,' % (call.id, call.index)
            if call.custom:
                self._tell(b"response.custom_tool_call_input.delta", b'%b"delta":"%b"' % (place, text))
                self._tell(b"response.custom_tool_call_input.done", b'%b"input":"%b"' % (place, text))
            else:
                name = encode(call.name)
                self._tell(
                    b"response.function_call_arguments.done", b'%b"name":%b,"arguments":"%b"' % (place, name, text)
                )
        self._done(call, self._call_item(call, text, status))

    @staticmethod
    def _call_item(call: _Call, text: bytes, status: str) -> bytes:
        kind, member = (b"custom_tool_call", b"input") if call.custom else (b"function_call", b"arguments")
        return b'{"id":"%b","type":"%b","status":"%b","call_id":%b,"name":%b,"%b":"%b"}' % (
            call.id,
            kind,
            status.encode(),
            encode(call.call_id),
            encode(call.name),
            member,
            text,
        )

    # -- pictures ----------------------------------------------------------------------------------------------

    def _add_picture(self, kind: str, data: str) -> None:
        self._close_reasoning("completed")
        self._close_message("completed")
        self._keep(data.encode("utf-8", "replace"))
        item = _Item(*self._next(b"ig"))
        picture = b'{"id":"%b","type":"image_generation_call","status":"%b","output_format":%b,"result":%b}'
        self._add(item, picture % (item.id, b"in_progress", encode(kind), b"null"))
        self._done(item, picture % (item.id, b"completed", encode(kind), encode(data)))

    # -- the object --------------------------------------------------------------------------------------------

    def _response(self, status: str, incomplete: bytes, usage: bytes) -> bytes:
        items = b",".join([item for item in self._items if item is not None])
        return (
            b'{"id":"resp_%b","object":"response","created_at":%d,"status":"%b","error":null,'
            b'"incomplete_details":%b,"model":%b,"output":[%b],"usage":%b,"service_tier":%b,%b}'
        ) % (
            self._wishes.id.encode("ascii"),
            self._created_s,
            status.encode(),
            incomplete,
            self._model,
            items,
            usage,
            self._service_tier,
            self._wishes.echo,
        )


#: What is not whole, by the hub's finish reasons and those of providers that have their own.
_INCOMPLETE: Final = {
    "length": b"max_output_tokens",
    "max_tokens": b"max_output_tokens",
    "model_length": b"max_output_tokens",
    "content_filter": b"content_filter",
}
_EMPTY_PARTS: Final = {
    b"output_text": b'{"type":"output_text","text":"","annotations":[],"logprobs":[]}',
    b"refusal": b'{"type":"refusal","refusal":""}',
}


def _lead(kind: bytes, place: bytes) -> bytes:
    """A piece's event up to the piece and its opening quote."""
    return b'event: %b\ndata: {"type":"%b",%b,"delta":"' % (kind, kind, place)


def _place(message: _Message) -> bytes:
    return b'"item_id":"%b","output_index":%d,"content_index":%d' % (message.id, message.index, len(message.parts))


def _custom_input(arguments: bytes) -> bytes:
    """The text that a custom tool is called with; all there is, where the model did not keep to the form."""
    try:
        found = _decode_any(_decode_text(b'"%b"' % arguments))
    except UNREADABLE:
        return arguments
    text = found.get(CUSTOM_INPUT) if isinstance(found, dict) else None
    return encode(text)[1:-1] if isinstance(text, str) else arguments


def _grow(detail: dict[str, object], more: dict[str, object]) -> None:
    """Put the next piece of a detail to what there is of it."""
    for name, value in more.items():
        had = detail.get(name)
        if name in _GROWING and isinstance(had, str) and isinstance(value, str):
            detail[name] = had + value
        elif value is not None:
            detail[name] = value


def _usage(usage: Usage) -> bytes:
    return encode(
        {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.input_cached_tokens,
                "cache_write_tokens": usage.input_cache_write_tokens + usage.input_cache_write_1h_tokens,
            },
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.output_reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
    )

"""What the gateway must know of a request body, where in the bytes it stands, and how to change just that.

Rules:
- The body is never decoded into objects and never encoded again: `rewrite` replaces spans, every other byte stays.
- One reading only. Where two parsers could read different things (a watched member twice, `Model` beside `model`, an
  escaped spelling of either) the body is refused: never authorise one model and send another.
- What a provider might accept is let through: unknown members, repeated unknown members, `NaN`, invalid UTF-8, lone
  surrogates, a byte order mark, a `stream` that is not a boolean. What no parser accepts is refused.
- Work is linear in the body and done in C; Python runs once for each top-level member, `MEMBERS_MAX` of them at most.
  Nesting is bounded by the interpreter's own recursion limit, a little under 1,000 levels.

How it reads, and why that is right: msgspec gives every top-level member with its raw value, but of a repeated name
only the last, and no offsets. So the members are walked over the text in the order given: each must stand where the
one before ended, with exactly that value. With a repeated name the walk can't come out at the closing brace, and the
body is then read member by member.
"""

import re
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter

import msgspec

from gateway.errors import BadRequest
from gateway.wire.jsontext import CLOSING, OPENING, TOKEN, mask_escapes
from gateway.wire.sse import BOM

#: Half-open byte range `[start, end)` in the body.
Span = tuple[int, int]

#: A request with more top-level members than this is refused.
MEMBERS_MAX = 10_000
#: How many brackets and strings of one value are stepped over in Python, where a repeated name makes that necessary.
TOKENS_MAX = 200_000


class Peek(msgspec.Struct, frozen=True, kw_only=True):
    """The top-level members the gateway reads, with the byte spans of those it may splice.

    A span covers the JSON value alone (for a string with its quotes). In a form body it covers the field's bytes.
    """

    model: str | None = None
    model_span: Span | None = None
    stream: bool = False
    stream_options_span: Span | None = None
    include_usage: bool | None = None
    include_usage_span: Span | None = None
    #: Largest of `max_tokens`, `max_completion_tokens`, `max_output_tokens`; None where the caller set none.
    max_output_tokens: int | None = None
    #: How many answers were asked for: `n`, or `best_of` where that is more, as those are generated too.
    n: int = 1
    #: Offset of the object's closing brace, where a member can be inserted.
    end: int = 0
    #: True for `{}`: an inserted member then needs no comma before it.
    empty: bool = False
    #: What the caller asks to be served as, `flex` or `priority` for example; it changes the price. So does the
    #: `fast` that Anthropic's callers ask for as their `speed`.
    service_tier: str | None = None
    #: Further models and wishes about providers. They are for the gateway: a provider that took them for its own
    #: could serve another model than the one that was authorised.
    models_span: Span | None = None
    provider_span: Span | None = None
    #: The answer is not waited for: the provider works on it, and it is asked for later.
    background: bool = False
    #: Whether the provider is asked to keep the answer; None where the caller leaves it at what is usual.
    store: bool | None = None
    #: It goes on from an earlier answer or a conversation that the provider keeps.
    continues: bool = False


WATCHED = frozenset(
    {
        "model",
        "models",
        "provider",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "n",
        "best_of",
        "service_tier",
        "speed",
        "background",
        "store",
        # Whose they are is looked up: never authorise one and send another.
        "previous_response_id",
        "conversation",
    }
)
_LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
_EARLIER = frozenset({"previous_response_id", "conversation"})
_ANSWERS = frozenset({"n", "best_of"})

# The members one meets, spelled as encoders without spaces write them: these are stepped over without a regex.
_USUAL = {
    name: b'"%b":' % name.encode()
    for name in (
        *WATCHED,
        *("messages", "prompt", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls"),
        *("temperature", "top_p", "top_k", "stop", "seed", "presence_penalty", "frequency_penalty", "logprobs"),
        *("response_format", "reasoning_effort", "reasoning", "text", "user", "metadata", "verbosity"),
        *("encoding_format", "dimensions", "include", "truncation", "safety_identifier"),
        *("prompt_cache_key", "logit_bias", "top_logprobs", "modalities", "audio", "thinking", "system"),
    )
}

_HEAD = re.compile(rb'[ \t\r\n]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\r\n]*:[ \t\r\n]*')
_OPEN = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")
_COMMA = re.compile(rb"[ \t\r\n]*,")
_END = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*\Z")
_SCALAR = re.compile(rb"[^ \t\r\n,\]}]+")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_A_NUMBER = re.compile(rb"NaN|Infinity")
_ASCII_ONLY = bytes(byte if byte < 0x80 else 0x7F for byte in range(256))
_FAST = b'"fast"'
_BOOLEANS = {b"true": True, b"false": False}
# Longer numbers are no counts, and long ones are slow to read.
_DIGITS_MAX = 18
_COUNT_MAX: int = 10**_DIGITS_MAX

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


def peek(body: bytes) -> Peek:
    """Read a JSON request body.

    A missing `model` is None: whether that will do is the caller's to decide.

    Raises:
        BadRequest: not a JSON object, not whole, nested too deeply, a watched member twice, or a `model` that is no
            string; `param` names the member.
    """
    spans: dict[str, Span] | None = None
    try:
        members = _decode(body)
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        members = _decode_softened(body, error)
    else:
        # Looking at more than will be taken costs four times what reading them did.
        if len(members) <= MEMBERS_MAX:
            spans = _walk(body, members)
    if len(members) > MEMBERS_MAX:
        raise BadRequest("The request body has too many members.")
    if spans is None:
        spans = _search(body, WATCHED)
    return _read(body, spans, end=body.rfind(b"}"), empty=not members)


def find_members(body: bytes, names: Collection[str]) -> dict[str, bytes]:
    """The raw values of some top-level members of a body that `peek` has read.

    Raises:
        BadRequest: one of them is there twice.
    """
    return {name: body[start:end] for name, (start, end) in _search(body, names, owner="").items()}


def members_among(body: bytes, names: Collection[str]) -> tuple[str, ...]:
    """Which of `names` the top level of a body has that `peek` has read, and not only as null; in its order."""
    found = (name for name, _, (start, end) in _members(body) if name in names and body[start:end] != b"null")
    return tuple(dict.fromkeys(found))


def splice(body: bytes, edits: Sequence[tuple[Span, bytes]]) -> bytes:
    """`body` with each span replaced. An empty span inserts; spans must not overlap.

    Raises:
        ValueError: two spans overlap.
    """
    parts: list[bytes] = []
    at = 0
    for (start, end), new in sorted(edits, key=itemgetter(0)):
        if start < at:
            raise ValueError(f"edits overlap at byte {start}")
        parts += (body[at:start], new)
        at = end
    parts.append(body[at:])
    return b"".join(parts)


def insert_member(peeked: Peek, name: str, value: bytes, *, first: bool | None = None) -> tuple[Span, bytes]:
    """The edit that adds a top-level member; `value` is JSON. `first` where no other member stands before it."""
    lead = b"" if (peeked.empty if first is None else first) else b","
    return (peeked.end, peeked.end), lead + _encode(name) + b":" + value


def rewrite(
    body: bytes,
    peeked: Peek,
    *,
    model: str | None = None,
    include_usage: bool = False,
    drop: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
) -> bytes:
    """The body a provider gets; the same object where nothing changes.

    `model` is what the provider calls the model. `include_usage` asks a streamed answer to report its usage; it does
    nothing where the caller asked already or does not stream. `drop` removes top-level members, `rename` gives others
    the name this provider uses; where that name is there already, the member is removed instead.
    """
    edits: list[tuple[Span, bytes]] = []
    gone: Collection[str] = ()
    bare = peeked.empty
    if drop or rename:
        gone, bare = _reshape(body, drop, rename or {}, edits)
    added = b""
    if model is not None and model != peeked.model and "model" not in gone:
        if peeked.model_span is not None:
            edits.append((peeked.model_span, _encode(model)))
        else:
            added = b'"model":' + _encode(model)
    if include_usage and peeked.stream and not peeked.include_usage and "stream_options" not in gone:
        if peeked.stream_options_span is not None:
            edits += _usage_edits(body, peeked, peeked.stream_options_span)
        else:
            added += (b"," if added else b"") + b'"stream_options":{"include_usage":true}'
    if added:
        edits.append(((peeked.end, peeked.end), added if bare else b"," + added))
    return splice(body, edits) if edits else body


# -- reading -------------------------------------------------------------------------------------------------


def _walk(text: bytes, members: dict[str, msgspec.Raw]) -> dict[str, Span] | None:
    """The value spans of the watched members, or None where `members` do not account for the whole text."""
    spans: dict[str, Span] = {}
    at = 1 if text[0] == 0x7B else _after(_OPEN, text, 0)
    usual_of, stands_at = _USUAL.get, text.startswith
    for key, raw in members.items():
        usual = usual_of(key)
        if usual is not None and stands_at(member := usual + raw, at):
            end = at + len(member)
            if key in WATCHED:
                spans[key] = (at + len(usual), end)
        elif usual is not None and stands_at(member := usual + b" " + raw, at):
            end = at + len(member)
            if key in WATCHED:
                spans[key] = (at + len(usual) + 1, end)
        elif (span := _stands(text, at, key, raw)) is not None:
            end = span[1]
            if key in WATCHED:
                spans[key] = span
            else:
                _refuse_lookalike(key, members)
        else:
            return None
        after = text[end]
        if after == 0x2C:
            # One space after the comma is as usual as none.
            at = end + 2 if text[end + 1] == 0x20 else end + 1
        elif after == 0x7D:
            at = end
        else:
            at = _after(_COMMA, text, end)
    if text[at] == 0x7D and at == len(text) - 1:
        return spans
    return spans if _END.match(text, at) else None


def _stands(text: bytes, at: int, key: str, raw: msgspec.Raw) -> Span | None:
    """The span of the value where a member with this name and value begins at `at`, however it is spelled."""
    head = _HEAD.match(text, at)
    if head is None or _name(head[1]) != key:
        return None
    start = head.end()
    value = bytes(raw)
    return (start, start + len(value)) if text.startswith(value, start) else None


def _search(body: bytes, names: Collection[str], *, owner: str = "") -> dict[str, Span]:
    """The value spans of `names` in an object, looking at each member; each may be there once."""
    spans: dict[str, Span] = {}
    others: set[str] = set()
    for name, _, span in _members(body):
        if name not in names:
            others.add(name)
        elif name in spans:
            raise _repeated(owner + name)
        else:
            spans[name] = span
    if not owner:
        for name in others:
            _refuse_lookalike(name, spans)
    return spans


def _members(body: bytes) -> Iterator[tuple[str, Span, Span]]:
    """Name, span of the name with its quotes and span of the value, of each member of an object known to be whole."""
    masked = mask_escapes(body)
    at = _after(_OPEN, body, 0)
    for _ in range(MEMBERS_MAX):
        head = _HEAD.match(body, at)
        if head is None:
            return
        end = _value_end(masked, head.end())
        yield _name(head[1]), head.span(1), (head.end(), end)
        at = _after(_COMMA, body, end)
    raise BadRequest("The request body has too many members.")


def _value_end(masked: bytes, start: int) -> int:
    """Where the value that begins at `start` ends, in text whose quotes all delimit strings."""
    first = masked[start : start + 1]
    if first == b'"':
        return masked.index(b'"', start + 1) + 1
    if first not in OPENING:
        return _after(_SCALAR, masked, start)
    depth = 0
    for token in islice(TOKEN.finditer(masked, start), TOKENS_MAX):
        mark = token[0]
        if mark in OPENING:
            depth += 1
        elif mark in CLOSING:
            depth -= 1
            if depth == 0:
                return token.end()
    raise BadRequest("The request body is too intricate to be read safely: send each member once, as strict JSON.")


def _read(body: bytes, spans: dict[str, Span], *, end: int, empty: bool) -> Peek:
    model = tier = usage = usage_span = limit = store = None
    stream = background = continues = False
    n = 1
    for name, (start, stop) in spans.items():
        raw = body[start:stop]
        if name == "model":
            model = _model(raw)
        elif name == "stream":
            stream = raw == b"true"
        elif name in _LIMITS:
            count = _count(raw)
            limit = limit if count is None else max(limit or 0, count)
        elif name in _ANSWERS:
            n = max(n, _count(raw) or 1)
        elif name == "stream_options" and raw.startswith(b"{"):
            found = _search(raw, ("include_usage",), owner="stream_options.").get("include_usage")
            if found is not None:
                usage_span = (start + found[0], start + found[1])
                usage = _BOOLEANS.get(body[usage_span[0] : usage_span[1]])
        elif name == "service_tier":
            tier = tier or _text(raw)
        elif name == "speed" and raw == _FAST:
            tier = "fast"
        elif name == "background":
            background = raw == b"true"
        elif name == "store":
            store = _BOOLEANS.get(raw)
        elif name in _EARLIER:
            continues = continues or raw != b"null"
    return Peek(
        model=model,
        model_span=spans.get("model"),
        stream=stream,
        stream_options_span=spans.get("stream_options"),
        include_usage=usage,
        include_usage_span=usage_span,
        max_output_tokens=limit,
        n=n,
        end=end,
        empty=empty,
        service_tier=tier,
        models_span=spans.get("models"),
        provider_span=spans.get("provider"),
        background=background,
        store=store,
        continues=continues,
    )


def _decode_softened(body: bytes, error: Exception) -> dict[str, msgspec.Raw]:
    """Check a body that strict JSON refuses, with what a provider may accept all the same made harmless.

    Every replacement keeps the length, and none can make a watched name: those are ASCII letters and `_` alone.
    """
    if not body.strip():
        raise BadRequest("The request body is empty; send a JSON object.") from None
    soft = b"   " + body[3:] if body.startswith(BOM) else body
    soft = soft if soft.isascii() else soft.translate(_ASCII_ONLY)
    soft = _SURROGATE.sub(rb"\\u00", soft)
    soft = _NOT_A_NUMBER.sub(lambda found: b"0.".ljust(len(found[0]), b"0"), soft)
    try:
        return _decode(soft)
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise BadRequest("The request body must be a JSON object.") from None
    except msgspec.DecodeError:
        # The first complaint: it is about what was sent.
        reason = str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"The request body is not valid JSON: {reason}.") from None


def _refuse_lookalike(name: str, present: Container[str]) -> None:
    """Refuse `Model` beside `model`, and alone: some servers match names without regard to case."""
    folded = name.casefold()
    if folded != name and folded in WATCHED and (folded in present or folded == "model"):
        raise _repeated(folded)


def _repeated(name: str) -> BadRequest:
    return BadRequest(f"The member `{name}` must be there once, spelled like this.", param=name, code="invalid_value")


def _after(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Where the match that begins at `at` ends, or `at` itself."""
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _name(token: bytes) -> str:
    """The name that a quoted token spells; what is not text in it is replaced, so that it equals no watched name."""
    try:
        return _decode_text(token)
    except (msgspec.DecodeError, UnicodeDecodeError):
        softened = _SURROGATE.sub(rb"\\u00", token.decode("utf-8", "replace").encode())
        return _decode_text(softened)


def _text(raw: bytes) -> str | None:
    try:
        return _decode_text(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _model(raw: bytes) -> str:
    model = _text(raw)
    if model is None:
        raise BadRequest("`model` must be a string.", param="model", code="invalid_type")
    return model


def _count(raw: bytes) -> int | None:
    """A count that is not negative, however the number is spelled; None for what is none."""
    if raw.isdigit():
        return int(raw) if len(raw) <= _DIGITS_MAX else _COUNT_MAX
    try:
        value = float(raw)
    except ValueError:
        return None
    if value > _COUNT_MAX:
        return _COUNT_MAX
    if not value >= 0:
        return None
    whole = int(value)
    return whole if whole == value else None


# -- writing -------------------------------------------------------------------------------------------------


def _usage_edits(body: bytes, peeked: Peek, span: Span) -> list[tuple[Span, bytes]]:
    """What makes an existing `stream_options` ask for usage; nothing where it is not what OpenAI describes."""
    start, end = span
    value = body[start:end]
    if value == b"null":
        return [(span, b'{"include_usage":true}')]
    if value[:1] != b"{":
        return []
    if (asked := peeked.include_usage_span) is not None:
        return [(asked, b"true")] if body[asked[0] : asked[1]] in (b"false", b"null") else []
    lead = b"," if value[1:-1].strip() else b""
    return [((end - 1, end - 1), lead + b'"include_usage":true')]


def _reshape(
    body: bytes, drop: Collection[str], rename: Mapping[str, str], edits: list[tuple[Span, bytes]]
) -> tuple[set[str], bool]:
    """Add the edits that drop and rename members; which names are gone, and whether none is left."""
    members = list(_members(body))
    taken = {name for name, _, _ in members if name not in drop}
    gone: set[str] = set()
    kept_end = -1
    run: Span | None = None
    for index, (name, name_span, value_span) in enumerate(members):
        new = rename.get(name)
        if name in drop or (new is not None and new in taken):
            gone.add(name)
            # With the comma and white space up to the next member; the last ones with what comes before them.
            until = members[index + 1][1][0] if index + 1 < len(members) else value_span[1]
            run = (run[0] if run else name_span[0], until)
            continue
        if run is not None:
            edits.append((run, b""))
            run = None
        if new is not None:
            taken.add(new)
            edits.append((name_span, _encode(new)))
        kept_end = value_span[1]
    if run is not None:
        edits.append(((run[0] if kept_end < 0 else kept_end, run[1]), b""))
    return gone, kept_end < 0

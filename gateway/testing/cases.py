"""Golden cases: both sides of one conversation in one file, replayed against an adapter.

A case (`NAME.case`, in a folder for each adapter) is text in sections:

    == provider           the provider's table, as TOML; `upstream_model` is what the offer calls the model
    == request            what the caller sends: method and path, headers, a blank line, the body
    == sent               what the provider gets: method and URL, headers, a blank line, the body
    == dropped            members of the request that the provider could not be told, in a line, as far as a caller is
                          told of them; left out for none
    == refused            in place of everything below `request`: this is not served; the parameter that the refusal
                          names, and its message
    == upstream           what the provider answers: status, headers, a blank line, the body; `== upstream cut` breaks
                          off there, `== upstream frames` has a line for each frame of an event stream of AWS
    == downstream         the body the caller gets
    == usage              what was counted, as JSON, the fields that are not zero; `null` for nothing reported
    == failure            for an error answer, in place of the last two: what it is taken for. After the last two: the
                          error that a good answer turned out to be

A body is everything up to the line break before the next section. The answer is fed to the adapter whole, byte by
byte and in random pieces: it has to come out the same. Where the adapter does not serve the caller's dialect, a
bridge of the gateway's stands between them, as it would when serving.
"""

import difflib
import functools
import random
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from gateway.api import (
    Adapter,
    BadRequest,
    Call,
    Failure,
    Headers,
    Offer,
    ProviderConfig,
    ResponseHead,
    Secret,
    Selective,
    Tap,
    UpstreamRequest,
    Usage,
)
from gateway.bridges import BRIDGES
from gateway.bridges.bridge import Bridge
from gateway.registry import ADAPTERS, discover, load_adapter
from gateway.wire.dialects import GEMINI_DIALECTS
from gateway.wire.form import peek_form
from gateway.wire.gemini import peek_gemini
from gateway.wire.headers import name_list
from gateway.wire.paths import resolve
from gateway.wire.peek import peek

#: How often an answer is fed in random pieces.
SPLITS = 20
#: The cases that every adapter should have.
KINDS = frozenset({"pass_through", "stream_usage", "tool_call", "error_body", "cut"})
#: As much of a difference as is shown.
_SHOWN_LINES_MAX = 60

Classes = Mapping[str, type[Adapter]]


class CaseFailed(AssertionError):
    """An adapter did something else than the case says."""


def cases(folder: Path | str) -> list[Path]:
    """The cases in a folder and those below it, in order."""
    return sorted(Path(folder).rglob("*.case"))


class Case:
    """One case, read. `adapters` are classes by name, for what is not installed.

    Raises:
        ConfigError: the adapter refuses the table, or is not installed.
        CaseFailed: the file is no case.
    """

    def __init__(self, path: Path, *, adapters: Classes | None = None) -> None:
        self.path = path
        self.sections: dict[str, bytes] = {}
        self.cut = False
        name = ""
        for part in (b"\n" + path.read_bytes()).split(b"\n== ")[1:]:
            title, _, content = part.partition(b"\n")
            name, *rest = title.decode().split()
            self.cut = self.cut or "cut" in rest
            self.sections[name] = framed(content) if "frames" in rest else content
        if missing := {"provider", "request"} - self.sections.keys():
            raise CaseFailed(f"{path}: no section {min(missing)}")
        # The last section ends with the file, not with the next one's line.
        self.sections[name] = self.sections[name].removesuffix(b"\n")

        table = tomllib.loads(self.sections["provider"].decode())
        #: What the table says the provider's key is; must not be seen anywhere it does not belong.
        self.api_key: str = table.get("api_key", "")
        self.call = _call(self.sections["request"])
        model = self.call.model
        self.offer = Offer(model=model, provider="case", upstream_model=table.pop("upstream_model", model))
        self.adapter_name: str = table.pop("adapter")
        self.adapter_class = (adapters or {}).get(self.adapter_name) or _installed(self.adapter_name)
        self.config = ProviderConfig(
            name="case",
            base_url=table.pop("base_url", None),
            api_key=Secret(key) if (key := table.pop("api_key", None)) else None,
            extra=table,
        )
        self.adapter = self.adapter_class()
        self.adapter.configure(self.config)
        served = self.adapter.dialects | getattr(self.adapter, "translates", frozenset())
        #: What stands between caller and adapter; None where the adapter serves the caller's dialect itself.
        self.bridge: Bridge | None = None
        if isinstance(self.adapter, Selective):
            model = self.offer.upstream_model
            served = frozenset(each for each in served if self.adapter.serves(each, model))
        bridge = BRIDGES.get(self.call.dialect)
        if self.call.dialect not in served and bridge is not None and bridge.hub in served:
            self.bridge = bridge
        status, headers, self.body = message(self.sections.get("upstream", b"0"))
        self.head = ResponseHead(int(status), headers)

    @property
    def refused(self) -> bool:
        """Whether the case is about a request that is not served."""
        return "refused" in self.sections

    def spoken(self) -> tuple[Call, tuple[str, ...]]:
        """The call as the adapter gets it, and what a bridge dropped of it."""
        if self.bridge is None:
            return self.call, ()
        opened = self.bridge.open(self.call, getattr(self.adapter, "extensions", frozenset()))
        return opened.call, opened.dropped

    def prepare(self) -> tuple[UpstreamRequest, tuple[str, ...]]:
        """What the provider is sent, and everything that was dropped."""
        call, dropped = self.spoken()
        request = self.adapter.prepare(call, self.offer)
        return request, dropped + request.dropped

    def tap(self) -> Tap:
        """A new watcher for the answer."""
        call, _ = self.spoken()
        tap = self.adapter.tap(call, self.head)
        return tap if self.bridge is None else self.bridge.tap(self.call, self.head, tap)


def replay(path: Path, *, adapters: Classes | None = None, seed: int | None = None) -> None:
    """Everything that a case says: what is sent, what comes back, and that nothing is copied without need.

    Raises:
        CaseFailed: with what differs, and the seed of the random pieces.
    """
    check_sent(Case(path, adapters=adapters))
    check_untouched(Case(path, adapters=adapters))
    check_received(Case(path, adapters=adapters), seed=seed)


def fill(path: Path, *, adapters: Classes | None = None) -> list[str]:
    """Write what the adapter does into the sections that a case lacks; their names. Read them before you keep them.

    Raises:
        CaseFailed: the file is no case, or has no `== upstream` to make them of.
    """
    case = Case(path, adapters=adapters)
    made: dict[str, bytes] = {}
    try:
        request, dropped = case.prepare()
    except BadRequest as error:
        made["refused"] = f"{error.param}: {error.message}".encode()
    else:
        if not isinstance(request.body, bytes):
            raise CaseFailed(f"{path}: its body is no bytes")
        made["sent"] = _written(_start(request), request.headers, request.body)
        if dropped:
            made["dropped"] = " ".join(dropped).encode()
        made |= _answered(case)
    made = {name: content for name, content in made.items() if name not in case.sections}
    if made:
        sections = b"".join(b"== %b\n%b\n" % (name.encode(), content) for name, content in made.items())
        path.write_bytes(path.read_bytes().removesuffix(b"\n") + b"\n" + sections)
    return [*made]


def _answered(case: Case) -> dict[str, bytes]:
    """What becomes of the provider's answer."""
    if "upstream" not in case.sections:
        raise CaseFailed(f"{case.path}: no section upstream")
    if case.head.status >= 400:
        return {"failure": _told(case.adapter.classify(case.head, case.body))}
    tap = case.tap()
    made = {"downstream": play(tap, [case.body], cut=case.cut), "usage": _told(tap.usage())}
    if tap.failure is not None:
        made["failure"] = _told(tap.failure)
    return made


def _told(value: msgspec.Struct | None) -> bytes:
    """As JSON, without what is at its default."""
    if value is None:
        return b"null"
    fields = msgspec.structs.fields(value)
    given = {each.name: getattr(value, each.name) for each in fields}
    return msgspec.json.encode({each.name: given[each.name] for each in fields if given[each.name] != each.default})


def check_sent(case: Case) -> None:
    """The provider gets what `== sent` says, or the request is refused as `== refused` says."""
    if case.refused:
        try:
            case.prepare()
        except BadRequest as error:
            _expect(case, "refused", case.sections["refused"], f"{error.param}: {error.message}".encode())
            return
        raise CaseFailed(f"{case.path}: it was not refused")
    request, dropped = case.prepare()
    _expect(case, "dropped", case.sections.get("dropped", b""), name_list(dropped).replace(b", ", b" "))
    if not isinstance(request.body, bytes):
        raise CaseFailed(f"{case.path}: its body is no bytes")
    sent = _written(_start(request), request.headers, request.body)
    _expect(case, "sent", _written(*message(case.sections["sent"])), sent)


def check_untouched(case: Case) -> None:
    """A body in which nothing has to change is the very same object."""
    if case.refused or case.call.dialect not in case.adapter.dialects:
        return
    request, _ = case.prepare()
    if request.body == case.call.body and request.body is not case.call.body:
        raise CaseFailed(f"{case.path}: the body is as it came, but a copy of it")


def check_received(case: Case, *, seed: int | None = None) -> None:
    """The caller gets what `== downstream` says, whatever pieces the answer comes in, and the usage is counted."""
    if case.refused:
        return
    if case.head.status >= 400:
        failure = case.adapter.classify(case.head, case.body)
        wanted = msgspec.json.decode(case.sections["failure"], type=Failure)
        _expect(case, "failure", _shown(wanted), _shown(failure))
        return
    usage = msgspec.json.decode(case.sections["usage"], type=Usage | None)
    failed = msgspec.json.decode(case.sections.get("failure", b"null"), type=Failure | None)
    seed = random.randrange(2**32) if seed is None else seed
    for how, pieces in splits(case.body, random.Random(seed)):
        tap = case.tap()
        where = f" {how}, seed {seed}"
        _expect(case, "downstream", case.sections["downstream"], play(tap, pieces, cut=case.cut), where)
        _expect(case, "usage", _shown(usage), _shown(tap.usage()), where)
        _expect(case, "failure", _shown(failed), _shown(tap.failure), where)
        whole = not (case.cut or failed is not None)
        if tap.complete is not whole:
            raise CaseFailed(f"{case.path}: complete is {tap.complete}{where}")
        if tap.mid_event and (not case.cut or case.bridge is not None):
            raise CaseFailed(f"{case.path}: it ends inside an event{where}")


def splits(body: bytes, chance: random.Random) -> Iterator[tuple[str, list[bytes]]]:
    """A body whole, byte by byte, and in random pieces."""
    yield "whole", [body]
    yield "byte by byte", [body[i : i + 1] for i in range(len(body))]
    for number in range(SPLITS):
        yield f"split {number + 1}", pieces_of(body, chance)


def pieces_of(body: bytes, chance: random.Random) -> list[bytes]:
    """A body in up to a dozen random pieces, some of which may be empty."""
    marks = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(1, 12)))
    return [body[start:end] for start, end in zip([0, *marks], [*marks, len(body)], strict=True)]


def play(tap: Tap, pieces: Iterable[bytes], *, cut: bool = False) -> bytes:
    """What comes out of a watcher; with `cut`, it never hears of an end."""
    out = b"".join([tap.feed(piece) for piece in pieces])
    return out if cut else out + tap.end()


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """A frame of AWS' event streams, all headers text."""
    fields = b"".join(
        b"%c%b\x07%b%b" % (len(name), name.encode(), len(value.encode()).to_bytes(2, "big"), value.encode())
        for name, value in headers.items()
    )
    prelude = (16 + len(fields) + len(payload)).to_bytes(4, "big") + len(fields).to_bytes(4, "big")
    content = prelude + zlib.crc32(prelude).to_bytes(4, "big") + fields + payload
    return content + zlib.crc32(content).to_bytes(4, "big")


def framed(section: bytes) -> bytes:
    """A section whose body is written as lines `TYPE PAYLOAD`; a type that begins with `!` is an exception's."""
    head, _, body = section.partition(b"\n\n")
    frames = []
    for line in body.splitlines():
        kind, _, payload = line.decode().partition(" ")
        if kind.startswith("!"):
            headers = {":message-type": "exception", ":exception-type": kind[1:]}
        else:
            headers = {":message-type": "event", ":event-type": kind}
        frames.append(frame({**headers, ":content-type": "application/json"}, payload.encode()))
    return head + b"\n\n" + b"".join(frames)


def message(section: bytes) -> tuple[bytes, Headers, bytes]:
    """First line, headers and body."""
    head, _, body = section.partition(b"\n\n")
    start, *lines = head.split(b"\n")
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    return start, headers, body


def _call(section: bytes) -> Call:
    start, headers, body = message(section)
    method, _, target = start.partition(b" ")
    path, _, query = target.partition(b"?")
    resolved = resolve(path)
    if resolved is None:
        raise CaseFailed(f"{path!r} leads nowhere")
    kind = dict(headers).get(b"content-type", b"")
    if resolved.dialect in GEMINI_DIALECTS:
        seen = peek_gemini(body, stream=resolved.stream)
    else:
        seen = peek_form(body, kind) if kind.startswith(b"multipart/") else peek(body)
    return Call(
        id="case",
        dialect=resolved.dialect,
        method=method.decode(),
        path=resolved.path,
        query=query,
        headers=headers,
        body=body,
        peek=seen,
        model=resolved.model or seen.model or "",
    )


@functools.cache
def _installed(name: str) -> type[Adapter]:
    found = discover(ADAPTERS)
    if name not in found:
        raise CaseFailed(f'no adapter "{name}" is installed; there are: {", ".join(sorted(found))}')
    return load_adapter(found[name])


def _start(request: UpstreamRequest) -> bytes:
    origin = f"{request.origin.scheme}://{request.origin.host}:{request.origin.port}".encode()
    return request.method + b" " + origin + request.target


def _written(start: bytes, headers: Headers, body: bytes) -> bytes:
    return b"\n".join([start, *(b"%b: %b" % header for header in headers), b"", body])


def _shown(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value))


def _expect(case: Case, section: str, wanted: bytes, found: bytes, where: str = "") -> None:
    if wanted == found:
        return
    lines = difflib.unified_diff(
        wanted.decode(errors="backslashreplace").splitlines(),
        found.decode(errors="backslashreplace").splitlines(),
        f"== {section}",
        "what the adapter did",
        lineterm="",
    )
    shown = [line for number, line in enumerate(lines) if number < _SHOWN_LINES_MAX]
    raise CaseFailed(f"{case.path}: another {section}{where}\n" + "\n".join(shown))

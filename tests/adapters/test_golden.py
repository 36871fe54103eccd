"""Replays the golden cases: an adapter against one conversation, both sides of it in one file.

A case (`golden/ADAPTER/NAME.case`) is text in sections:

    == provider           the provider's table, as TOML; `upstream_model` is what the offer calls the model
    == request            what the caller sends: method and path, headers, a blank line, the body
    == sent               what the provider gets: method and URL, headers, a blank line, the body
    == dropped            members of the request that the provider could not be told, in a line; left out for none
    == refused            in place of everything below `request`: the adapter does not serve this; the parameter that it
                          names, and its message
    == upstream           what the provider answers: status, headers, a blank line, the body; `== upstream cut` breaks
                          off there, `== upstream frames` has a line for each frame of an event stream of AWS
    == downstream         the body the caller gets
    == usage              what was counted, as JSON, the fields that are not zero; `null` for nothing reported
    == failure            for an error answer, in place of the last two: what it is taken for. After the last two: the
                          error that a good answer turned out to be

A body is everything up to the line break before the next section. The answer is fed to the adapter whole, byte by
byte and in random pieces: it has to come out the same.
"""

import random
import tomllib
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from gateway.api import BadRequest, Call, Failure, Offer, ResponseHead, Tap, Usage
from gateway.registry import Registry
from gateway.secret import Secret
from gateway.settings import Provider, Settings
from gateway.wire.dialects import GEMINI_DIALECTS
from gateway.wire.form import peek_form
from gateway.wire.gemini import peek_gemini
from gateway.wire.paths import resolve
from gateway.wire.peek import peek

FOLDER = Path(__file__).parent / "golden"
CASES = sorted(FOLDER.glob("*/*.case"))
SPLITS = 20


class Case:
    def __init__(self, path: Path) -> None:
        self.sections: dict[str, bytes] = {}
        self.cut = False
        for part in (b"\n" + path.read_bytes()).split(b"\n== ")[1:]:
            title, _, content = part.partition(b"\n")
            name, *rest = title.decode().split()
            self.cut = self.cut or "cut" in rest
            self.sections[name] = framed(content) if "frames" in rest else content
        # The last section ends with the file, not with the next one's line.
        self.sections[name] = self.sections[name].removesuffix(b"\n")

        table = tomllib.loads(self.sections["provider"].decode())
        start, headers, body = message(self.sections["request"])
        method, _, target = start.partition(b" ")
        path_, _, query = target.partition(b"?")
        resolved = resolve(path_)
        assert resolved is not None
        kind = dict(headers).get(b"content-type", b"")
        if resolved.dialect in GEMINI_DIALECTS:
            seen = peek_gemini(body, stream=resolved.stream)
        else:
            seen = peek_form(body, kind) if kind.startswith(b"multipart/") else peek(body)
        name = resolved.model or seen.model or ""
        self.call = Call(
            id="case",
            dialect=resolved.dialect,
            method=method.decode(),
            path=resolved.path,
            query=query,
            headers=headers,
            body=body,
            peek=seen,
            model=name,
        )
        self.offer = Offer(model=name, provider="case", upstream_model=table.pop("upstream_model", name))
        key = table.pop("api_key", None)
        provider = Provider(
            adapter=table.pop("adapter"),
            base_url=table.pop("base_url", ""),
            api_key=Secret(key) if key else None,
            extra=table,
        )
        self.adapter = Registry.load(Settings(providers={"case": provider})).providers["case"].adapter
        status, headers, self.body = message(self.sections.get("upstream", b"0"))
        self.head = ResponseHead(int(status), headers)

    def tap(self) -> Tap:
        return self.adapter.tap(self.call, self.head)


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


def message(section: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """First line, headers and body."""
    head, _, body = section.partition(b"\n\n")
    start, *lines = head.split(b"\n")
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    return start, headers, body


def play(tap: Tap, pieces: Iterable[bytes], *, cut: bool) -> bytes:
    out = b"".join([tap.feed(piece) for piece in pieces])
    return out if cut else out + tap.end()


def pieces_of(body: bytes, chance: random.Random) -> list[bytes]:
    marks = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(1, 12)))
    return [body[start:end] for start, end in zip([0, *marks], [*marks, len(body)], strict=True)]


def test_each_adapter_has_the_five_cases() -> None:
    kinds = {"pass_through", "stream_usage", "tool_call", "error_body", "cut"}

    assert CASES
    for folder in {path.parent for path in CASES}:
        assert kinds <= {path.stem for path in folder.iterdir()}, folder.name


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_is_sent(path: Path) -> None:
    case = Case(path)
    if "refused" in case.sections:
        with pytest.raises(BadRequest) as caught:
            case.adapter.prepare(case.call, case.offer)
        assert f"{caught.value.param}: {caught.value.message}".encode() == case.sections["refused"]
        return

    sent = case.adapter.prepare(case.call, case.offer)

    assert " ".join(sent.dropped).encode() == case.sections.get("dropped", b"")
    origin = f"{sent.origin.scheme}://{sent.origin.host}:{sent.origin.port}".encode()
    start = sent.method + b" " + origin + sent.target
    assert (start, sent.headers, sent.body) == message(case.sections["sent"])


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_comes_back(path: Path) -> None:
    case = Case(path)
    if "refused" in case.sections:
        return
    if case.head.status >= 400:
        failure = case.adapter.classify(case.head, case.body)
        assert failure == msgspec.json.decode(case.sections["failure"], type=Failure)
        return
    expected = msgspec.json.decode(case.sections["usage"], type=Usage | None)
    failure = msgspec.json.decode(case.sections.get("failure", b"null"), type=Failure | None)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    whole, byte_by_byte = [case.body], [case.body[i : i + 1] for i in range(len(case.body))]

    for pieces in (whole, byte_by_byte, *(pieces_of(case.body, chance) for _ in range(SPLITS))):
        tap = case.tap()
        assert play(tap, pieces, cut=case.cut) == case.sections["downstream"]
        assert tap.usage() == expected
        assert tap.failure == failure
        assert tap.complete is not (case.cut or failure is not None)
        if not case.cut:
            assert not tap.mid_event


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_body_that_needs_no_change_is_the_very_same_object(path: Path) -> None:
    case = Case(path)
    if case.call.dialect not in case.adapter.dialects:
        return

    sent = case.adapter.prepare(case.call, case.offer)

    assert (sent.body is case.call.body) is (sent.body == case.call.body)

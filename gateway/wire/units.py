"""What a request asks for that is paid for by other units than tokens: pictures, seconds, characters, searches.

Rules:
- `units_of` reads it from the request, before the call: the hold must cover it, whatever the provider says later.
- What the provider reports is charged. `complete` fills in what it left out, and says so where that is a guess which
  the price depends on.
- A model that is priced by tokens alone, and reports none, is charged by the usual tokens of a picture, of a second
  and of a character, which stand below.

Sources: OpenAI's guides on image generation (tokens by quality and size), text to speech and speech to text; Cohere's
on reranking (a search is a query with up to a hundred documents). Read in November 2026.
"""

from typing import Final

import msgspec

from gateway.wire.dialects import Dialect
from gateway.wire.estimate import IMAGE_TOKENS, estimate_input_tokens
from gateway.wire.form import FormScanner
from gateway.wire.peek import Peek, find_members
from gateway.wire.usage import COUNT_MAX, Usage

#: Output tokens of one picture: of low, of medium, and of high or unknown quality; each for the largest usual size.
_PICTURE_TOKENS: Final = {"low": 512, "medium": 2_048}
_PICTURE_TOKENS_MAX: Final = 8_192
#: Pictures that one edit may take in, and the bytes of one that is worth sending.
_PICTURES_IN_MAX: Final = 16
_PICTURE_BYTES: Final = 64 * 1024
#: Of a recording, each second: what it is as input, and the text that is spoken in it.
_HEARD_TOKENS_PER_S: Final = 10
_SPOKEN_TOKENS_PER_S: Final = 4
#: Of a text that is read out, ten characters: as audio, usually and at the most; and how long each takes.
_READ_TOKENS_PER_10_CHARACTERS: Final = 14
_READ_TOKENS_PER_10_CHARACTERS_MAX: Final = 40
_CHARACTERS_PER_S: Final = 15
#: A token of text is usually this long.
_CHARACTERS_PER_TOKEN: Final = 4
_DOCUMENTS_PER_SEARCH: Final = 100

_IMAGES: Final = frozenset({Dialect.OPENAI_IMAGES, Dialect.OPENAI_IMAGE_EDITS})
_MEMBERS: Final[dict[Dialect, tuple[str, ...]]] = {
    Dialect.OPENAI_IMAGES: ("n", "size", "quality"),
    Dialect.OPENAI_IMAGE_EDITS: ("n", "size", "quality"),
    Dialect.OPENAI_SPEECH: ("input",),
    Dialect.RERANK: ("documents",),
}

_decode_text: Final = msgspec.json.Decoder(str).decode
_decode_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Units(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks for. Tokens are the most there can be; `usage` is what is usual."""

    images: int = 0
    #: Quality and size of the pictures, as far as the request names them: "hd 1024x1792".
    image_kind: str = ""
    characters: int = 0
    #: The most that a recording can last.
    seconds: float = 0.0
    searches: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    #: What a whole answer to it is worth where its provider reports nothing.
    usage: Usage = Usage(source="estimated")


def units_of(
    dialect: Dialect, body: bytes, peeked: Peek, *, form: FormScanner | None = None, upload_bytes: int = 0
) -> Units:
    """The units of a request: of its JSON `body`, or of its `form`, which may not be here whole.

    `upload_bytes` is the size of the whole form.

    Raises:
        BadRequest: a member that it is paid for by is there twice.
    """
    members: dict[str, str] = {}
    if form is not None:
        members = form.fields
    elif body and (names := _MEMBERS.get(dialect)):
        members = {name: _text(raw) for name, raw in find_members(body, names).items()}
    if dialect in _IMAGES:
        return _picture_units(members, peeked, body=body, form=form, upload_bytes=upload_bytes)
    if dialect is Dialect.OPENAI_SPEECH:
        return _speech_units(members.get("input", ""))
    if dialect is Dialect.OPENAI_TRANSCRIPTIONS:
        return _recording_units(form, upload_bytes)
    tokens = estimate_input_tokens(body) if body else 0
    if dialect is Dialect.RERANK:
        searches = max(1, -(-_documents(members.get("documents", "")) // _DOCUMENTS_PER_SEARCH))
        usage = Usage(input_tokens=tokens, searches=searches, source="estimated")
        return Units(searches=searches, input_tokens=tokens, usage=usage)
    return Units(input_tokens=tokens, usage=Usage(input_tokens=tokens, source="estimated"))


def heard(form: FormScanner) -> Usage:
    """What the recording in a form, which has come by whole, is worth where its provider reports nothing."""
    seconds = form.recording.seconds()
    tokens = round(seconds * _HEARD_TOKENS_PER_S)
    return Usage(
        input_tokens=tokens,
        input_audio_tokens=tokens,
        output_tokens=round(seconds * _SPOKEN_TOKENS_PER_S),
        seconds=seconds,
        source="estimated",
    )


def complete(usage: Usage, expected: Usage, *, needs: frozenset[str]) -> Usage:
    """What the provider reported, with the units that it left out. `needs` are those that its price is made of.

    Pictures and characters are counted; seconds and searches are guessed, so only where they are needed.
    """
    missing: dict[str, object] = {}
    for name in ("images", "characters"):
        if not getattr(usage, name) and (value := getattr(expected, name)):
            missing[name] = value
    for name in ("seconds", "searches"):
        if name in needs and not getattr(usage, name) and (value := getattr(expected, name)):
            missing[name] = value
            missing["source"] = "estimated"
    if expected.image_kind and not usage.image_kind:
        missing["image_kind"] = expected.image_kind
    return msgspec.structs.replace(usage, **missing) if missing else usage


def estimate(dialect: Dialect, expected: Usage, delivered: Usage) -> Usage:
    """What an answer is worth whose provider reported nothing. `delivered` is what its watcher saw of it.

    What was asked for is charged whole where that is how providers charge: for a text that is read out, a recording
    that was heard, a search. Of pictures, those that arrived.
    """
    if dialect in _IMAGES:
        images = delivered.images
        if not images and delivered.source != "partial":
            images = expected.images
        each = expected.output_tokens // (expected.images or 1)
        return msgspec.structs.replace(
            expected,
            images=images,
            output_tokens=images * each,
            output_image_tokens=images * each,
            source=delivered.source,
        )
    if dialect is Dialect.OPENAI_TRANSCRIPTIONS and delivered.output_tokens:
        return msgspec.structs.replace(expected, output_tokens=delivered.output_tokens, source=delivered.source)
    return msgspec.structs.replace(expected, source=delivered.source)


def _picture_units(
    members: dict[str, str], peeked: Peek, *, body: bytes, form: FormScanner | None, upload_bytes: int
) -> Units:
    quality, size = (_word(members.get(name, "")) for name in ("quality", "size"))
    kind = f"{quality} {size}".strip()
    taken_in = 0
    if form is not None:
        # Those that have not come yet are not counted yet.
        expected = max(form.files, -(-upload_bytes // _PICTURE_BYTES))
        taken_in = min(expected, _PICTURES_IN_MAX) * IMAGE_TOKENS
    tokens = (estimate_input_tokens(body) if body else 0) + taken_in
    each = _PICTURE_TOKENS.get(quality, _PICTURE_TOKENS_MAX)
    usage = Usage(
        input_tokens=tokens,
        input_image_tokens=taken_in,
        output_tokens=peeked.n * each,
        output_image_tokens=peeked.n * each,
        images=peeked.n,
        image_kind=kind,
        source="estimated",
    )
    return Units(images=peeked.n, image_kind=kind, input_tokens=tokens, output_tokens=peeked.n * each, usage=usage)


def _speech_units(text: str) -> Units:
    characters = len(text)
    tokens = -(-characters // _CHARACTERS_PER_TOKEN)
    read = -(-characters * _READ_TOKENS_PER_10_CHARACTERS // 10)
    usage = Usage(
        input_tokens=tokens,
        output_tokens=read,
        output_audio_tokens=read,
        characters=characters,
        seconds=characters / _CHARACTERS_PER_S,
        source="estimated",
    )
    return Units(
        characters=characters,
        seconds=characters * _READ_TOKENS_PER_10_CHARACTERS_MAX / _READ_TOKENS_PER_10_CHARACTERS / _CHARACTERS_PER_S,
        # A character of some scripts is a token and more.
        input_tokens=len(text.encode("utf-8", "replace")),
        output_tokens=-(-characters * _READ_TOKENS_PER_10_CHARACTERS_MAX // 10),
        usage=usage,
    )


def _recording_units(form: FormScanner | None, upload_bytes: int) -> Units:
    """`seconds` and tokens are the most that an upload of this size can be; the usual comes when it is here."""
    if form is None:
        return Units()
    seconds = form.recording.longest_s(upload_bytes)
    return Units(
        seconds=seconds,
        input_tokens=round(seconds * _HEARD_TOKENS_PER_S),
        output_tokens=round(seconds * _SPOKEN_TOKENS_PER_S),
        usage=heard(form),
    )


def _documents(raw: str) -> int:
    try:
        return min(len(_decode_list(raw)), COUNT_MAX)
    except msgspec.DecodeError:
        return 1


def _text(raw: bytes) -> str:
    """The text of a JSON string; anything else as it is written."""
    if raw.startswith(b'"'):
        try:
            return _decode_text(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return raw.decode("utf-8", "replace")


def _word(text: str) -> str:
    """A quality or a size as it is compared; what is left to the provider is none."""
    word = text.strip().lower()
    return "" if word in ("auto", "null") or len(word) > 32 else word

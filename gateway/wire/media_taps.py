"""Taps for plain answers that are no text: pictures, the text of recordings, ranked documents.

Each reads what a usage object does not say (pictures delivered, seconds heard, searches made), by the rules of
`wire/taps.py`. `JSON_TAPS` says which answers they are for; what is not in it is a `JSONTap`'s. Streams of media are
an `SSETap`'s, as all streams of the OpenAI family.
"""

import re

import msgspec

from gateway.wire.dialects import Dialect
from gateway.wire.taps import JSONTap
from gateway.wire.usage import Usage, parse_usage

#: As far as a member's name, its colon and the first quote of its value may reach.
_EDGE_BYTES = 48
_OPENS_TEXT = re.compile(rb'[ \t\r\n]{0,16}:[ \t\r\n]{0,16}"')

_EMPTY = msgspec.Raw(b"")


class _Transcript(msgspec.Struct, frozen=True, gc=False):
    duration: msgspec.Raw = _EMPTY


class _Billed(msgspec.Struct, frozen=True, gc=False):
    search_units: int | None = None
    input_tokens: int | None = None


class _Meta(msgspec.Struct, frozen=True, gc=False):
    billed_units: _Billed | None = None


class _Ranks(msgspec.Struct, frozen=True, gc=False):
    meta: _Meta = _Meta()
    usage: _Billed | None = None


_decode_transcript = msgspec.json.Decoder(_Transcript).decode
_decode_ranks = msgspec.json.Decoder(_Ranks).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class PicturesTap(JSONTap):
    """For pictures: counts them as they go by, since a body with a few of them is not kept whole."""

    __slots__ = ("_edge", "_embedded", "_linked")

    def __init__(self, dialect: Dialect, *, trust_cost: bool = False, reasoning_in_total: bool = False) -> None:
        super().__init__(dialect, trust_cost=trust_cost, reasoning_in_total=reasoning_in_total)
        self._embedded = self._linked = 0
        #: The end of what was looked at: a name may have begun in it.
        self._edge = b""

    def feed(self, data: bytes) -> bytes:
        text = self._edge + data
        self._embedded += _count_members(text, b'"b64_json"', beyond=len(self._edge))
        self._linked += _count_members(text, b'"url"', beyond=len(self._edge))
        self._edge = text[-_EDGE_BYTES:]
        return super().feed(data)

    def usage(self) -> Usage | None:
        usage = super().usage()
        return None if usage is None else msgspec.structs.replace(usage, images=self._images)

    def delivered(self) -> Usage:
        return msgspec.structs.replace(super().delivered(), images=self._images)

    @property
    def _images(self) -> int:
        # Some answers have each picture in both ways.
        return max(self._embedded, self._linked)


class TranscriptTap(JSONTap):
    """For the text of a recording: where no usage is reported, its detailed form still has the duration."""

    __slots__ = ()

    def usage(self) -> Usage | None:
        usage = super().usage()
        if usage is not None or self.errored or self._tail:
            return usage
        try:
            # Some write the number as a text.
            duration = bytes(_decode_transcript(self._fold()).duration).strip(b'"')
        except _UNREADABLE:
            return None
        usage = parse_usage(b'{"type":"duration","seconds":%b}' % duration)
        return usage if usage is not None and usage.seconds > 0 else None


class RanksTap(JSONTap):
    """For ranked documents: Cohere reports searches beside everything else, others tokens as usual."""

    __slots__ = ()

    def usage(self) -> Usage | None:
        usage = super().usage()
        if self.errored or self._tail:
            return usage
        try:
            ranks = _decode_ranks(self._fold())
        except _UNREADABLE:
            return usage
        billed = ranks.meta.billed_units or ranks.usage
        if billed is None or not billed.search_units:
            return usage
        return msgspec.structs.replace(
            usage or Usage(input_tokens=billed.input_tokens or 0), searches=billed.search_units
        )


#: The watchers of plain answers that say more than a usage object.
JSON_TAPS: dict[Dialect, type[JSONTap]] = {
    Dialect.OPENAI_IMAGES: PicturesTap,
    Dialect.OPENAI_IMAGE_EDITS: PicturesTap,
    Dialect.OPENAI_TRANSCRIPTIONS: TranscriptTap,
    Dialect.RERANK: RanksTap,
}


def _count_members(text: bytes, name: bytes, *, beyond: int) -> int:
    """How many members of that name have a text for their value, which begins behind `beyond`."""
    count = at = 0
    while (at := text.find(name, at)) >= 0:
        escaped = at > 0 and text[at - 1] == 0x5C
        at += len(name)
        opened = _OPENS_TEXT.match(text, at)
        count += opened is not None and not escaped and opened.end() > beyond
    return count

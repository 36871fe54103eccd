"""How long an uploaded recording is, from its first bytes, its last ones and its size: nothing is decoded.

Rules:
- Only for bills of providers that report no duration. It is an estimate, and marked as one wherever it is used.
- A container that says how long it is, or how many bytes a second takes, is believed within what its size allows;
  anything else is taken to be `USUAL_BYTES_PER_S`, which is MP3 at 128 kbit/s.
- The most that it can be (`longest_s`) is what a hold is made from. Nothing but a WAV header is believed there: its
  figures are what a decoder goes by too, while those of other formats could be made up.
- What is kept does not grow with the recording: `HEAD_BYTES` of its start, `TAIL_BYTES` of its end.

Sources: RIFF/WAVE (Microsoft, 1991), FLAC (RFC 9639), Ogg (RFC 3533), Opus in Ogg (RFC 7845), MPEG-1/2 audio
(ISO 11172-3, with the Xing header of VBR files), ISO base media files (14496-12), Matroska and WebM (RFC 9559).
"""

import re
import struct
from typing import Final

HEAD_BYTES: Final = 16 * 1024
#: The last page of an Ogg stream is at most this long.
TAIL_BYTES: Final = 65_307

#: 128 kbit/s.
USUAL_BYTES_PER_S: Final = 16_000
#: 16 kbit/s: speech that anyone would still send is not smaller.
LEAST_BYTES_PER_S: Final = 2_000
# What a container may claim: from a voice coder for radio to uncompressed studio sound, or a film.
_CLAIMED_BYTES_PER_S_MIN: Final = 250
_CLAIMED_BYTES_PER_S_MAX: Final = 4_000_000

#: WAVE formats whose size is what rate, channels and bits make of it: PCM, float, and either as "extensible".
_LINEAR: Final = frozenset({1, 3, 0xFFFE})
# kbit/s by MPEG version (1, else 2 and 2.5) of layer III, and sample rates by version bits.
_MP3_KBITS: Final = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MP3_FRAME: Final = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xeb]", re.DOTALL)
_WEBM_SCALE: Final = re.compile(rb"\x2a\xd7\xb1([\x81-\x84])(.{4})", re.DOTALL)


class Recording:
    """A recording that comes by."""

    __slots__ = ("_ends", "_head", "_tail", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self._head = b""
        self._tail = b""
        #: The end says something: Ogg and the MP4 family.
        self._ends = False

    def feed(self, data: bytes) -> None:
        """The next bytes of it."""
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
            self._ends = self._head.startswith(b"OggS") or self._head[4:8] == b"ftyp"
        if self._ends:
            self._tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]
        self.size_bytes += len(data)

    def seconds(self) -> float:
        """An estimate of how long what has come by is."""
        if (rate := self._wav_bytes_per_s()) > 0:
            # Up to the sound, it is a head.
            start = self._head.find(b"data", 12) + 8
            return max(self.size_bytes - start, 0) / rate
        claimed = self._claimed_s()
        most, least = self.size_bytes / _CLAIMED_BYTES_PER_S_MIN, self.size_bytes / _CLAIMED_BYTES_PER_S_MAX
        if not (least <= claimed <= most and claimed > 0):
            return self.size_bytes / USUAL_BYTES_PER_S
        # Never more than was held for.
        return min(claimed, self.size_bytes / LEAST_BYTES_PER_S)

    def longest_s(self, size_bytes: int) -> float:
        """The most that a recording which begins like this and has `size_bytes` can be."""
        return size_bytes / (self._wav_bytes_per_s() or LEAST_BYTES_PER_S)

    def _wav_bytes_per_s(self) -> int:
        """Bytes to a second of a linear WAV file, else 0."""
        head = self._head
        at = head.find(b"fmt ", 12)
        if not head.startswith(b"RIFF") or head[8:12] != b"WAVE" or at < 0 or len(head) < at + 24:
            return 0
        kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at + 8)
        bytes_per_s = rate * channels * (bits // 8)
        plausible = LEAST_BYTES_PER_S <= bytes_per_s <= _CLAIMED_BYTES_PER_S_MAX
        return bytes_per_s if kind in _LINEAR and plausible else 0

    def _claimed_s(self) -> float:
        """What its container says; 0 where it says nothing that is understood."""
        head = self._head
        try:
            if head.startswith(b"fLaC"):
                return _flac_s(head)
            if head.startswith(b"OggS"):
                return _ogg_s(head, self._tail)
            if head[4:8] == b"ftyp":
                return _mp4_s(head) or _mp4_s(self._tail)
            if head.startswith(b"\x1a\x45\xdf\xa3"):
                return _webm_s(head)
            return _mp3_s(head, self.size_bytes)
        except (struct.error, ZeroDivisionError, IndexError, KeyError):
            return 0.0


def _flac_s(head: bytes) -> float:
    """STREAMINFO is always the first block: 20 bits of rate, 8 of other things, 36 of samples."""
    packed = int.from_bytes(head[18:26], "big")
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return samples / rate


def _ogg_s(head: bytes, tail: bytes) -> float:
    """The granule position of the last page counts samples."""
    last = tail.rfind(b"OggS")
    if last < 0:
        return 0.0
    granule = int.from_bytes(tail[last + 6 : last + 14], "little")
    if (at := head.find(b"OpusHead")) > 0:
        return (granule - int.from_bytes(head[at + 10 : at + 12], "little")) / 48_000
    if (at := head.find(b"\x01vorbis")) > 0:
        return granule / int.from_bytes(head[at + 12 : at + 16], "little")
    return 0.0


def _mp4_s(data: bytes) -> float:
    """The movie header has a time scale and a duration."""
    at = data.find(b"mvhd")
    if at < 0:
        return 0.0
    # Version 1 has times of eight bytes.
    start, size = (at + 24, 8) if data[at + 4] == 1 else (at + 16, 4)
    scale = int.from_bytes(data[start : start + 4], "big")
    return int.from_bytes(data[start + 4 : start + 4 + size], "big") / scale


def _webm_s(head: bytes) -> float:
    """The duration is a float, in units of nanoseconds that may be said before or after it."""
    scale_ns = 1_000_000
    if (found := _WEBM_SCALE.search(head)) is not None:
        scale_ns = int.from_bytes(found[2][: found[1][0] & 0x0F], "big")
    for mark, kind in ((b"\x44\x89\x88", ">d"), (b"\x44\x89\x84", ">f")):
        if (at := head.find(mark)) > 0:
            (duration,) = struct.unpack_from(kind, head, at + 3)
            return float(duration) * scale_ns / 1_000_000_000
    return 0.0


def _mp3_s(head: bytes, size_bytes: int) -> float:
    """By the count of frames in a Xing header, else by the bit rate of the first frame."""
    start = 0
    if head.startswith(b"ID3") and len(head) > 10:
        # Four bytes of seven bits each.
        start = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    found = _MP3_FRAME.search(head, start)
    if found is None or (not start and found.start() > 4):
        return 0.0
    at = found.start()
    version = head[at + 1] >> 3 & 3
    first = version == 3
    kbits, rate = _MP3_KBITS[first][head[at + 2] >> 4], _MP3_RATES[version][head[at + 2] >> 2 & 3]
    mark = head.find(b"Xing", at, at + 48)
    if mark < 0:
        mark = head.find(b"Info", at, at + 48)
    if mark > 0 and head[mark + 7] & 1:
        (frames,) = struct.unpack_from(">I", head, mark + 8)
        return float(frames) * (1152 if first else 576) / rate
    return (size_bytes - at) / (kbits * 125)

"""What the echo provider draws, says and reads in forms: small files, made from nothing but what was asked for.

A picture is a PNG of eight by eight pixels, a text read out is a WAV with a tone for each word. Both are real files
that any program opens, and the same ones every time.
"""

import math
import re
import struct
import zlib
from hashlib import shake_128

SIDE = 8
RATE = 8_000
#: How long a word sounds.
WORD_S = 0.1

_TONE_HZ = (262, 294, 330, 392, 440)
_FIELD = re.compile(rb'name="?([^";\r\n]+)"?', re.IGNORECASE)


def picture(seed: bytes) -> bytes:
    """A PNG in colours that depend on `seed`."""
    pixels = shake_128(seed).digest(3 * SIDE * SIDE)
    # Each row begins with the number of its filter, which is none.
    rows = b"".join(b"\0" + pixels[at : at + 3 * SIDE] for at in range(0, len(pixels), 3 * SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def sound(words: list[str]) -> list[bytes]:
    """A WAV (16 bits, one channel) in pieces: its head, and a tone for each word."""
    tones = [_tone(word) for word in words]
    size = sum(map(len, tones))
    shape = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    sizes = struct.pack("<I", size + 36), struct.pack("<I", size)
    head = b"RIFF" + sizes[0] + b"WAVEfmt " + shape + b"data" + sizes[1]
    return [head, *tones]


def _tone(word: str) -> bytes:
    turn = 2 * math.pi * _TONE_HZ[zlib.crc32(word.encode("utf-8", "replace")) % len(_TONE_HZ)] / RATE
    count = int(RATE * WORD_S)
    return struct.pack(f"<{count}h", *(int(8_000 * math.sin(turn * at)) for at in range(count)))


def recorded_s(file: bytes) -> float:
    """Seconds of a WAV; what is none is taken to have 16 kB to a second."""
    if file.startswith(b"RIFF") and len(file) > 44 and (bytes_per_s := int.from_bytes(file[28:32], "little")):
        return round((len(file) - 44) / bytes_per_s, 3)
    return round(len(file) / 16_000, 3)


def read_form(body: bytes) -> dict[str, bytes]:
    """The parts of a form by their names; of several with one name the last. Empty for what is no form."""
    if not body.startswith(b"--"):
        return {}
    parts = (b"\r\n" + body).split(b"\r\n" + body.partition(b"\r\n")[0])
    found: dict[str, bytes] = {}
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if (name := _FIELD.search(head)) is not None:
            found[name[1].decode("utf-8", "replace")] = content
    return found

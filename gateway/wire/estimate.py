"""How many input tokens a request body is, roughly, before anyone has counted them.

Rules:
- Linear in the body and done by byte searches: nothing is parsed, so 10 MB of pictures cost milliseconds.
- Rather too many than too few: a hold must cover the call. What the provider reports afterwards corrects it, and the
  correction by model is kept by whoever holds money, not here.
- Encoded media is never counted as text; a picture, a recording and a file each have a price in tokens of their own.

Sources: measured bytes to a token of JSON chat bodies (English 4, code and JSON 3, Chinese and Japanese 3); images by
the providers' documentation (OpenAI up to 1,536 patches, Anthropic up to about 1,600); audio 10 tokens a second.
"""

import re

#: Bytes to ten tokens.
_TEXT_BYTES_PER_10_TOKENS = 33
#: A picture of unknown size, at what the dearest common model counts for a large one.
IMAGE_TOKENS = 1_600
#: A file that only the provider can look into.
FILE_TOKENS = 10_000
#: Base64 bytes to a token: speech at 16 kB a second and 10 tokens a second.
_AUDIO_BYTES_PER_TOKEN = 2_100
#: Base64 bytes to a token, and the cap: a PDF page of 100 kB is 2,500 tokens.
_DOCUMENT_BYTES_PER_TOKEN = 40
_DOCUMENT_TOKENS_MAX = 500_000
#: Encoded media beyond this many is counted as text, which is more.
_MEDIA_MAX = 1_000
# Of a data URL, its media type and parameters.
_KIND_BYTES = 96

_DATA_URL = b";base64,"
_AUDIO = b'"input_audio":'
_AUDIO_DATA = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*(?:"format"[^,]{0,32},[ \t\r\n]*)?"data"[ \t\r\n]*:[ \t\r\n]*"')
#: How Google and Anthropic send media: the type and the data are members of one object, in either order.
_INLINE = b'"data"'
_INLINE_DATA = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*"')
_INLINE_KIND = re.compile(rb'"(?:mimeType|mime_type|media_type)"[ \t\r\n]*:[ \t\r\n]*"([a-z]{1,16})/')
#: Less than this is not worth a look: as text it is few tokens.
_INLINE_BYTES_MIN = 256
_PICTURE = b'"image_url":'
_FILE = b'"file'
_FILES = (b'"file_id":', b'"fileUri":', b'"file_uri":')


def estimate_input_tokens(body: bytes) -> int:
    """Tokens of a body in any dialect; at least 1."""
    texts: list[tuple[int, int]] = []
    tokens = pictures = start = 0
    at = body.find(_DATA_URL)
    while at >= 0 and len(texts) < _MEDIA_MAX:
        end = body.find(b'"', at)
        if end < 0:
            break
        kind = body[max(start, at - _KIND_BYTES) : at].rpartition(b"data:")[2]
        pictures += kind.startswith(b"image/")
        tokens += _media_tokens(kind.partition(b"/")[0], end - at)
        texts.append((start, at))
        start = end
        at = body.find(_DATA_URL, end)
    texts.append((start, len(body)))
    text_bytes = linked = files = 0
    for begin, end in texts:
        text_bytes += end - begin
        linked += body.count(_PICTURE, begin, end)
        # Each search is milliseconds in 10 MB of text, so what others would be about is found first.
        if body.find(_FILE, begin, end) >= 0:
            for name in _FILES:
                files += body.count(name, begin, end)
        if body.find(_INLINE, begin, end) >= 0:
            media_bytes, media_tokens = _inline(body, begin, end)
            audio_bytes = _audio_bytes(body, begin, end)
            text_bytes -= media_bytes + audio_bytes
            tokens += media_tokens + audio_bytes // _AUDIO_BYTES_PER_TOKEN
    tokens += max(0, linked - pictures) * IMAGE_TOKENS + files * FILE_TOKENS
    return max(1, text_bytes * 10 // _TEXT_BYTES_PER_10_TOKENS + tokens)


def _media_tokens(kind: bytes, size_bytes: int) -> int:
    """Tokens of so many bytes of base64; `kind` is what stands before the slash of the media type."""
    if kind == b"image":
        return IMAGE_TOKENS
    if kind in (b"audio", b"video"):
        return size_bytes // _AUDIO_BYTES_PER_TOKEN
    return min(size_bytes // _DOCUMENT_BYTES_PER_TOKEN, _DOCUMENT_TOKENS_MAX)


def _inline(body: bytes, begin: int, end: int) -> tuple[int, int]:
    """Base64 bytes of media whose type stands beside their data, at most `_MEDIA_MAX` of them, and their tokens."""
    size_bytes = tokens = 0
    at = begin
    for _ in range(_MEDIA_MAX):
        at = body.find(_INLINE, at, end)
        opened = None if at < 0 else _INLINE_DATA.match(body, at, end)
        if at < 0:
            break
        closed = -1 if opened is None else body.find(b'"', opened.end(), end)
        if opened is None or closed - opened.end() < _INLINE_BYTES_MIN:
            at += len(_INLINE)
            continue
        kind = _INLINE_KIND.search(body, max(begin, at - _KIND_BYTES), at)
        kind = kind or _INLINE_KIND.search(body, closed, min(closed + _KIND_BYTES, end))
        # Text is text, and not in base64 at all at Anthropic.
        if kind is not None and kind[1] != b"text":
            size_bytes += closed - opened.end()
            tokens += _media_tokens(kind[1], closed - opened.end())
        at = closed
    return size_bytes, tokens


def _audio_bytes(body: bytes, begin: int, end: int) -> int:
    """Base64 bytes of the recordings in a part of the body, at most `_MEDIA_MAX` of them."""
    total = 0
    for _ in range(_MEDIA_MAX):
        begin = body.find(_AUDIO, begin, end)
        if begin < 0:
            break
        begin += len(_AUDIO)
        opened = _AUDIO_DATA.match(body, begin)
        if opened is not None and (closed := body.find(b'"', opened.end(), end)) >= 0:
            total += closed - opened.end()
            begin = closed
    return total

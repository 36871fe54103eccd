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
_PICTURE = b'"image_url":'
_FILE = b'"file_id":'


def estimate_input_tokens(body: bytes) -> int:
    """Tokens of a chat, completions, responses or embeddings body; at least 1."""
    texts: list[tuple[int, int]] = []
    tokens = pictures = start = 0
    at = body.find(_DATA_URL)
    while at >= 0 and len(texts) < _MEDIA_MAX:
        end = body.find(b'"', at)
        if end < 0:
            break
        kind = body[max(start, at - _KIND_BYTES) : at].rpartition(b"data:")[2]
        if kind.startswith(b"image/"):
            tokens += IMAGE_TOKENS
            pictures += 1
        elif kind.startswith((b"audio/", b"video/")):
            tokens += (end - at) // _AUDIO_BYTES_PER_TOKEN
        else:
            tokens += min((end - at) // _DOCUMENT_BYTES_PER_TOKEN, _DOCUMENT_TOKENS_MAX)
        texts.append((start, at))
        start = end
        at = body.find(_DATA_URL, end)
    texts.append((start, len(body)))
    text_bytes = linked = files = 0
    for begin, end in texts:
        text_bytes += end - begin
        linked += body.count(_PICTURE, begin, end)
        files += body.count(_FILE, begin, end)
        if body.find(_AUDIO, begin, end) >= 0:
            audio_bytes = _audio_bytes(body, begin, end)
            text_bytes -= audio_bytes
            tokens += audio_bytes // _AUDIO_BYTES_PER_TOKEN
    tokens += max(0, linked - pictures) * IMAGE_TOKENS + files * FILE_TOKENS
    return max(1, text_bytes * 10 // _TEXT_BYTES_PER_10_TOKENS + tokens)


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

"""Tool names and call ids as Anthropic takes them, and back: without remembering which belongs to which.

Anthropic takes letters, digits, `_` and `-` in a name. Whatever else a caller's name has is written as `_xHEX_`, and
so is the beginning of anything in a name that would be read as such, or as one of the two names with a meaning of
their own: so what is read is always what was written, whichever worker wrote it, and however long ago.
"""

import re
from hashlib import blake2b
from typing import Literal

from gateway.api import BadRequest

Kind = Literal["function", "custom", "json"]

#: The tool whose input is the answer, for models that can't be given a schema otherwise.
JSON_TOOL = "json_output"
#: Before the name of a tool that takes plain text: Anthropic's all take objects.
CUSTOM = "custom_tool__"
#: The only member of that object.
CUSTOM_INPUT = "input"
NAME_CHARS_MAX = 128

_ILLEGAL = re.compile(r"[^a-zA-Z0-9_-]|_(?=x[0-9A-F]{1,6}(?:_|[^a-zA-Z0-9_-]))")
_ESCAPE = re.compile(r"_x([0-9A-F]{1,6})_")
_RESERVED = re.compile(rf"{JSON_TOOL}\Z|{CUSTOM}")


def write_name(name: str, *, custom: bool = False, param: str = "tools") -> str:
    """A tool's name for Anthropic.

    Raises:
        BadRequest: it is empty, or too long to be told.
    """
    written = _ILLEGAL.sub(lambda found: f"_x{ord(found[0]):X}_", name)
    if _RESERVED.match(written):
        written = f"_x{ord(written[0]):X}_{written[1:]}"
    if custom:
        written = CUSTOM + written
    if not name or len(written) > NAME_CHARS_MAX:
        raise BadRequest(f"A tool's name must have 1 to {NAME_CHARS_MAX} letters, digits, `_` or `-`.", param=param)
    return written


def read_name(written: str) -> tuple[Kind, str]:
    """What a tool that Anthropic's model called is, and its name as the caller knows it."""
    if written == JSON_TOOL:
        return "json", written
    kind: Kind = "function"
    if written.startswith(CUSTOM):
        kind, written = "custom", written[len(CUSTOM) :]
    if "_x" in written:
        written = _ESCAPE.sub(_unescaped, written)
    return kind, written


def _unescaped(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    # No name that was written here has another; a model may make one up.
    return chr(code) if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else found[0]


def write_id(call_id: str) -> str:
    """The id of a tool call: Anthropic's own come back as they are, others may have characters it refuses."""
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", call_id)
    if plain == call_id:
        return call_id
    return f"{plain}_{blake2b(call_id.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"

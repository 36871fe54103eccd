"""The name of a conversation, so that it can go back to the provider that has its prompt in its cache.

A caller may give it a name: the header `x-session-id`, or `session_id` or `prompt_cache_key` in the body. Else it is
known by how its prompt begins, which is what providers keep: every turn repeats the ones before. Providers keep
nothing shorter than about a thousand tokens, so a prompt shorter than `PREFIX_BYTES` has no name: any offer will do.
"""

import re
from hashlib import blake2b
from typing import Final

from gateway.exchange import Call

#: A thousand tokens of text.
PREFIX_BYTES: Final = 4096
_HEADER: Final = b"x-session-id"
_NAMED: Final = re.compile(rb'"(?:session_id|prompt_cache_key)"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.){1,256}")')
_PROMPT: Final = re.compile(rb'"(?:messages|input|prompt|contents|system|instructions)"[ \t\r\n]*:[ \t\r\n]*')


def conversation_of(call: Call) -> bytes:
    """A short name that all turns of one conversation have in common; empty where there is none."""
    for name, value in call.headers:
        if name == _HEADER and value:
            return _hash(b"h", call.model, value)
    body = call.body
    named = _NAMED.search(body)
    if named is not None:
        return _hash(b"n", call.model, named[1])
    prompt = _PROMPT.search(body)
    if prompt is None or len(body) - prompt.end() < PREFIX_BYTES:
        return b""
    return _hash(b"p", call.model, body[prompt.end() : prompt.end() + PREFIX_BYTES])


def _hash(kind: bytes, model: str, text: bytes) -> bytes:
    digest = blake2b(text, digest_size=16, person=kind)
    digest.update(model.encode("utf-8", "surrogatepass"))
    return digest.digest()

"""What the gateway must know of a request body, and where in the bytes it stands."""

import msgspec

#: Half-open byte range `[start, end)` in the body.
Span = tuple[int, int]


class Peek(msgspec.Struct, frozen=True, kw_only=True):
    """The top-level members the gateway reads, with the byte spans of those it may splice.

    A span covers the JSON value alone (for a string with its quotes).
    """

    model: str | None = None
    model_span: Span | None = None
    stream: bool = False
    stream_options_span: Span | None = None
    include_usage: bool | None = None
    include_usage_span: Span | None = None
    #: Largest of `max_tokens`, `max_completion_tokens`, `max_output_tokens`; None where the caller set none.
    max_output_tokens: int | None = None
    #: How many answers were asked for.
    n: int = 1
    #: Offset of the object's closing brace, where a member can be inserted.
    end: int = 0
    #: True for `{}`: an inserted member then needs no comma before it.
    empty: bool = False

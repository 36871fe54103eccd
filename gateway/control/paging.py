"""Lists in pages: by an offset, as people and old clients want it, and by a cursor, which costs the same on any page.

A cursor is where the last page ended: the values of its last row that the list is ordered by. To callers it is a word
that means nothing; what they make up themselves is refused when it does not fit.
"""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from gateway.control.errors import Invalid
from gateway.control.route import ID_MAX
from gateway.infra.postgres import Row

T = TypeVar("T")

PAGE_MAX: Final = 1000
#: Further in, only a cursor leads: the database would have to read everything before.
OFFSET_MAX: Final = 100_000
CURSOR_MAX: Final = 500

Limit = Annotated[int, Meta(ge=1, le=PAGE_MAX, description="How many at most.")]
Offset = Annotated[int, Meta(ge=0, le=OFFSET_MAX, description="How many to pass over.")]
#: What cursors are made of, as one may come back: a number of a row, and a time.
Number = Annotated[int, Meta(ge=0, le=ID_MAX)]
Moment = Annotated[datetime, Meta(tz=True)]
Cursor = Annotated[str, Meta(max_length=CURSOR_MAX, description="`next_cursor` of the page before.")]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The usual query of a list. Inherit from it to add filters.

    after = query.after(tuple[Number]) or (None,)
    rows = await database.fetch(queries["list_things"], account_id, *after, *query.window)
    page, next_cursor = query.cut(rows, "id")
    """

    limit: Limit = 50
    offset: Offset = 0
    cursor: Cursor | None = None

    def after(self, type_: type[T]) -> T | None:
        """Where the page before ended, as the tuple of `type_`; None for the first page.

        Raises:
            Invalid: the cursor is none of ours.
        """
        return None if self.cursor is None else decode_cursor(self.cursor, type_)

    @property
    def window(self) -> tuple[int, int]:
        """How many rows a statement is to read, and to pass over: one more than the page has, which tells whether
        there is another page; none are passed over where a cursor leads.
        """
        return self.limit + 1, 0 if self.cursor is not None else self.offset

    def cut(self, rows: Sequence[Row], *columns: str) -> tuple[Sequence[Row], str | None]:
        """The rows of the page, and its `next_cursor`: the values of the last row in the `columns` that the list is
        ordered by; None where it is the last page.
        """
        page = rows[: self.limit]
        if len(rows) <= self.limit:
            return page, None
        return page, encode_cursor(*(page[-1][column] for column in columns))


def encode_cursor(*values: Any) -> str:  # Any: whatever a list is ordered by
    """The cursor after a row with these values."""
    return urlsafe_b64encode(msgspec.json.encode(values)).decode("ascii").rstrip("=")


def decode_cursor(text: str, type_: type[T]) -> T:
    """The values, as the tuple of `type_`: `decode_cursor(text, tuple[datetime, int])`.

    Raises:
        Invalid: the cursor is none of ours.
    """
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        if b"\\u0000" in raw:
            raise Invalid("This cursor is not known here.", loc=("query", "cursor"))
        return msgspec.json.decode(raw, type=type_)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise Invalid("This cursor is not known here.", loc=("query", "cursor")) from error

"""Hello: each request is for a team, which its header `x-hello-team` names.

A plugin says what it wants to add at four points of a request's life. Sockets, retries, limits and billing are the
gateway's; where a plugin fails, requests go on without it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from gateway.api import (
    ConfigError,
    Headers,
    Offer,
    OnAttempt,
    OnHead,
    OnRequest,
    OnSettled,
    Plugin,
    Rejected,
    Request,
    Settled,
    UpstreamRequest,
)

HEADER = b"x-hello-team"
TAG = "team"


class Hello:
    """One instance is made for each table, in each worker."""

    ID: ClassVar[str] = "hello"
    # The number, not gateway.api.API_VERSION: it says what this code was written for.
    API: ClassVar[int] = 1

    def __init__(self) -> None:
        self.spent_nanos: Counter[str] = Counter()

    def configure(self, table: Mapping[str, object]) -> None:
        """Check everything now: an error here stops the start, with the table's name before the message."""
        if unknown := table.keys() - {"teams"}:
            raise ConfigError("is not a key of this plugin", param=min(unknown))
        teams = table.get("teams")
        if not isinstance(teams, list) or not teams or not all(isinstance(team, str) for team in teams):
            raise ConfigError("must be a list of names", param="teams")
        self._teams = frozenset(teams)

    async def on_request(self, x: Request) -> bytes | None:
        """Before limits and money: what is refused here costs nothing."""
        team = (x.header(HEADER) or b"").decode("latin-1")
        if team not in self._teams:
            raise Rejected(f"Name your team in the header `{HEADER.decode()}`.", code="unknown_team")
        # A tag is kept in the usage record; a note is passed on to the other hooks and forgotten.
        x.tags[TAG] = team
        x.notes["hello.team"] = team
        return None

    def on_attempt(self, x: Request, offer: Offer, request: UpstreamRequest) -> Headers | None:
        """Before each try at a provider. This one has no business knowing teams, but a proxy on the way might."""
        return [(HEADER, x.tags[TAG].encode("latin-1"))] if TAG in x.tags else None

    def on_head(self, x: Request, status: int, headers: Headers) -> Headers | None:
        """When the head of a good answer is about to leave."""
        return [(HEADER, x.tags[TAG].encode("latin-1"))] if TAG in x.tags else None

    async def on_settled(self, record: Settled) -> None:
        """When it is over, and off its clock: take your time, but no more than `timeout_s`."""
        self.spent_nanos[record.tags.get(TAG, "")] += record.cost_nanos


# A type checker fails here, in your package, if a shape is wrong.
_: type[Plugin] = Hello
_hooks: tuple[type[OnRequest], type[OnAttempt], type[OnHead], type[OnSettled]] = (Hello, Hello, Hello, Hello)

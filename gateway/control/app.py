"""The control plane: the modules in the order in which they are mounted, and what holds for all of them.

A Starlette application beside the data plane in the same process, or alone (`--plane control`). It can't slow or stop
what goes on there: it has a database pool of its own with a bound for every statement, so many requests at a time and
so much time for each (`resource.py`), bodies that are small, and threads for what would take the loop's time
(password hashes, behind a semaphore). The data plane's short cut for hot paths comes before anything here is asked.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route as StarletteRoute
from starlette.routing import compile_path

from gateway.control import accounts, admin, catalogue, docs, health, pages
from gateway.control.expiry import sweep_forever
from gateway.control.idempotency import Answers
from gateway.control.parts import Parts
from gateway.control.resource import NOWHERE, Resource, Room
from gateway.control.route import Route
from gateway.control.session import CSRF_HEADER
from gateway.settings import Cors
from gateway.wire.client_address import parse_networks

#: Each has `ROUTES`. Of two routes that match one path the earlier wins; paths without parameters come before all.
MODULES: Final = (docs, pages, health, catalogue, accounts, admin)
#: What a page of another origin may read.
_EXPOSED: Final = ("x-request-id", "retry-after", "idempotency-replayed")

ROUTES: Final[tuple[Route, ...]] = tuple(route for module in MODULES for route in module.ROUTES)


class ControlPlane(Starlette):
    """The application, and which paths under `/v1` are its own."""

    def __init__(self, parts: Parts, routes: Sequence[Route] = ROUTES) -> None:
        self.declared = tuple(routes)
        if parts.settings.control.docs:
            self.declared += docs.routes(self.declared)
        self.parts = parts
        routes_by_path, nowhere = _mount(self.declared, parts)
        super().__init__(
            routes=routes_by_path,
            middleware=_cross_origin(parts.settings.cors),
        )
        self.router.default = nowhere
        self.router.redirect_slashes = False
        paths = {path for route in self.declared for path in route.paths if path.startswith("/v1/")}
        self._v1 = [compile_path(path)[0] for path in sorted(paths)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As long as it serves: what goes on in the background, closed before the stores are."""
        self.parts.tasks.spawn(self.parts.mail.deliver_forever(), name="mail")
        self.parts.tasks.spawn(sweep_forever(self.parts.database), name="remove what is over")
        try:
            yield
        finally:
            await self.parts.tasks.close()
            await self.parts.client.aclose()

    def claims(self, path: str) -> bool:
        """Whether a path that begins like an inference one is answered here."""
        return any(pattern.match(path) for pattern in self._v1)


def _mount(routes: Sequence[Route], parts: Parts) -> tuple[list[StarletteRoute], Resource]:
    """Every path, those without parameters first, and what answers where there is none."""
    by_path: dict[str, list[Route]] = defaultdict(list)
    for route in routes:
        for path in route.paths:
            by_path[path].append(route)
    _refuse_shadows(by_path)
    answers = Answers(parts.database, pepper=parts.pepper)
    room = Room(parts.settings.control.requests_max)
    trusted = parse_networks(parts.settings.server.trusted_proxies)

    def resource(path: str) -> Resource:
        return Resource(
            path, by_path[path], parts=parts, sessions=parts.sessions, answers=answers, room=room, trusted=trusted
        )

    mounted = [StarletteRoute(path, resource(path)) for path in sorted(by_path, key=lambda path: "{" in path)]
    return mounted, resource(NOWHERE)


def _refuse_shadows(by_path: Mapping[str, Sequence[Route]]) -> None:
    """Two patterns that differ in the names of their parameters alone are one path with two owners.

    Raises:
        ValueError
    """
    shapes: dict[str, str] = {}
    for path in by_path:
        shape = re.sub(r"\{[^}]*\}", "{}", path)
        if shapes.setdefault(shape, path) != path:
            raise ValueError(f"{path} and {shapes[shape]} are the same path")


def _cross_origin(settings: Cors) -> list[Middleware]:
    """Pages of other origins come with a bearer token; cookies are for our own."""
    if not settings.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("authorization", "content-type", "idempotency-key", CSRF_HEADER),
            expose_headers=_EXPOSED,
            max_age=int(settings.max_age_s),
        )
    ]

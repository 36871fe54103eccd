"""Tokens of other issuers: which of those configured has issued one, and what its word is. `issuer.py` judges tokens.

What judges them, and the cryptography it needs, is loaded where an issuer is configured: 11 MB in each process.
"""

from typing import TYPE_CHECKING, Final

import httpx2
import msgspec

from gateway.control.errors import SignInNeeded
from gateway.errors import UpstreamUnreachable
from gateway.infra.clock import Clock
from gateway.settings import Issuer

if TYPE_CHECKING:
    from types import ModuleType

    from gateway.control.issuer import OneIssuer

TOKEN_MAX: Final = 16 * 1024


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token is about."""

    issuer: str
    subject: str
    #: Verified by the issuer; None where it said nothing of the kind.
    email: str | None = None
    name: str | None = None
    kind: str = "oidc"


class IssuerAway(UpstreamUnreachable):
    """The issuer of this token does not answer. Try again shortly."""

    status = 503
    type = "service_unavailable_error"
    code = "issuer_unavailable"


class Issuers:
    """All that are configured."""

    def __init__(self, settings: dict[str, Issuer], *, client: httpx2.AsyncClient, clock: Clock) -> None:
        self.by_name: dict[str, OneIssuer] = {}
        if settings:
            judging = _load()
            for name, each in settings.items():
                self.by_name[name] = judging.OneIssuer(name, each, client=client, clock=clock)

    async def verify(self, token: str) -> Claims:
        """Who a token is about, whoever of ours issued it.

        Raises:
            BadRequest: it is no token. SignInNeeded, IssuerAway
        """
        said = _load().read_issuer(token) if self.by_name else ""
        for issuer in self.by_name.values():
            if said == issuer.settings.issuer:
                return await issuer.verify(token)
        raise SignInNeeded("Nobody whose word counts here issued this token.", code="unknown_issuer")


def _load() -> "ModuleType":
    from gateway.control import issuer  # noqa: PLC0415  see above

    return issuer

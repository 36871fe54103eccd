"""Tokens of Microsoft Entra ID: what to ask for one, and what was answered.

Rules:
- An application proves itself by its secret; a machine in Azure, or a container there, by where it runs.
- Pure: the gateway sends the request and brings the answer, in time before a token runs out.
- No secret and no token is in any error.

Source: "OAuth 2.0 client credentials flow" of the Microsoft identity platform; "How to use managed identities to
acquire an access token" of Azure.
"""

import re
import urllib.parse
from typing import Final

import msgspec

from gateway.api import ConfigError, Origin, ResponseHead, UpstreamCredentials, UpstreamRequest, parse_base_url

#: What the tokens are for.
RESOURCE: Final = "https://cognitiveservices.azure.com"
AUTHORITY: Final = "https://login.microsoftonline.com"
#: Tokens are renewed so long before they run out, but not before half of their time.
AHEAD_S: Final = 300.0
_MACHINE: Final = Origin("http", "169.254.169.254", 80)
_MACHINE_PATH: Final = b"/metadata/identity/oauth2/token"
_MACHINE_VERSION: Final = "2018-02-01"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")
_CODE: Final = re.compile(r"[a-z_]{1,64}")
#: What administrators look an error up by; the words after it may hold anything.
_NUMBER: Final = re.compile(r"AADSTS\d{1,10}")


class _Answer(msgspec.Struct):
    access_token: str = ""
    #: Text, where a machine is asked.
    expires_in: float = 0.0
    error: str = ""
    error_description: str = ""


_decode = msgspec.json.Decoder(_Answer, strict=False).decode


class Entra:
    """One identity. Without a secret it is the machine's, or the one of the machine's that `client_id` names."""

    def __init__(
        self, *, tenant_id: str = "", client_id: str = "", client_secret: str = "", authority: str = ""
    ) -> None:
        for key, value in (("tenant_id", tenant_id), ("client_id", client_id)):
            if value and not _NAME.fullmatch(value):
                raise ConfigError("is not the id of one", param=key)
        if client_secret:
            for key, value in (("tenant_id", tenant_id), ("client_id", client_id)):
                if not value:
                    raise ConfigError("is missing", param=key)
            try:
                origin, path = parse_base_url(authority or AUTHORITY)
            except ConfigError as error:
                raise ConfigError(error.message, param="authority") from error
            fields = {
                "grant_type": "client_credentials",
                "client_id": client_id,
                "client_secret": client_secret,
                "scope": f"{RESOURCE}/.default",
            }
            self._request = UpstreamRequest(
                method=b"POST",
                origin=origin,
                target=path + f"/{tenant_id}/oauth2/v2.0/token".encode("ascii"),
                headers=[
                    (b"content-type", b"application/x-www-form-urlencoded"),
                    (b"accept", b"application/json"),
                    (b"accept-encoding", b"identity"),
                ],
                body=urllib.parse.urlencode(fields).encode("ascii"),
            )
        else:
            query = {"api-version": _MACHINE_VERSION, "resource": RESOURCE}
            if client_id:
                query["client_id"] = client_id
            self._request = UpstreamRequest(
                method=b"GET",
                origin=_MACHINE,
                target=_MACHINE_PATH + b"?" + urllib.parse.urlencode(query).encode("ascii"),
                headers=[(b"metadata", b"true"), (b"accept-encoding", b"identity")],
                body=b"",
            )

    def request(self) -> UpstreamRequest:
        """The request for a new token."""
        return self._request


def read_token(head: ResponseHead, body: bytes) -> tuple[str, float]:
    """The token in an answer, and seconds until the next should be asked for.

    Raises:
        UpstreamCredentials: there is none; `detail` has the status and the server's code.
    """
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = _Answer()
    token, good_s = answer.access_token, answer.expires_in
    if head.status != 200 or not token or not token.isascii() or not token.isprintable() or not good_s > 0:
        code = answer.error if _CODE.fullmatch(answer.error) else "without a token"
        number = _NUMBER.match(answer.error_description)
        said = f"{code} {number[0]}" if number else code
        raise UpstreamCredentials(refused_status=head.status, detail=f"Entra ID answered {head.status} {said}")
    return token, max(good_s - AHEAD_S, good_s / 2)

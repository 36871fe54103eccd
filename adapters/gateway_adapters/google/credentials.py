"""Access tokens for Google Cloud: what to send for one, and what comes back.

Three kinds of credential, told apart by what the key is:
- a service account's key, in the JSON that Google gives out: a signed statement is exchanged for a token (RFC 7523);
- a person's, in the JSON that `gcloud auth application-default login` writes: its refresh token is (RFC 6749, 6);
- the word `metadata`: the machine's own service account, asked of the metadata server of Google's cloud.

Nothing is sent from here and no clock is read. A token is in no message and no log.
Source: Google's identity documentation, "Using OAuth 2.0 for server to server applications" and "About VM metadata".
"""

import urllib.parse
from typing import Final, Protocol

import msgspec

from gateway.api import (
    ConfigError,
    Headers,
    Origin,
    ResponseHead,
    UpstreamCredentials,
    UpstreamRequest,
    parse_base_url,
)

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_URL: Final = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
METADATA: Final = "metadata"
#: A statement is good for so long at most.
STATEMENT_S: Final = 3600
#: Tokens are renewed so long before they run out, but not before half of their time.
AHEAD_S: Final = 300.0
_METADATA_ORIGIN: Final = Origin("http", "metadata.google.internal", 80)
_METADATA_PATH: Final = b"/computeMetadata/v1/instance/service-accounts/default/token"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_FORM: Final = b"application/x-www-form-urlencoded"
_DETAIL_CHARACTERS_MAX: Final = 200


class Credential(Protocol):
    """Something that a token can be had for."""

    #: The project it belongs to, where it says so.
    project: str

    def request(self, now_s: float) -> UpstreamRequest: ...


class Token(msgspec.Struct, frozen=True):
    """A token, and how long it is good from now."""

    text: str
    good_s: float

    @property
    def renew_s(self) -> float:
        """When to ask for the next."""
        return max(self.good_s - AHEAD_S, self.good_s / 2)


class _File(msgspec.Struct):
    """What Google writes into a credential's file."""

    type: str = ""
    project_id: str = ""
    quota_project_id: str = ""
    private_key: str = ""
    private_key_id: str = ""
    client_email: str = ""
    token_uri: str = TOKEN_URL
    client_id: str = ""
    client_secret: str = ""
    refresh_token: str = ""


class _Answer(msgspec.Struct):
    access_token: str = ""
    expires_in: float = 0.0


class _Refusal(msgspec.Struct):
    error: str = ""
    error_description: str = ""


_decode_file = msgspec.json.Decoder(_File).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def read_credential(text: str) -> Credential:
    """What `text`, the content of a credential's file or the word for the machine's own, gives tokens for.

    Raises:
        ConfigError: it is not that. Nothing of it is in the message.
    """
    if text.strip() == METADATA:
        return MetadataServer()
    try:
        file = _decode_file(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigError("is not the JSON of a credential", param="api_key") from None
    if file.type == "service_account":
        return ServiceAccount(file)
    if file.type == "authorized_user":
        return Person(file)
    kinds = "service_account and authorized_user"
    raise ConfigError(f"is a credential of a type that is not supported; {kinds} are", param="api_key")


def check_foreign(text: str) -> None:
    """Refuse a credential of somebody outside that is not theirs, or that would have something sent elsewhere.

    Raises:
        ConfigError: it is the machine's own, or its tokens are not to be had from Google.
    """
    if text.strip() == METADATA:
        raise ConfigError("would be the credential of this machine", param="api_key")
    try:
        file = _decode_file(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigError("is not the JSON of a credential", param="api_key") from None
    if file.token_uri != TOKEN_URL:
        raise ConfigError(f"has another token_uri than Google's own, {TOKEN_URL}", param="api_key")


class ServiceAccount:
    """Signs a statement for each token."""

    def __init__(self, file: _File) -> None:
        self.project = file.project_id
        self._email = file.client_email
        self._key = file.private_key
        self._key_id = file.private_key_id
        self._url = file.token_uri
        self._where = _endpoint(file.token_uri)
        if not file.client_email:
            raise ConfigError("is a service account without client_email", param="api_key")
        try:
            self._signed(0.0)
        except (ValueError, TypeError):
            raise ConfigError("is a service account whose private_key can't be read", param="api_key") from None

    def request(self, now_s: float) -> UpstreamRequest:
        return _form(self._where, {"grant_type": _GRANT, "assertion": self._signed(now_s)})

    def _signed(self, now_s: float) -> str:
        # Every gateway asks the adapters what they know, and few sign: it takes 11 MB in each process.
        import jwt  # noqa: PLC0415

        issued = int(now_s)
        claims = {
            "iss": self._email,
            "sub": self._email,
            "aud": self._url,
            "scope": SCOPE,
            "iat": issued,
            "exp": issued + STATEMENT_S,
        }
        headers = {"kid": self._key_id} if self._key_id else None
        try:
            return jwt.encode(claims, self._key, algorithm="RS256", headers=headers)
        except jwt.PyJWTError as error:
            raise ValueError(str(error)) from error


class Person:
    """Exchanges a refresh token."""

    def __init__(self, file: _File) -> None:
        self.project = file.quota_project_id
        self._where = _endpoint(file.token_uri)
        self._fields = {
            "grant_type": "refresh_token",
            "client_id": file.client_id,
            "client_secret": file.client_secret,
            "refresh_token": file.refresh_token,
        }
        if not (file.client_id and file.refresh_token):
            raise ConfigError("is a person's credential without client_id or refresh_token", param="api_key")

    def request(self, now_s: float) -> UpstreamRequest:
        return _form(self._where, self._fields)


class MetadataServer:
    """Asks the machine."""

    project = ""

    def request(self, now_s: float) -> UpstreamRequest:
        return UpstreamRequest(
            method=b"GET",
            origin=_METADATA_ORIGIN,
            target=_METADATA_PATH,
            headers=[(b"metadata-flavor", b"Google"), (b"accept-encoding", b"identity")],
            body=b"",
        )


def read_token(head: ResponseHead, body: bytes) -> Token:
    """The token in an answer.

    Raises:
        UpstreamCredentials: there is none; `detail` has the server's code and words.
    """
    try:
        answer = _decode_answer(body) if head.status == 200 else _Answer()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = _Answer()
    token = answer.access_token
    if not token or not token.isascii() or not token.isprintable() or answer.expires_in <= 0:
        raise UpstreamCredentials(
            refused_status=head.status,
            detail=f"the token server answered {head.status} {_words(head, body)}".rstrip(),
        )
    return Token(token, answer.expires_in)


def _words(head: ResponseHead, body: bytes) -> str:
    if head.status == 200:
        return "without a token"
    try:
        refusal = _decode_refusal(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    said = f"{refusal.error}: {refusal.error_description}" if refusal.error_description else refusal.error
    return "".join(letter for letter in said if letter.isprintable())[:_DETAIL_CHARACTERS_MAX]


def _endpoint(url: str) -> tuple[Origin, bytes]:
    try:
        origin, path = parse_base_url(url)
    except ConfigError as error:
        raise ConfigError(f"has a token_uri that is none: {error.message}", param="api_key") from error
    return origin, path or b"/"


def _form(where: tuple[Origin, bytes], fields: dict[str, str]) -> UpstreamRequest:
    headers: Headers = [(b"content-type", _FORM), (b"accept", b"application/json"), (b"accept-encoding", b"identity")]
    body = urllib.parse.urlencode(fields).encode("ascii")
    return UpstreamRequest(method=b"POST", origin=where[0], target=where[1], headers=headers, body=body)

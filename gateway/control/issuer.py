"""One other issuer of tokens: an OpenID provider, or Privy. Whether a token of its is genuine, and who it is about.

Rules:
- Issuer, audience and algorithms are those of the configuration, never those of the token; a token is good for as
  long as it says, and only with a key that its issuer publishes.
- Keys are fetched from where the configuration, or the issuer's own discovery document, says; never from where a
  token says. They are kept for `KEYS_S`, and asked for again for a key id that is not among them, at most every
  `REFETCH_S`: made-up ids must not make us knock at the issuer's door. Of several that want them at once, one asks.
- An issuer that does not answer is a 503 for who must wait for it, and nothing at all while its keys are known.
- What is fetched is bounded in size and time, and no redirect is followed.
- An e-mail address counts only if the issuer says that it verified it.
"""

import asyncio
from typing import Any, Final
from urllib.parse import quote

import httpx2
import jwt
import msgspec

from gateway.control.errors import SignInNeeded
from gateway.control.issuers import TOKEN_MAX, Claims, IssuerAway
from gateway.errors import BadRequest
from gateway.infra.clock import Clock
from gateway.settings import Issuer

KEYS_S: Final = 3600.0
REFETCH_S: Final = 60.0
#: How far the issuer's clock may be from ours.
LEEWAY_S: Final = 30.0
ANSWER_BYTES_MAX: Final = 512 * 1024
PRIVY_URL: Final = "https://auth.privy.io/api/v1"


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """What of an issuer's discovery document is needed (OpenID Connect Discovery 1.0, section 3)."""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str = ""
    token_endpoint: str = ""


class _Keys(msgspec.Struct):
    keys: list[dict[str, object]]


class _Tokens(msgspec.Struct, kw_only=True):
    id_token: str


class _PrivyAccount(msgspec.Struct, kw_only=True):
    type: str = ""
    address: str | None = None
    email: str | None = None
    name: str | None = None
    #: Seconds since the epoch; 0 or absent where it was not verified.
    verified_at: float | None = None
    latest_verified_at: float | None = None


class _PrivyUser(msgspec.Struct, kw_only=True):
    linked_accounts: list[_PrivyAccount] = []


class OneIssuer:
    """One row of `[issuers.*]`."""

    def __init__(self, name: str, settings: Issuer, *, client: httpx2.AsyncClient, clock: Clock) -> None:
        self.name = name
        self.settings = settings
        self._client = client
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s: float | None = None
        self._asked_s: float | None = None
        self._fetching = asyncio.Lock()
        self._discovery: Discovery | None = None

    async def verify(self, token: str, *, nonce: str | None = None) -> Claims:
        """Who it is about.

        Raises:
            SignInNeeded: it is not genuine, over, or for somebody else.
            IssuerAway
        """
        claims = await self._decode(token, nonce=nonce)
        email = claims.get("email") if claims.get("email_verified") is True else None
        name = claims.get("name")
        subject: str = claims["sub"]
        if self.settings.kind == "privy" and email is None:
            email, name = await self._ask_privy(subject)
        return Claims(
            issuer=self.settings.issuer,
            subject=subject,
            email=email if isinstance(email, str) else None,
            name=name if isinstance(name, str) else None,
            kind=self.settings.kind,
        )

    async def discover(self) -> Discovery:
        """Where the issuer's doors are.

        Raises:
            IssuerAway
        """
        if self._discovery is None:
            url = self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            found = await self._get(url, Discovery)
            if found.issuer != self.settings.issuer:
                raise IssuerAway(detail=f"{self.name}: its discovery document is about {found.issuer!r}")
            self._discovery = found
        return self._discovery

    async def exchange(self, code: str, *, verifier: str, redirect_uri: str, nonce: str) -> Claims:
        """Who a code of the authorization flow is about (RFC 6749, section 4.1.3; RFC 7636).

        Raises:
            SignInNeeded, IssuerAway
        """
        where = (await self.discover()).token_endpoint
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self.settings.audience,
            "code_verifier": verifier,
        }
        if self.settings.client_secret is not None:
            form["client_secret"] = self.settings.client_secret.reveal()
        try:
            async with self._client.stream(
                "POST", where, data=form, headers={"accept": "application/json"}
            ) as response:
                content = await self._read(response)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise IssuerAway(detail=f"{self.name}: {type(error).__name__}") from error
        if response.status_code >= 500:
            raise IssuerAway(detail=f"{self.name}: the token endpoint answered {response.status_code}")
        if response.status_code != 200:
            raise SignInNeeded("The issuer did not confirm this sign-in.", code="code_refused")
        try:
            token = msgspec.json.decode(content, type=_Tokens).id_token
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise IssuerAway(detail=f"{self.name}: no id_token in its answer") from error
        return await self.verify(token, nonce=nonce)

    async def _decode(self, token: str, *, nonce: str | None) -> dict[str, Any]:  # Any: claims are of any type
        if len(token) > TOKEN_MAX:
            raise SignInNeeded("This token is too long.", code="invalid_token")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise SignInNeeded("This is no token.", code="invalid_token") from error
        if header.get("alg") not in self.settings.algorithms:
            raise SignInNeeded("This token is signed in a way that is not accepted.", code="invalid_token")
        key = await self._find_key(str(header.get("kid", "")))
        try:
            claims = jwt.decode(
                token,
                key=key,
                algorithms=list(self.settings.algorithms),
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "sub", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise SignInNeeded("This token is over.", code="token_over") from error
        except jwt.PyJWTError as error:
            raise SignInNeeded("This token is not genuine, or not for this gateway.", code="invalid_token") from error
        if nonce is not None and claims.get("nonce") != nonce:
            raise SignInNeeded("This token is of another sign-in.", code="invalid_token")
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (several or "azp" in claims) and claims.get("azp") != self.settings.audience:
            raise SignInNeeded("This token is for another application.", code="invalid_token")
        if not isinstance(claims["sub"], str) or not 1 <= len(claims["sub"]) <= 500 or "\0" in claims["sub"]:
            raise SignInNeeded("This token is about nobody.", code="invalid_token")
        return claims

    async def _find_key(self, kid: str) -> jwt.PyJWK:
        """The key of that id.

        Raises:
            SignInNeeded: the issuer has none. IssuerAway
        """
        if not self._is_fresh() or kid not in self._keys:
            async with self._fetching:
                await self._refetch(kid)
        found = self._keys.get(kid)
        if found is None and not kid and len(self._keys) == 1:
            # An issuer with one key need not name it.
            found = next(iter(self._keys.values()))
        if found is None:
            raise SignInNeeded("This token is signed with a key that its issuer does not have.", code="invalid_token")
        return found

    async def _refetch(self, kid: str) -> None:
        """Ask for the keys, unless somebody just did."""
        now_s = self._clock.monotonic()
        if self._is_fresh() and kid in self._keys:
            return
        if self._asked_s is not None and now_s - self._asked_s < REFETCH_S:
            if self._fetched_s is None:
                raise IssuerAway(detail=f"{self.name}: no keys, and asked for them just now")
            return
        self._asked_s = now_s
        try:
            where = self._jwks_url() or (await self.discover()).jwks_uri
            found = (await self._get(where, _Keys)).keys
        except IssuerAway:
            if self._keys:
                return
            raise
        self._keys = _read_keys(found)
        self._fetched_s = now_s

    def _is_fresh(self) -> bool:
        return self._fetched_s is not None and self._clock.monotonic() - self._fetched_s < KEYS_S

    def _jwks_url(self) -> str:
        if self.settings.kind == "privy" and not self.settings.jwks_url:
            return f"{PRIVY_URL}/apps/{self.settings.audience}/jwks.json"
        return self.settings.jwks_url

    async def _ask_privy(self, subject: str) -> tuple[str | None, str | None]:
        """Verified address and name of a person, who are not in Privy's tokens."""
        if self.settings.client_secret is None:
            return None, None
        base = self._jwks_url().partition("/apps/")[0]
        user = await self._get(
            f"{base}/users/{quote(subject, safe='')}",
            _PrivyUser,
            auth=(self.settings.audience, self.settings.client_secret.reveal()),
            headers={"privy-app-id": self.settings.audience},
        )
        for account in user.linked_accounts:
            email = account.address if account.type == "email" else account.email
            if email and (account.verified_at or account.latest_verified_at):
                return email, account.name
        return None, None

    async def _get(
        self,
        url: str,
        type_: type[Any],  # Any: a struct, which is also what it returns
        *,
        auth: tuple[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        try:
            async with self._client.stream(
                "GET", url, auth=auth, headers={"accept": "application/json", **(headers or {})}
            ) as response:
                if response.status_code != 200:
                    raise IssuerAway(detail=f"{self.name}: {url} answered {response.status_code}")
                content = await self._read(response)
            return msgspec.json.decode(content, type=type_)
        except (httpx2.HTTPError, httpx2.InvalidURL, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise IssuerAway(detail=f"{self.name}: {url}: {type(error).__name__}: {error}") from error

    async def _read(self, response: httpx2.Response) -> bytes:
        """An answer, as far as anybody needs one."""
        content = b""
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > ANSWER_BYTES_MAX:
                raise IssuerAway(detail=f"{self.name}: {response.url} answers without end")
        return content


def read_issuer(token: str) -> str:
    """Who a token says issued it: it only chooses whose rules it is held to."""
    if len(token) > TOKEN_MAX:
        raise SignInNeeded("This token is too long.", code="invalid_token")
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise BadRequest("This is no token.", code="invalid_token") from error
    return str(claims.get("iss", ""))


def _read_keys(found: list[dict[str, object]]) -> dict[str, jwt.PyJWK]:
    keys: dict[str, jwt.PyJWK] = {}
    for each in found:
        if each.get("use", "sig") != "sig" or each.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        try:
            keys[str(each.get("kid", ""))] = jwt.PyJWK.from_dict(each)
        except jwt.PyJWTError:
            # Of a kind that we don't know; whoever signs with it is refused.
            continue
    return keys

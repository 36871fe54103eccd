"""An issuer of tokens, as a fake behind the HTTP client: discovery, keys, the token endpoint, and Privy's user API."""

from typing import Any
from urllib.parse import parse_qs

import httpx2
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER = "https://login.example.com"
AUDIENCE = "gateway"


class FakeIssuer:
    """Signs what it is asked to, and counts who asks for its keys."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.asked: list[str] = []
        self.is_away = False
        #: What the token endpoint answers, by code.
        self.codes: dict[str, str] = {}
        self.forms: list[dict[str, list[str]]] = []
        self.privy_users: dict[str, object] = {}
        self.rotate("one")

    def rotate(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())

    def token(self, *, kid: str = "one", alg: str = "ES256", now_s: float, **claims: Any) -> str:
        usual = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "subject-1",
            "iat": int(now_s),
            "exp": int(now_s) + 3600,
        }
        whole = {name: value for name, value in (usual | claims).items() if value is not None}
        return jwt.encode(whole, self.keys[kid], algorithm=alg, headers={"kid": kid})

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.asked.append(path)
        if self.is_away:
            raise httpx2.ConnectError("away")
        if path == "/.well-known/openid-configuration":
            return _json(
                {
                    "issuer": ISSUER,
                    "jwks_uri": f"{ISSUER}/keys",
                    "authorization_endpoint": f"{ISSUER}/authorize",
                    "token_endpoint": f"{ISSUER}/token",
                }
            )
        if path.endswith(("/keys", "/jwks.json")):
            return _json({"keys": [self._public(kid) for kid in self.keys]})
        if path == "/token":
            form = parse_qs(request.content.decode())
            self.forms.append(form)
            token = self.codes.pop(form["code"][0], None)
            return _json({"error": "invalid_grant"}, 400) if token is None else _json({"id_token": token})
        if "/users/" in path:
            return _json(self.privy_users[path.rpartition("/")[2]])
        return httpx2.Response(404)

    def _public(self, kid: str) -> dict[str, Any]:
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.keys[kid].public_key(), as_dict=True)
        return {**public, "kid": kid, "use": "sig", "alg": "ES256"}


def _json(value: object, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, content=msgspec.json.encode(value), headers={"content-type": "application/json"})

"""AWS' signature, version 4: the headers that prove a request comes from whoever holds the key.

Rules:
- Pure: the time comes in as an argument, the key of a day is worked out once a day.
- The path is given as it is sent. Every service but S3 encodes it a second time for the signature.
- What is signed is what can't change on the way: method, path, query, `host`, the headers given, and the body.

Source: "Create a signed AWS API request" of the IAM user guide.
"""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

Headers = list[tuple[bytes, bytes]]

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SCOPE_END: Final = "aws4_request"


class Signer:
    """Signs for one key, one region and one service."""

    def __init__(
        self, *, access_key_id: str, secret_access_key: str, session_token: str = "", region: str, service: str
    ) -> None:
        self._access_key_id = access_key_id
        self._secret = b"AWS4" + secret_access_key.encode("utf-8")
        self._session_token = session_token
        self._region = region
        self._service = service
        # The last day a key was made for, and that key.
        self._day = ""
        self._day_key = b""

    def sign(
        self,
        *,
        method: bytes,
        host: bytes,
        path: bytes,
        query: bytes = b"",
        headers: Headers,
        body: bytes,
        now_s: float,
    ) -> Headers:
        """The headers to add to a request: its time, the session's token, and the signature.

        `headers` are those to be signed; their names are lower-cased. `now_s` is seconds since 1970.
        """
        moment = datetime.fromtimestamp(now_s, UTC)
        stamp = moment.strftime("%Y%m%dT%H%M%SZ")
        day = stamp[:8]
        added: Headers = [(b"x-amz-date", stamp.encode("ascii"))]
        if self._session_token:
            added.append((b"x-amz-security-token", self._session_token.encode("ascii")))
        signed = sorted([(b"host", host), *added, *((name, b" ".join(value.split())) for name, value in headers)])
        names = b";".join(name for name, _ in signed)
        canonical = b"\n".join(
            [
                method,
                quote(path or b"/", safe="/~").encode("ascii"),
                b"&".join(sorted(part if b"=" in part else part + b"=" for part in query.split(b"&") if part)),
                *(name + b":" + value for name, value in signed),
                b"",
                names,
                hashlib.sha256(body).hexdigest().encode("ascii"),
            ]
        )
        scope = f"{day}/{self._region}/{self._service}/{_SCOPE_END}"
        to_sign = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
        signature = hmac.new(self.key_of(day), to_sign.encode("ascii"), hashlib.sha256).hexdigest()
        authorization = (
            f"{_ALGORITHM} Credential={self._access_key_id}/{scope}, "
            f"SignedHeaders={names.decode('ascii')}, Signature={signature}"
        )
        return [*added, (b"authorization", authorization.encode("ascii"))]

    def key_of(self, day: str) -> bytes:
        """The key that signs on `day` (YYYYMMDD)."""
        if day != self._day:
            key = self._secret
            for part in (day, self._region, self._service, _SCOPE_END):
                key = hmac.new(key, part.encode("utf-8"), hashlib.sha256).digest()
            self._day, self._day_key = day, key
        return self._day_key

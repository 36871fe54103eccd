"""The way to providers: an HTTP/1.1 client made for relaying.

`client` is the face and knows the rules of retrying; `pool` decides which connection; `dial` opens one, by way of
`proxy` and `tls`; `connection` is the protocol on it; `request` is what goes out, `response` what comes back;
`deadlines` keeps time for all of them. Nothing here knows a provider, a dialect or money.
"""

from gateway.upstream.client import Stats, UpstreamClient
from gateway.upstream.response import Sink, UpstreamResponse

__all__ = ["Sink", "Stats", "UpstreamClient", "UpstreamResponse"]

"""`gateway healthcheck`: does the gateway on this machine answer `GET /health` with 200?"""

import argparse
import http.client
import sys

from gateway.cli.loading import load_config
from gateway.errors import ConfigError

TIMEOUT_S = 2.0

#: An address to listen on that means every interface, and where to find oneself then.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  not bound to, asked


def run(arguments: argparse.Namespace) -> int:
    """0 when it can serve, else 1 with the reason on standard error."""
    server = load_config(arguments).settings.server
    if not server.port:
        raise ConfigError("server.port is 0, a port nobody knows in advance; give the real one with --port")
    connection = http.client.HTTPConnection(_EVERYWHERE.get(server.host, server.host), server.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        host = f"[{server.host}]" if ":" in server.host else server.host
        print(f"gateway: {host}:{server.port} does not answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        print(f"gateway: {server.host}:{server.port} answers with status {status}", file=sys.stderr)
        return 1
    return 0

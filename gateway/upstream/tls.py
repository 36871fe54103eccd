"""Trust in providers: the system's authorities, one file more if configured, HTTP/1.1 by ALPN, TLS 1.2 or later.

Names and chains are always checked; there is no setting that turns this off.
"""

import ssl

from gateway.errors import ConfigError


def client_context(ca_file: str = "") -> ssl.SSLContext:
    """The one context all connections to providers share, so that sessions of one origin can be resumed.

    Raises:
        ConfigError: `ca_file` can't be read or holds no certificate.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            raise ConfigError(
                f"upstream.ca_file: {ca_file!r} is not a PEM file with certificates that can be read ({error})",
                param="upstream.ca_file",
            ) from error
    return context

"""nginx in two roles: the reference proxy that the gateway is measured against, and a provider of JSON answers.

The second is there because of a measurement. Load and provider share a core; with the Python provider they have no
more than 34,000 answers a second to give, with nginx in its place 49,000, and nginx as a proxy takes more than the
former. A reference that waits for its provider would make the gateway look better than it is.

Both write what is needed into a scratch directory and touch nothing else on the machine.
"""

import getpass
import os
import shutil
from pathlib import Path

from benchmarks.upstream import COMPLETION

_FRAME = """\
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 65536;
pid {scratch}/nginx.pid;
error_log {scratch}/error.log error;
events {{ worker_connections 20000; }}
http {{
    access_log {access_log};
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    tcp_nodelay on;
    keepalive_requests 1000000000;
{servers}
}}
"""

_PROXY = """\
    upstream streams {{ server 127.0.0.1:{stream_port}; keepalive 4096; keepalive_requests 1000000000; }}
    upstream answers {{ server 127.0.0.1:{json_port}; keepalive 4096; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=8192;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_buffering off;
        proxy_read_timeout 600s;
        location = /health {{ access_log off; return 200 "ok"; }}
        location / {{ proxy_pass http://streams; }}
        location /json/ {{ proxy_pass http://answers/; }}
    }}"""

_ANSWERS = """\
    server {{
        listen 127.0.0.1:{port} backlog=8192;
        location / {{ default_type application/json; return 200 '{completion}'; }}
    }}"""


def find() -> str | None:
    """Where nginx is; Debian's sbin is not on everybody's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")


def proxy_command(*, scratch: Path, port: int, stream_port: int, json_port: int) -> list[str]:
    """A proxy to the provider of streams, and below `/json/` to the provider of JSON answers."""
    servers = _PROXY.format(port=port, stream_port=stream_port, json_port=json_port)
    return _command(scratch, servers=servers, access_log=f"{scratch}/access.log")


def answers_command(*, scratch: Path, port: int) -> list[str]:
    """A server that answers everything with the completion of `bench-json`."""
    return _command(scratch, servers=_ANSWERS.format(port=port, completion=COMPLETION.decode()), access_log="off")


def _command(scratch: Path, *, servers: str, access_log: str) -> list[str]:
    executable = find()
    assert executable is not None
    scratch.mkdir(parents=True, exist_ok=True)
    # Started by root, nginx would change to a user that may not enter the scratch directory.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    path = scratch / "nginx.conf"
    path.write_text(_FRAME.format(user=user, scratch=scratch, servers=servers, access_log=access_log))
    return [executable, "-c", str(path), "-e", str(scratch / "error.log")]

"""wrk, where it is installed: closed-loop saturation for half the processor time that a generator in Python takes."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import pin

_SCRIPT = """\
wrk.method = "POST"
wrk.body = {body}
{headers}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\nresult %d %d %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.timeout + e.status, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """What a closed loop reached."""

    requests_per_s: float
    errors: int
    p50_ms: float
    p99_ms: float


def find() -> str | None:
    return shutil.which("wrk")


def saturate(
    url: str,
    *,
    body: bytes,
    headers: tuple[tuple[str, str], ...],
    connections: int,
    window_s: float,
    scratch: Path,
    core: int,
) -> Saturation:
    """Keep `connections` requests running for `window_s` seconds (wrk counts whole ones), on one processor."""
    script = scratch / "wrk.lua"
    lines = [f"wrk.headers[{_quote(n)}] = {_quote(v)}" for n, v in (("content-type", "application/json"), *headers)]
    script.write_text(_SCRIPT.format(body=_quote(body.decode()), headers="\n".join(lines)))
    process = subprocess.Popen(
        ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(window_s))}s", "-s", str(script), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pin(process.pid, core=core)
    output, _ = process.communicate()
    for line in output.splitlines():
        if line.startswith("result "):
            requests, duration_us, errors, p50_us, p99_us = (int(word) for word in line.split()[1:])
            return Saturation(
                requests_per_s=requests / duration_us * 1e6,
                errors=errors,
                p50_ms=p50_us / 1e3,
                p99_ms=p99_us / 1e3,
            )
    raise RuntimeError(f"wrk ended with status {process.returncode}: {output.strip()}")


def _quote(text: str) -> str:
    """A Lua string."""
    return '"' + "".join(f"\\{ord(c):03d}" if c in '"\\' or not c.isprintable() else c for c in text) + '"'

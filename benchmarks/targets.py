"""What is measured: nothing at all (`direct`), nginx, this gateway, any other command, or a server that runs already.

Every target stands before the same providers and gets the same requests. Of each, the one process that relays is
pinned to `Cores.measured` and watched; everything else, its databases and supervisors included, runs with the load.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from benchmarks import machine, nginx
from benchmarks.process import NotReady, Process

CHAT: Final = "/v1/chat/completions"
#: Endless streams that are asked of a provider in its own format, or of one that has nothing but chat completions.
ANTHROPIC: Final = "bench-paced-1000001"
GOOGLE: Final = "bench-paced-1000002"
CHAT_ONLY: Final = "bench-paced-1000003"
_READY_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Which processor does what."""

    measured: int
    load: int


@dataclass(frozen=True, kw_only=True)
class Providers:
    """Where the scripted providers listen: one for streams, one for JSON answers; it may be the same."""

    stream_port: int
    json_port: int
    pids: tuple[int, ...]


class Target(Protocol):
    """Something to send requests to."""

    @property
    def name(self) -> str: ...

    @property
    def json_url(self) -> str: ...

    @property
    def stream_url(self) -> str: ...

    @property
    def headers(self) -> tuple[tuple[str, str], ...]: ...

    def relay_pid(self) -> int | None:
        """The process that relays, as of now; None where there is none or it isn't ours to watch."""
        ...

    def pids(self) -> list[int]:
        """Everything that runs on its behalf, the relaying process included."""
        ...

    def start(self) -> None:
        """Return when it answers. Raises NotReady."""
        ...

    def stop(self) -> None: ...


@dataclass(kw_only=True)
class Direct:
    """The load straight on the providers: what the harness itself can do, and the delay that is nobody's fault."""

    providers: Providers
    name: str = "direct"
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def json_url(self) -> str:
        return f"http://127.0.0.1:{self.providers.json_port}{CHAT}"

    @property
    def stream_url(self) -> str:
        return f"http://127.0.0.1:{self.providers.stream_port}{CHAT}"

    def relay_pid(self) -> None:
        return None

    def pids(self) -> list[int]:
        return []

    def start(self) -> None:
        return

    def stop(self) -> None:
        return


@dataclass(kw_only=True)
class Nginx:
    """`proxy_pass` with keep-alive, unbuffered, one worker, access log on."""

    providers: Providers
    cores: Cores
    scratch: Path
    name: str = "nginx"
    headers: tuple[tuple[str, str], ...] = ()
    port: int = field(default_factory=machine.free_port)
    _process: Process | None = None

    @property
    def json_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/json{CHAT}"

    @property
    def stream_url(self) -> str:
        return f"http://127.0.0.1:{self.port}{CHAT}"

    def relay_pid(self) -> int | None:
        workers = machine.descendants(self._process.pid) if self._process else []
        return workers[0] if workers else None

    def pids(self) -> list[int]:
        return self._process.family() if self._process else []

    def start(self) -> None:
        command = nginx.proxy_command(
            scratch=self.scratch,
            port=self.port,
            stream_port=self.providers.stream_port,
            json_port=self.providers.json_port,
        )
        self._process = Process(command, log=self.scratch / "output.log")
        self._process.await_http(port=self.port, path="/health", timeout_s=_READY_S)
        _pin(self._process, relay=self.relay_pid(), cores=self.cores)

    def stop(self) -> None:
        if self._process:
            self._process.stop()


@dataclass(kw_only=True)
class Gateway:
    """This project: one worker with everything on that a deployment has on, and a key of its own."""

    providers: Providers
    cores: Cores
    scratch: Path
    name: str = "gateway"
    headers: tuple[tuple[str, str], ...] = ()
    port: int = field(default_factory=machine.free_port)
    ready_s: float = 0.0
    _process: Process | None = None

    @property
    def json_url(self) -> str:
        return f"http://127.0.0.1:{self.port}{CHAT}"

    stream_url = json_url

    def relay_pid(self) -> int | None:
        if not self._process:
            return None
        # The supervisor may hold the socket as well; the worker is the younger of the two.
        holders = machine.listeners(self._process.family(), port=self.port)
        return holders[-1] if holders else None

    def pids(self) -> list[int]:
        return self._process.family() if self._process else []

    def start(self) -> None:
        self.launch()
        assert self._process
        _pin(self._process, relay=self.relay_pid(), cores=self.cores)
        key = self._command("keys", "create", "--name", "bench", "--quiet")
        self.headers = (("authorization", f"Bearer {key}"),)

    def launch(self) -> float:
        """Start and return after how many seconds it was ready. Raises NotReady."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._config.write_text(self.render_config())
        self._process = Process(
            [
                *(sys.executable, "-m", "gateway", "serve", "--config", str(self._config)),
                *("--data-dir", str(self.scratch / "data")),
                *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
            ],
            log=self.scratch / "output.log",
        )
        self.ready_s = self._process.await_http(port=self.port, path="/health", timeout_s=_READY_S)
        return self.ready_s

    def stop(self) -> None:
        if self._process:
            self._process.stop()

    def render_config(self) -> str:
        """The configuration file."""
        return _GATEWAY_TOML.format(**vars(self.providers), anthropic=ANTHROPIC, google=GOOGLE, chat=CHAT_ONLY)

    @property
    def _config(self) -> Path:
        return self.scratch / "gateway.toml"

    def _command(self, *arguments: str) -> str:
        """The last line that a `gateway` command prints."""
        command = [sys.executable, "-m", "gateway", *arguments, "--config", str(self._config)]
        done = subprocess.run(
            [*command, "--data-dir", str(self.scratch / "data")], capture_output=True, text=True, check=False
        )
        if done.returncode or not done.stdout.strip():
            raise NotReady(f"gateway {' '.join(arguments)}: {done.stderr or 'printed nothing'}")
        return done.stdout.strip().splitlines()[-1]


_GATEWAY_TOML = """\
[providers.answers]
adapter = "openai"
base_url = "http://127.0.0.1:{json_port}/v1"
api_key = "not-needed"
models = ["bench-json"]

[providers.anthropic]
adapter = "anthropic"
base_url = "http://127.0.0.1:{stream_port}"
api_key = "not-needed"
models = ["{anthropic}"]

[providers.google]
adapter = "google"
base_url = "http://127.0.0.1:{stream_port}/v1beta"
api_key = "not-needed"
models = ["{google}"]

[providers.chat]
adapter = "compatible"
base_url = "http://127.0.0.1:{stream_port}/v1"
api_key = "not-needed"
dialects = ["openai.chat"]
models = ["{chat}"]

[providers.streams]
adapter = "openai"
base_url = "http://127.0.0.1:{stream_port}/v1"
api_key = "not-needed"
models = ["*"]

[upstream]
connections_max = 16384

[models."*"]
free = true
"""


@dataclass(kw_only=True)
class Command:
    """Any other proxy: `{port}` in its words is where it has to listen, `{upstream}` the provider's base URL."""

    words: list[str]
    providers: Providers
    cores: Cores
    scratch: Path
    headers: tuple[tuple[str, str], ...]
    health: str = "/health"
    name: str = "target"
    port: int = field(default_factory=machine.free_port)
    _process: Process | None = None

    @property
    def json_url(self) -> str:
        return f"http://127.0.0.1:{self.port}{CHAT}"

    stream_url = json_url

    def relay_pid(self) -> int | None:
        holders = machine.listeners(self._process.family(), port=self.port) if self._process else []
        return holders[-1] if holders else None

    def pids(self) -> list[int]:
        return self._process.family() if self._process else []

    def start(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        known = {"port": self.port, "upstream": f"http://127.0.0.1:{self.providers.stream_port}/v1"}
        self._process = Process([word.format(**known) for word in self.words], log=self.scratch / "output.log")
        self._process.await_http(port=self.port, path=self.health, timeout_s=_READY_S)
        _pin(self._process, relay=self.relay_pid(), cores=self.cores)

    def stop(self) -> None:
        if self._process:
            self._process.stop()


@dataclass(kw_only=True)
class Running:
    """A server that somebody else started; it is watched if it listens on this machine, and never pinned."""

    stream_url: str
    headers: tuple[tuple[str, str], ...]
    name: str = "url"

    @property
    def json_url(self) -> str:
        return self.stream_url

    def relay_pid(self) -> int | None:
        parts = urlsplit(self.stream_url)
        everybody = [int(entry.name) for entry in machine.PROC.iterdir() if entry.name.isdigit()]
        holders = machine.listeners(everybody, port=parts.port or 80) if parts.hostname == "127.0.0.1" else []
        return holders[-1] if holders else None

    def pids(self) -> list[int]:
        relay = self.relay_pid()
        return [relay] if relay else []

    def start(self) -> None:
        return

    def stop(self) -> None:
        return


def _pin(process: Process, *, relay: int | None, cores: Cores) -> None:
    if relay is None:
        raise NotReady("no process listens on the port that the target was given")
    for pid in process.family():
        machine.pin(pid, core=cores.measured if pid == relay else cores.load)

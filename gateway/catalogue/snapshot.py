"""The catalogue as a file: what workers load instead of the package it was made from.

Rules:
- The file is kept in the data directory and names its edition: our format, the package's version, the corrections.
  It is written again when it is missing, damaged or of another edition, and never otherwise.
- It is written by a process of its own (`gateway.catalogue.build`), which alone loads the package.
- It appears whole or not at all, whoever else writes it at the same time.
- Providers are decoded when they are first asked for: most configurations need two or three of fifty.
"""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Final, Self

import msgspec

from gateway.catalogue.card import ProviderCards
from gateway.errors import ConfigError

log = logging.getLogger(__name__)

FILE_NAME: Final = "catalogue.msgpack"
CORRECTIONS: Final = "corrections.toml"
#: Rises when what is written changes its shape or its meaning.
FORMAT: Final = 1
#: It takes about a second; a machine that is busy with other things gets its time.
BUILD_TIMEOUT_S: Final = 120.0

_PACKAGE: Final = "genai-prices"
_SHOWN_BYTES_MAX: Final = 2000


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All providers, each still encoded."""

    edition: str
    providers: dict[str, msgspec.Raw]

    @classmethod
    def of(cls, cards: Mapping[str, ProviderCards], *, edition: str) -> Self:
        providers = {provider: msgspec.Raw(msgspec.msgpack.encode(each)) for provider, each in cards.items()}
        return cls(edition=edition, providers=providers)

    def cards(self, provider: str) -> ProviderCards | None:
        """The models of a provider, decoded."""
        raw = self.providers.get(provider)
        return None if raw is None else msgspec.msgpack.decode(raw, type=ProviderCards)


def edition() -> str:
    """What a snapshot made here and now would be: `format.package.corrections`."""
    corrections = resources.files("gateway.catalogue").joinpath(CORRECTIONS).read_bytes()
    return f"{FORMAT}/{metadata.version(_PACKAGE)}/{zlib.crc32(corrections):08x}"


def encode(snapshot: Snapshot) -> bytes:
    """A snapshot as it is in the file."""
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """A snapshot from the file.

    Raises:
        ValueError: it is none.
    """
    return msgspec.msgpack.decode(data, type=Snapshot)


def build_apart() -> bytes:
    """A new snapshot, made by a process of its own.

    Raises:
        ConfigError: it could not be made.
    """
    try:
        made = subprocess.run(
            [sys.executable, "-P", "-m", "gateway.catalogue.build"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=BUILD_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError("the price catalogue could not be made", detail=str(error)) from error
    if made.returncode != 0:
        raise ConfigError(
            f"the price catalogue could not be made: its process ended with status {made.returncode}",
            detail=made.stderr[-_SHOWN_BYTES_MAX:].decode(errors="replace").strip(),
        )
    return made.stdout


def open_snapshot(data_dir: str | Path, *, keep: bool = True, build: Callable[[], bytes] = build_apart) -> Snapshot:
    """The snapshot of the present edition, made first if need be, and then kept if `keep`. Making it takes a second,
    else this takes a millisecond.

    Raises:
        ConfigError: it could not be made or kept.
    """
    path, wanted = Path(data_dir) / FILE_NAME, edition()
    if (found := _read(path)) is not None and found.edition == wanted:
        return found
    log.info("making the price catalogue, edition %s", wanted)
    data = build()
    try:
        if keep:
            _write(path, data)
    except OSError as error:
        reason = f"{path} can't be written ({error.strerror}): choose another --data-dir"
        raise ConfigError(f"server.data_dir: {reason}", param="server.data_dir") from error
    return decode(data)


def _read(path: Path) -> Snapshot | None:
    try:
        return decode(path.read_bytes())
    except (OSError, ValueError):
        # Missing or damaged: it is made again.
        return None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)  # noqa: PTH105  a Path would have to be made for it
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise

"""The first step of every command: its arguments and the configuration, through the one loader."""

import argparse

from gateway.config import Loaded, load
from gateway.registry import known_providers

#: Arguments that are settings.
_SETTINGS = ("host", "port", "workers", "plane", "data_dir")


def load_config(arguments: argparse.Namespace) -> Loaded:
    """The configuration with this command's arguments laid over it.

    Raises:
        ConfigError: it is not usable.
    """
    overrides = {f"server.{name}": getattr(arguments, name, None) for name in _SETTINGS}
    return load(arguments.config, overrides=overrides, known=known_providers())

"""Worlds in which everything goes wrong, in silence."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What the program has to say is about things that go wrong, which is what happens here."""
    loggers = [logging.getLogger(name) for name in ("gateway", "asyncio", "uvicorn")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)

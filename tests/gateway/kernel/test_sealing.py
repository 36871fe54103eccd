"""Sealed boxes: what opens them, and what does not."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.sealing import NONCE_BYTES, Box, Tampered

KEY = b"k" * 32


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_what_was_sealed_opens_again(text, bound):
    sealed = Box(KEY).seal(text, bound)

    assert Box(KEY).open(sealed, bound) == text
    assert len(sealed) == NONCE_BYTES + len(text) + 16


@given(st.binary(min_size=1, max_size=60), st.data())
def test_nothing_changed_opens(text, data):
    sealed = bytearray(Box(KEY).seal(text, b"mine"))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))

    with pytest.raises(Tampered):
        Box(KEY).open(bytes(sealed), b"mine")


@pytest.mark.parametrize(("key", "bound"), [(b"x" * 32, b"mine"), (KEY, b"yours")])
def test_nobody_else_opens_it(key, bound):
    sealed = Box(KEY).seal(b"text", b"mine")

    with pytest.raises(Tampered):
        Box(key).open(sealed, bound)


@pytest.mark.parametrize("size", [0, 5, NONCE_BYTES, NONCE_BYTES + 15])
def test_what_is_too_short_does_not_open(size):
    with pytest.raises(Tampered):
        Box(KEY).open(Box(KEY).seal(b"text", b"")[:size], b"")


def test_no_two_boxes_look_alike():
    assert Box(KEY).seal(b"text", b"") != Box(KEY).seal(b"text", b"")


def test_a_short_key_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        Box(b"short")


def test_a_worker_that_seals_nothing_does_not_load_the_library():
    """It takes 9 MB in each process, and PyJWT brings it along."""
    program = "import sys, gateway.cli.serve, gateway.registry, gateway.server.worker; gateway.registry.known_providers(); sys.exit('cryptography' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0

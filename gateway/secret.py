"""Text that must not be seen: keys, passwords, peppers."""

import binascii


class Secret:
    """A value that never shows itself: repr, str and format give `***`, and it can't be pickled or compared."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself. Write it to a socket, never to a log."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret can't be pickled")


def decode_key(secret: Secret, *, size_bytes: int) -> bytes:
    """The bytes of a key that is written in hexadecimal digits or base64 (either alphabet).

    Raises:
        ValueError: it is not that many bytes of either. Nothing of it is in the message.
    """
    written = secret.reveal().strip()
    for decode in (bytes.fromhex, _from_base64):
        try:
            key = decode(written)
        except ValueError:
            continue
        if len(key) == size_bytes:
            return key
    raise ValueError(f"is not {size_bytes} bytes in hexadecimal digits or base64")


def _from_base64(text: str) -> bytes:
    return binascii.a2b_base64(text.translate({ord("-"): "+", ord("_"): "/"}), strict_mode=True)

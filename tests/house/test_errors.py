"""The table of errors in ARCHITECTURE.md is made from `gateway/errors.py`; run this file to write it anew."""

import re
import sys
from pathlib import Path

from gateway import errors
from gateway.errors import GatewayError, MethodNotAllowed, UnknownModel

PAGE = Path(__file__).parents[2] / "gateway" / "ARCHITECTURE.md"
BEGIN, END = "<!-- errors: made by tests/house/test_errors.py -->", "<!-- end of errors -->"
NO_ANSWER = {"ConfigError"}


def classes() -> list[type[GatewayError]]:
    found = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, GatewayError)]
    return [item for item in found if item.__name__ not in NO_ANSWER]


def table() -> str:
    lines = ["| class | error_type | status | type | code | retried |", "|---|---|---|---|---|---|"]
    for item in classes():
        code = "" if item.code is None else f"`{item.code}`"
        retried = "elsewhere" if item.retryable else "no" if item.should_retry is False else ""
        lines.append(f"| {item.__name__} | {item.error_type} | {item.status} | {item.type} | {code} | {retried} |")
    return "\n".join(lines)


def test_every_error_is_in_the_architecture_page() -> None:
    text = PAGE.read_text("utf-8")

    written = text.partition(BEGIN)[2].partition(END)[0].strip()

    assert written == table(), f"run `python {Path(__file__).name}` in tests/house"


def test_every_error_says_whose_fault_it_is_by_prefix() -> None:
    for item in classes():
        prefix = item.error_type.partition("_")[0]
        assert prefix in {"caller", "policy", "provider", "gateway"}, item
        assert item.source in {prefix, "gateway"}, item


def test_messages_are_fit_for_callers() -> None:
    for item in classes():
        if item in {MethodNotAllowed, UnknownModel}:
            continue
        message = item().message
        assert message.endswith("."), (item, message)
        assert not re.search(r"https?://|\n", message), item


if __name__ == "__main__":
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    sys.stdout.write(f"writing {PAGE}\n")
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", "utf-8")

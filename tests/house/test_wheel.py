"""The wheel that is installed from, without the source tree beside it: it holds all that the packages read."""

import subprocess
import sys
import zipfile
from pathlib import Path

HOUSE = Path(__file__).parents[2]
#: Where each package is in the tree, and in the wheel.
PACKAGES = {
    "gateway": "gateway",
    "adapters/gateway_adapters": "gateway_adapters",
    "plugins/gateway_plugins": "gateway_plugins",
}
BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"


def test_the_wheel_holds_all_files_of_the_packages_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=HOUSE, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}

    wanted = {
        f"{package}/{path.relative_to(HOUSE / folder).as_posix()}"
        for folder, package in PACKAGES.items()
        for path in (HOUSE / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == wanted
    assert {Path(name).suffix for name in names} >= {".sql", ".lua", ".toml", ".py", ".typed"}

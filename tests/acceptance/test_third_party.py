"""Other people's packages: both templates built by pip from copies outside the repository, installed beside the gateway,
and at work in `gateway serve`, to which nothing was changed; and packages that are broken, which stop it.

Nothing is downloaded. The packages are installed into a folder that is put on the path of a gateway's processes, as
another virtual environment would be.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx2
import pytest

from gateway.infra.embedded import Stores
from tests.acceptance.answers import ASK, CHAT
from tests.gateways import ServedGateway
from tests.upstreams import RECEIVE, REPEAT, ScriptedUpstream, answer, play

# One worker builds the wheels for all of them.
pytestmark = pytest.mark.xdist_group("template")

ROOT = Path(__file__).parents[2]
TEMPLATES = {
    "gateway-adapter-hello": ROOT / "adapters" / "template",
    "gateway-plugin-hello": ROOT / "plugins" / "template",
}

CONFIG = """
[providers.mine]
adapter  = "hello"
base_url = "{url}/api"
api_key  = "env:PROVIDER_KEY"
region   = "us"
[models."*"]
free = true
[plugins.hello]
teams = ["blue"]
"""
#: A table that makes the gateway load what a broken package has.
TABLES = {
    "adapter": '[providers.mine]\nadapter = "mine"\n',
    "plugin": "[plugins.mine]\n",
}
FAULTS = {
    "another version": ("class Mine: ID, API = 'mine', 99", "was written for API version 99; this gateway has 1"),
    "no import": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "half installed": ("raise RuntimeError('half installed')", "RuntimeError: half installed"),
    "no shape": ("class Mine: ID, API = 'mine', 1", "has no configure"),
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with `folder` on its path, started outside the repository, without what the shell says of gateways."""
    foreign = re.compile(r"GATEWAY_.*|DATABASE_URL|REDIS_URL|.*_API_KEY|PYTHON.*")
    kept = {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}  # noqa: TID251
    # Of pytest, only what anybody has: its plugins take longer than the tests.
    fixed = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = kept | fixed
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both templates, built from copies and installed into one folder."""
    folder = tmp_path_factory.mktemp("site")
    sources = []
    for name, template in TEMPLATES.items():
        ignored = shutil.ignore_patterns("__pycache__", "dist", "test_*")
        sources.append(shutil.copytree(template, tmp_path_factory.mktemp("source") / name, ignore=ignored))
    done = run(folder, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--no-build-isolation", "--no-index", "--target", str(folder), *map(str, sources))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def package(folder: Path, name: str, group: str, value: str, source: str = "") -> Path:
    """An installed distribution, written as an installer leaves it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gateway.{group}s]\n{value}\n")
    (folder / f"{name.replace('-', '_')}.py").write_text(textwrap.dedent(source))
    return folder


def serve(folder: Path, config: str) -> subprocess.CompletedProcess[str]:
    """Start a gateway that must not start."""
    (folder / "gateway.toml").write_text(config)
    return run(folder, "-m", "gateway", "serve", "--config", "gateway.toml", "--data-dir", "data", "--port", "0")


async def test_both_are_at_work_in_a_gateway_that_was_not_changed(installed: Path, both_stores: Stores) -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(CHAT), REPEAT)) as upstream:
        gateway = ServedGateway(both_stores, CONFIG.format(url=upstream.url), path=installed)
        async with gateway, httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client:
            headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
            named = await client.post("/v1/chat/completions", content=ASK, headers=headers | {"x-hello-team": "blue"})
            unnamed = await client.post("/v1/chat/completions", content=ASK, headers=headers)
            shown = await client.get(f"/v1/generations/{named.headers['x-gateway-request-id']}", headers=headers)
            async with asyncio.timeout(20):
                while shown.status_code == 404:
                    await asyncio.sleep(0.05)
                    shown = await client.get(str(shown.url), headers=headers)

    assert (named.status_code, named.content) == (200, CHAT)
    assert named.headers["x-hello-team"] == "blue"
    assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (403, "unknown_team")
    assert shown.json()["tags"] == {"team": "blue"}
    (sent,) = upstream.requests
    assert sent.target == b"/api/chat/completions?region=us"
    assert sent.body == ASK.replace(b'"gpt-x"', b'"hello/gpt-x"')
    assert (sent.header(b"x-hello-key"), sent.header(b"authorization")) == (b"sk-provider-0123456789abcdef", None)
    assert sent.header(b"x-hello-team") == b"blue"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_kit_finds_nothing_wrong_with_them(installed: Path, name: str) -> None:
    done = run(installed, "-m", "gateway", "adapter", "check", name)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name} 0.1.0" in done.stdout
    assert "nothing failed" in done.stdout


@pytest.mark.parametrize("name", TEMPLATES)
def test_their_own_tests_pass(installed: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(TEMPLATES[name], tmp_path / "own", ignore=shutil.ignore_patterns("gateway_*", "__pycache__"))

    done = run(installed, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(tmp_path), str(tmp_path / "own"))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", TEMPLATES)
def test_they_need_nothing_of_the_gateway_but_the_public_surface(name: str) -> None:
    for module in TEMPLATES[name].glob("*.py"):
        for line in module.read_text().splitlines():
            if line.startswith(("from gateway.", "import gateway")):
                assert line.startswith(("from gateway.api import", "from gateway.testing import")), line


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_package_stops_the_start_and_is_named(tmp_path: Path, kind: str, fault: str) -> None:
    source, message = FAULTS[fault]
    package(tmp_path, f"broken-{kind}", kind, f"mine = broken_{kind}:Mine", source)

    done = serve(tmp_path, TABLES[kind])

    assert done.returncode == 1
    assert f"broken-{kind} 1.0" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", TABLES)
def test_a_name_that_two_packages_claim_stops_the_start_and_both_are_named(tmp_path: Path, kind: str) -> None:
    for name in ("first", "second"):
        package(tmp_path, f"{name}-{kind}", kind, "mine = nowhere:Mine")

    done = serve(tmp_path, "")

    assert done.returncode == 1
    assert f'"mine" is claimed by two packages, first-{kind} 1.0 and second-{kind} 1.0' in done.stderr


@pytest.mark.parametrize(("kind", "name"), [("adapter", "openai"), ("plugin", "redact")])
def test_a_package_that_takes_a_built_in_name_stops_the_start(tmp_path: Path, kind: str, name: str) -> None:
    package(tmp_path, "rival", kind, f"{name} = rival:Rival")

    done = serve(tmp_path, "")

    assert done.returncode == 1
    assert f'"{name}" is claimed by two packages, ai-gateway' in done.stderr
    assert "rival 1.0" in done.stderr


@pytest.mark.parametrize("kind", TABLES)
def test_without_the_package_the_message_says_what_there_is(tmp_path: Path, kind: str) -> None:
    done = serve(tmp_path, TABLES[kind])

    assert done.returncode == 1
    assert f'no {kind} "mine" is installed; ' in done.stderr
    assert "there are: " in done.stderr


def test_what_is_not_named_in_the_configuration_is_not_imported(tmp_path: Path) -> None:
    package(tmp_path, "broken-plugin", "plugin", "mine = broken_plugin:Mine", "raise RuntimeError")
    (tmp_path / "gateway.toml").write_text("[plugins.mine]\nenabled = false\n")

    done = run(tmp_path, "-m", "gateway", "check", "--config", "gateway.toml")

    assert done.returncode == 0, done.stderr

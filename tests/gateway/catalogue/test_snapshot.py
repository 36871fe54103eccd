import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from gateway.catalogue.card import ModelCard, ProviderCards
from gateway.catalogue.match import Equals
from gateway.catalogue.snapshot import FILE_NAME, Snapshot, build_apart, decode, edition, encode, open_snapshot
from gateway.errors import ConfigError

CARDS = {"p": ProviderCards(cards=(ModelCard(id="m", match=Equals("m"), context_tokens=7),))}


class Builder:
    """Makes snapshots, and counts them."""

    def __init__(self, of: str | None = None) -> None:
        self.made = 0
        self._edition = edition() if of is None else of

    def __call__(self) -> bytes:
        self.made += 1
        return encode(Snapshot.of(CARDS, edition=self._edition))


def test_cards_survive_the_file(snapshot):
    again = decode(encode(snapshot))

    assert again.edition == snapshot.edition == edition()
    assert again.providers.keys() == snapshot.providers.keys()
    for provider in again.providers:
        cards = again.cards(provider)
        assert cards == snapshot.cards(provider)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(cards), type=ProviderCards) == cards
    assert again.cards("nobody") is None


def test_it_is_made_once_and_kept(tmp_path):
    builder = Builder()

    snapshots = [open_snapshot(tmp_path / "new" / "data", build=builder) for _ in range(3)]

    assert builder.made == 1
    assert [each.cards("p") for each in snapshots] == [CARDS["p"]] * 3
    assert stat.S_IMODE((tmp_path / "new" / "data").stat().st_mode) == 0o700


def test_without_keeping_nothing_is_written(tmp_path):
    snapshot = open_snapshot(tmp_path / "data", keep=False, build=Builder())

    assert snapshot.cards("p") == CARDS["p"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", [b"", b"\xc1", b"\x81\xa7edition", encode(Snapshot.of(CARDS, edition="0/0.0.1/0"))]
)
def test_a_damaged_file_or_one_of_another_edition_is_made_again(tmp_path, damage):
    (tmp_path / FILE_NAME).write_bytes(damage)
    builder = Builder()

    assert open_snapshot(tmp_path, build=builder).edition == edition()

    assert builder.made == 1
    assert decode((tmp_path / FILE_NAME).read_bytes()).edition == edition()
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


def test_processes_that_make_it_at_once_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        snapshots = list(pool.map(lambda _: open_snapshot(tmp_path, build=Builder()), range(32)))

    assert all(each.cards("p") == CARDS["p"] for each in snapshots)
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no directory")

    with pytest.raises(ConfigError, match=r"server\.data_dir: .*catalogue\.msgpack can't be written"):
        open_snapshot(tmp_path / "file", build=Builder())


def test_the_builder_writes_a_snapshot_of_this_edition():
    snapshot = decode(build_apart())

    assert snapshot.edition == edition()
    assert snapshot.cards("openai") is not None


def test_nothing_heavy_is_imported_where_the_snapshot_is_there(tmp_path, snapshot):
    (tmp_path / FILE_NAME).write_bytes(encode(snapshot))
    program = (
        "import sys\n"
        "from gateway.catalogue.prices import Catalogue\n"
        "from gateway.catalogue.rows import Pricer\n"
        "from gateway.settings import Provider, Settings\n"
        "pricer = Pricer(Settings(providers={'openai': Provider(adapter='openai')}), Catalogue.open(sys.argv[1]))\n"
        "print(pricer.price('openai', 'gpt-4o', 'gpt-4o', 1.0)[0].input_mtok_nanos)\n"
    )

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
    assert done.stdout == "2500000000\n"
    assert "gateway.catalogue.prices" in imported
    assert {
        name for name in imported if name.split(".")[0] in ("genai_prices", "pydantic", "httpx2", "httpx")
    } == set()
    assert "gateway.catalogue.build" not in imported

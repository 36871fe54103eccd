"""Every named statement is used, and PostgreSQL understands it with the tables that the migrations make."""

import re
from pathlib import Path

import asyncpg
import pytest

from gateway.infra.migrate import DIRECTORY
from gateway.infra.postgres import load_queries

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "gateway").rglob("*.sql") if path.parent != DIRECTORY)
STATEMENTS = [(path, name) for path in FILES for name in load_queries(path)]


def test_there_are_statements():
    assert len(STATEMENTS) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_statements_are_understood(path, database):
    connection = await asyncpg.connect(database)
    try:
        for name, text in load_queries(path).items():
            try:
                await connection.prepare(text)
            except asyncpg.PostgresError as error:
                pytest.fail(f"{path.name}: {name}: {error}")
    finally:
        await connection.close()


@pytest.mark.parametrize(("path", "name"), STATEMENTS, ids=lambda value: getattr(value, "stem", value))
def test_statement_is_used(path, name):
    # By the module of the same name, or by those beside it that share its statements.
    sources = "".join(source.read_text() for source in path.parent.glob("*.py"))

    assert re.search(rf'queries\["{name}"\]', sources), f"{path.name}: nobody uses {name}"

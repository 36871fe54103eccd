import msgspec
import pytest
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.build import to_clause
from gateway.catalogue.match import (
    NAME_LENGTH_MAX,
    AllOf,
    AnyOf,
    Clause,
    Contains,
    EndsWith,
    Equals,
    Expression,
    Index,
    StartsWith,
)

TEXTS = st.text(alphabet="ab-", min_size=1, max_size=4)
CLAUSES = st.recursive(
    st.one_of(*(st.builds(kind, TEXTS) for kind in (Equals, StartsWith, EndsWith, Contains))),
    lambda inner: st.one_of(
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AllOf, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=5,
)


@given(clauses=st.lists(CLAUSES, max_size=6), name=TEXTS)
def test_the_index_finds_the_first_entry_that_matches(clauses, name):
    index = Index([(f"id{number}", clause) for number, clause in enumerate(clauses)])

    matching = [number for number, clause in enumerate(clauses) if clause.matches(name)]

    assert index.find(name) == (matching[0] if matching else None)


@given(CLAUSES)
def test_clauses_survive_encoding(clause):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(clause), type=Clause) == clause


@pytest.mark.parametrize("provider", providers, ids=lambda each: each.id)
def test_names_mean_what_the_package_says(provider):
    index = Index((model.id, to_clause(model.match)) for model in provider.models)
    names = {model.id.lower() for model in provider.models}
    names |= {f"{name}{suffix}" for name in names for suffix in ("-20251231", "-2025-12-31", "-latest", "x", ":free")}

    for name in names:
        meant = next((each for each in provider.models if each.is_match(name)), None)
        found = index.find(name)
        assert (None if found is None else provider.models[found].id) == (None if meant is None else meant.id), name


def test_an_expression_matches_anywhere_and_a_bad_one_nowhere():
    assert Expression(r"^gpt-\d").matches("gpt-5")
    assert not Expression(r"^gpt-\d").matches("not gpt-5")
    assert not Expression("(").matches("(")


def test_a_name_beyond_all_measure_matches_nothing():
    index = Index([("any", StartsWith("a"))])

    assert index.find("a" * NAME_LENGTH_MAX) == 0
    assert index.find("a" * (NAME_LENGTH_MAX + 1)) is None


def test_an_entry_is_found_by_its_id_too():
    index = Index([("Big-One", Equals("accounts/somebody/models/big-one"))])

    assert index.find("big-one") is None
    assert index.find_id("big-one") == 0

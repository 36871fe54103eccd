"""Signatures are kept in bounds and found by the call they belong to."""

from hypothesis import given
from hypothesis import strategies as st

from gateway_adapters.google.signatures import SIGNATURE_CHARS_MAX, Signatures


def test_a_signature_is_found_by_the_id_and_the_name() -> None:
    signatures = Signatures()
    signatures.keep(1, "id", "f", "c2ln")

    assert signatures.find(1, "id", "f") == "c2ln"
    assert signatures.find(1, "id", "g") is None
    assert signatures.find(1, "other", "f") is None


def test_the_one_not_asked_for_the_longest_goes_first() -> None:
    signatures = Signatures(size_max=30)
    for number in range(3):
        signatures.keep(1, f"{number}", "f", "12345678")
    assert signatures.find(1, "0", "f") is not None
    signatures.keep(1, "3", "f", "12345678")

    assert signatures.find(1, "1", "f") is None
    assert signatures.find(1, "0", "f") is not None


def test_one_that_is_too_long_is_not_kept() -> None:
    signatures = Signatures()
    signatures.keep(1, "id", "f", "x" * (SIGNATURE_CHARS_MAX + 1))

    assert signatures.find(1, "id", "f") is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("fg"), st.text(max_size=40))))
def test_the_bound_holds_whatever_comes(kept: list[tuple[str, str, str]]) -> None:
    signatures = Signatures(size_max=60)
    for call_id, name, signature in kept:
        signatures.keep(1, call_id, name, signature)

    found = [signatures.find(1, call_id, name) or "" for call_id in "abc" for name in "fg"]
    assert sum(len(signature) for signature in found) <= 60
    if kept and len(kept[-1][2]) <= 58:
        assert signatures.find(1, *kept[-1][:2]) == kept[-1][2]


def test_no_account_finds_what_another_one_was_answered() -> None:
    signatures = Signatures()
    signatures.keep(1, "id", "f", "c2ln")

    assert signatures.find(2, "id", "f") is None
    signatures.keep(2, "id", "f", "b3Ro")
    assert signatures.find(1, "id", "f") == "c2ln"

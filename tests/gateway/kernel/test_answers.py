"""How much is kept, and what goes first."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.answers import Answer, Answers


def answer(size_bytes: int, made_s: float = 0.0) -> Answer:
    return Answer(
        status=200, headers=[], body=b"x" * size_bytes, streaming=False, provider="p", cost_nanos=1, made_s=made_s
    )


def test_what_was_not_asked_for_longest_goes_first():
    answers = Answers(bytes_max=3 * 2024, ttl_s=60.0)
    for name in (b"a", b"b", b"c"):
        answers.keep(name, answer(1000))
    assert answers.find(b"a", 1.0) is not None
    answers.keep(b"d", answer(1000))
    assert [answers.find(name, 1.0) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_nothing_is_older_than_it_may_be():
    answers = Answers(bytes_max=10_000, ttl_s=60.0)
    answers.keep(b"a", answer(10))
    assert answers.find(b"a", 50.0, age_most_s=40.0) is None
    assert answers.find(b"a", 50.0, age_most_s=50.0) is not None
    assert answers.find(b"a", 61.0) is None
    assert len(answers) == answers.size_bytes == 0


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 12_000)), max_size=30))
def test_no_more_is_kept_than_there_is_room_for(steps):
    answers = Answers(bytes_max=10_000, ttl_s=60.0)
    for name, size_bytes in steps:
        answers.keep(name, answer(size_bytes))
        assert 0 <= answers.size_bytes <= 10_000
        assert (answers.find(name, 1.0) is not None) == (size_bytes + 1024 <= 10_000)

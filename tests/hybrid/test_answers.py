import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.answers import packed, unpacked


@given(st.lists(st.booleans(), max_size=70))
def test_answers_come_back(right: list[bool]) -> None:
    assert unpacked(packed(right), len(right)) == tuple(right)
    assert len(packed(right)) == -(-len(right) // 4)


def test_the_first_answer_is_the_highest_bit() -> None:
    assert packed([True, False, False, False, False, True]) == "84"


@pytest.mark.parametrize(("text", "n"), [("8", 5), ("84", 4), ("84", 5), ("8x", 6)])
def test_answers_to_another_number_of_questions_are_refused(text: str, n: int) -> None:
    with pytest.raises(ValueError, match=r"expected those to|invalid literal"):
        unpacked(text, n)

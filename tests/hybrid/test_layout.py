import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hybrid.layout import Ratio, compact, first_blocks, layout, parse_ratio, positions
from hybrid.spec import ConfigError

small = st.integers(0, 59)


@given(small, small)
def test_a_ratio_reads_the_same_quoted_and_as_yaml_reads_it_bare(a: int, b: int) -> None:
    if (a, b) == (0, 0):
        return
    bare = yaml.safe_load(f"{a}:{b}")
    assert parse_ratio(bare) == parse_ratio(f"{a}:{b}") == Ratio(first=a, second=b)


def test_yaml_really_makes_an_integer_of_a_bare_ratio() -> None:
    assert yaml.safe_load("1:12") == 72
    assert parse_ratio(72) == Ratio(first=1, second=12)


@pytest.mark.parametrize(
    "bad", ["0:0", "1", "1:", ":1", "-1:2", "1:2:3", "a:b", 5, 1.5, None, True, "1.0:2", [1, 2], "²:1"]
)
def test_what_is_no_ratio_is_refused_with_what_was_given(bad: object) -> None:
    with pytest.raises(ConfigError, match="ratio"):
        parse_ratio(bad)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(2, 60))
def test_a_hybrid_keeps_a_block_of_each_kind_and_stays_within_half_a_block_of_its_ratio(
    a: int, m: int, depth: int
) -> None:
    if a + m == 0:
        return
    n = first_blocks(Ratio(first=a, second=m), depth)
    if a and m:
        assert 1 <= n <= depth - 1
        exact = depth * a / (a + m)
        assert abs(n - exact) <= 0.5 or n in (1, depth - 1)
    else:
        assert n == (depth if a else 0)


@given(st.integers(1, 30), st.integers(0, 30), st.sampled_from(["front", "middle", "end"]))
def test_named_placements_give_distinct_positions_within_the_depth(n: int, extra: int, placement: str) -> None:
    depth = n + extra
    placed = positions(n, depth, placement)
    assert len(set(placed)) == n
    assert all(1 <= p <= depth for p in placed)
    if placement == "front":
        assert placed[0] == 1
    if placement == "end":
        assert placed[-1] == depth


def test_middle_gives_the_papers_positions_where_it_can() -> None:
    assert positions(1, 13, "middle") == (7,)
    assert positions(3, 13, "middle") == (3, 7, 11)
    assert positions(7, 14, "middle") == (2, 4, 6, 8, 10, 12, 14)
    assert positions(3, 13, "front") == (1, 7, 11)
    assert positions(3, 13, "end") == (3, 7, 13)


def test_explicit_positions_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        positions(1, 13, (0, 14, 14))
    assert len(caught.value.problems) == 3


def test_a_layout_has_one_letter_a_block() -> None:
    assert layout(Ratio(first=1, second=2), 3, (1,)) == "AMM"
    assert layout(Ratio(first=1, second=12), 13, "middle") == "MMMMMMAMMMMMM"


@given(st.text("AM", min_size=1, max_size=20))
def test_a_compact_layout_still_counts_every_block(pattern: str) -> None:
    text = compact(pattern)
    if text.startswith("("):
        unit, times = text[1:].split(")")
    else:
        unit, times = text.replace(" ", ""), "1"
    expanded = ""
    i = 0
    while i < len(unit):
        digits = ""
        letter, i = unit[i], i + 1
        while i < len(unit) and unit[i].isdigit():
            digits, i = digits + unit[i], i + 1
        expanded += letter * int(digits or 1)
    assert expanded * int(times) == pattern

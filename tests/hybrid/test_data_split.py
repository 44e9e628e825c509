import random

import pytest

from hybrid.corpus import Document
from hybrid.data.split import near_duplicate_clusters, split
from hybrid.spec import ConfigError


def prose(seed: int, words: int = 400) -> list[str]:
    return [f"w{random.Random(f'{seed}:{at}').randrange(10_000)}" for at in range(words)]


def text(words: list[str]) -> bytes:
    return " ".join(words).encode()


def documents(*contents: bytes) -> list[Document]:
    return [Document(path=f"{at:03}.py", content=content) for at, content in enumerate(contents)]


def test_unrelated_documents_with_one_licence_header_stay_apart() -> None:
    header = prose(99, words=40)
    assert near_duplicate_clusters([text(header + prose(seed)) for seed in range(5)]) == [[0], [1], [2], [3], [4]]


def test_edited_copies_share_a_cluster_transitively() -> None:
    original = prose(1)
    half = original[:200] + prose(2)[200:]
    other_half = prose(2)[:200] + prose(2)[200:]
    contents = [text(prose(7)), text(original), text(other_half), text(prose(8)), text(half)]
    assert near_duplicate_clusters(contents) == [[0], [1, 2, 4], [3]]


def test_layout_does_not_hide_a_copy() -> None:
    words = prose(3)
    assert near_duplicate_clusters([" ".join(words).encode(), ",\n\t".join(words).encode()]) == [[0, 1]]


def test_short_and_empty_documents_are_compared_whole() -> None:
    assert near_duplicate_clusters([b"", b"a b", b"a b", b"a c", b"\n# \n"]) == [[0, 4], [1, 2], [3]]


def test_clusters_do_not_straddle_the_split_and_it_takes_what_was_asked_for() -> None:
    contents = [text(prose(seed // 3)) + b" %d" % seed for seed in range(120)]
    corpus = documents(*contents)
    clusters = near_duplicate_clusters(contents)
    assert sorted(map(len, clusters)) == [3] * 40
    training, validation = split(corpus, clusters, 10)
    assert sorted(training + validation) == list(range(120))
    assert all(len({index in validation for index in cluster}) == 1 for cluster in clusters)
    held_out = sum(len(contents[index]) for index in validation) / sum(map(len, contents))
    assert 0.07 < held_out <= 0.10


def test_cluster_larger_than_the_share_is_trained_on() -> None:
    contents = [text(prose(0)) for _ in range(50)] + [text(prose(seed)) for seed in range(1, 51)]
    _, validation = split(documents(*contents), near_duplicate_clusters(contents), 10)
    assert len(validation) == 10
    assert min(validation) >= 50


def test_documents_are_shuffled_the_same_way_each_time() -> None:
    contents = [text(prose(seed)) for seed in range(60)]
    clusters = near_duplicate_clusters(contents)
    training, validation = split(documents(*contents), clusters, 20)
    assert training != sorted(training)
    assert (training, validation) == split(documents(*contents), clusters, 20)


@pytest.mark.parametrize("contents", [[b"one two three four five six"], [text(prose(1)), text(prose(2))], [b"", b""]])
def test_split_that_would_be_empty_is_refused(contents: list[bytes]) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_percent = 4: expected enough for a whole cluster"):
        split(documents(*contents), near_duplicate_clusters(contents), 4)

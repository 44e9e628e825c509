"""Preparing corpora: the same shards from any files that hold the same documents, whatever happens on the way."""

import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as registered
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hybrid.data import prepare as under_test
from hybrid.data.__main__ import main
from hybrid.data.prepare import WORK, Prepared, PrepareSettings, prepare, sources, work
from hybrid.data.prepare.overlap import gram_hashes
from hybrid.data.prepare.parts import PartSettings
from hybrid.data.prepare.tokenizer import choose_tokenizer, open_tokenizer
from hybrid.manifest import read_manifest
from hybrid.spec import ConfigError

BYTES = choose_tokenizer("bytes", name=None, bos=None, eos=None)
WORDS = [
    "state",
    "space",
    "attention",
    "layer",
    "größe",
    "window",
    "and",
    "the",
    "of",
    "mix",
    "Δ",
    "run",
    "seed",
    "loss",
]


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + f" {seed}"


TEXTS = [text(seed) for seed in range(80)]


def jsonl(texts: Sequence[str | None]) -> bytes:
    rows = ({"url": f"u{i}", "text": one} for i, one in enumerate(texts))
    return "".join(json.dumps(row, ensure_ascii=bool(i % 2)) + "\n" for i, row in enumerate(rows)).encode()


def write(path: Path, texts: Sequence[str | None]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".parquet":
        pq.write_table(
            pa.table({"url": ["u"] * len(texts), "text": pa.array(texts, pa.string())}), path, row_group_size=7
        )
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(jsonl(texts)))
    elif path.suffix == ".zst":  # two frames, of which one is cut within a line
        content = jsonl(texts)
        path.write_bytes(zstandard.compress(content[:500]) + zstandard.compress(content[500:]))
    else:
        path.write_bytes(jsonl(texts))
    return path


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def asked(*source: Path | str, **fields: Any) -> PrepareSettings:
    part = PartSettings(tokenizer=BYTES, text_column="text", seed=1, fraction=1.0, bad="stop")
    of_part = {
        name: fields.pop(name)
        for name in list(fields)
        if name in ("tokenizer", "text_column", "seed", "fraction", "bad")
    }
    settings = PrepareSettings(
        sources=tuple(map(str, source)),
        validation=(),
        part=replace(part, **of_part),
        tokens=None,
        val_tokens=None,
        val_percent=20.0,
        ngram=64,
        max_overlap=0.5,
        shard_tokens=4000,
        declared=None,
    )
    return replace(settings, **fields)


def silent(phase: str, done: int, total: int, tokens: int) -> None:
    assert phase
    assert 0 <= done <= total
    assert tokens >= 0


def made(directory: Path, *source: Path | str, processes: int = 1, **fields: Any) -> Prepared:
    return prepare(asked(*source, **fields), directory, processes=processes, report=silent)


def stream(prepared: Prepared, split: str) -> np.ndarray:
    files = getattr(prepared.manifest, split).files
    dtype = f"<u{prepared.manifest.token_bytes}"
    return np.concatenate([np.fromfile(prepared.directory / file.name, dtype=dtype) for file in files])


def documents(prepared: Prepared, split: str) -> list[bytes]:
    """Of byte shards."""
    tokens = stream(prepared, split)
    starts = np.flatnonzero(tokens == 256)
    pieces = np.split(tokens, starts[1:])
    assert all(piece[0] == 256 and piece[-1] == 257 for piece in pieces)
    return [piece[1:-1].astype(np.uint8).tobytes() for piece in pieces]


@pytest.fixture
def reference(tmp_path: Path) -> Prepared:
    return made(tmp_path / "reference", write(tmp_path / "all.jsonl", TEXTS))


# --- what comes out -----------------------------------------------------------------------------


def test_every_document_is_in_one_split_between_bos_and_eos(reference: Prepared) -> None:
    found = [documents(reference, split) for split in ("training", "validation")]
    assert sorted(found[0] + found[1]) == sorted(one.encode() for one in TEXTS)
    assert len(found[1]) > 5
    assert len(reference.manifest.training.files) > 3
    for split, texts in zip(("training", "validation"), found, strict=True):
        said = getattr(reference.manifest, split)
        assert (said.documents, said.text_bytes) == (len(texts), sum(map(len, texts)))
        assert said.tokens == len(stream(reference, split))


@pytest.mark.parametrize("order", [1, -1])
def test_neither_files_nor_formats_nor_their_order_can_be_seen_in_the_shards(
    reference: Prepared, tmp_path: Path, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SMALLEST_UNIT", 1500)
    texts = TEXTS[::order]
    files = [
        write(tmp_path / "x" / name, texts[20 * i : 20 * i + 20])
        for i, name in enumerate(("d.jsonl", "c.jsonl.gz", "b.jsonl.zst", "a.parquet"))
    ]
    assert len(sources.cut(sources.find_files([str(files[0])])[0], "text", 1500)) > 3
    assert len(sources.cut(sources.find_files([str(files[3])])[0], "text", 1500)) > 1
    assert made(tmp_path / "out", *files[::order]).manifest == reference.manifest


def test_directories_globs_and_urls_are_the_same_files(reference: Prepared, tmp_path: Path) -> None:
    write(tmp_path / "in" / "deep" / "a.parquet", TEXTS[:30])
    write(tmp_path / "in" / "b.jsonl.zst", TEXTS[30:])
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "in"), "/corpus", recursive=True)
    try:
        assert made(tmp_path / "1", tmp_path / "in").manifest == reference.manifest
        assert made(tmp_path / "2", tmp_path / "in" / "**" / "*.*").manifest == reference.manifest
        assert made(tmp_path / "3", "memory://corpus").manifest == reference.manifest
        assert (
            made(tmp_path / "4", "memory://corpus/**/*.parquet", "memory://corpus/b.*").manifest == reference.manifest
        )
    finally:
        memory.rm("/corpus", recursive=True)


def test_the_number_of_processes_cannot_be_seen_in_the_shards(tmp_path: Path, tokenizer_file: Path) -> None:
    spec = choose_tokenizer(str(tokenizer_file), name=None, bos=None, eos=None)
    files = [write(tmp_path / f"{i}.jsonl", TEXTS[i::3]) for i in range(3)]
    alone = made(tmp_path / "1", *files, tokenizer=spec, ngram=5)
    together = made(tmp_path / "2", *files, tokenizer=spec, ngram=5, processes=2)
    assert together.manifest == alone.manifest
    assert together.data == alone.data


def test_another_seed_is_another_order_and_split(reference: Prepared, tmp_path: Path) -> None:
    other = made(tmp_path / "other", tmp_path / "all.jsonl", seed=2)
    assert set(documents(other, "validation")) != set(documents(reference, "validation"))
    assert other.manifest.fingerprint != reference.manifest.fingerprint


def test_tokens_are_those_of_the_tokenizer_which_sees_no_special_ones_in_text(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    spec = choose_tokenizer(str(tokenizer_file), name=None, bos=None, eos=None)
    assert (spec.vocab_size, spec.bos, spec.eos, spec.token_bytes) == (300, 0, 1, 2)
    texts = [*TEXTS, "a page about <|end_of_text|> and <|begin_of_text|>"]
    prepared = made(tmp_path / "out", write(tmp_path / "a.jsonl", texts), tokenizer=spec, ngram=5, max_overlap=1.0)
    judge = Tokenizer.from_file(str(tokenizer_file))
    tokens = np.concatenate([stream(prepared, "training"), stream(prepared, "validation")])
    pieces = np.split(tokens, np.flatnonzero(tokens == 0)[1:])
    assert sorted(judge.decode(piece[1:-1].tolist()) for piece in pieces) == sorted(texts)
    assert all(np.count_nonzero(piece < 2) == 2 and piece[-1] == 1 for piece in pieces)


def test_large_vocabularies_take_four_bytes_a_token() -> None:
    assert replace(BYTES, vocab_size=1 << 16).token_bytes == 2
    assert replace(BYTES, vocab_size=(1 << 16) + 1).token_bytes == 4


def test_a_sample_is_the_beginning_of_all_and_a_fraction_only_saves_time(reference: Prepared, tmp_path: Path) -> None:
    source = tmp_path / "all.jsonl"
    n = reference.manifest.training.tokens // 3
    sample = made(tmp_path / "sample", source, tokens=n)
    tokens = stream(sample, "training")
    assert np.array_equal(tokens, stream(reference, "training")[: len(tokens)])
    last = len(documents(sample, "training")[-1]) + 2
    assert len(tokens) - last < n <= len(tokens)
    quick = made(tmp_path / "quick", source, tokens=n, fraction=0.5)
    assert np.array_equal(stream(quick, "training"), tokens)
    assert quick.data["read"]["tokenised"] < sample.data["read"]["tokenised"]
    with pytest.raises(ConfigError, match=r"--tokens 99,999: expected at most [\d,]+, all that"):
        made(tmp_path / "more", source, tokens=99_999)


def test_equal_texts_are_never_on_both_sides(tmp_path: Path) -> None:
    prepared = made(tmp_path / "out", write(tmp_path / "a.jsonl", TEXTS * 2), max_overlap=1.0)
    assert not set(documents(prepared, "training")) & set(documents(prepared, "validation"))
    assert prepared.data["near_duplicates"]["dropped"] == 0


def test_validation_may_come_from_files_of_its_own(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", TEXTS[:70]), write(tmp_path / "b.jsonl", TEXTS[70:])]
    prepared = made(tmp_path / "out", files[0], validation=(str(files[1]),))
    assert sorted(documents(prepared, "validation")) == sorted(one.encode() for one in TEXTS[70:])
    with pytest.raises(ConfigError, match="expected other files than those trained on"):
        made(tmp_path / "same", files[0], validation=(str(files[0]),))


# --- near-duplicates ----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 9))
def test_hashes_are_equal_where_n_grams_are(tokens: list[int], n: int) -> None:
    hashes = gram_hashes(np.array(tokens, dtype=np.uint16), n)
    grams = [tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))]
    assert len(hashes) == len(grams)
    assert len(set(zip(grams, hashes.tolist(), strict=True))) == len(set(grams)) == len(set(hashes.tolist()))


def test_dropped_are_those_that_one_training_document_contains_for_the_most_part(tmp_path: Path) -> None:
    """Against sets of n-grams, for documents that share anything from nothing to all."""
    base = [text(seed, 40) for seed in range(1000, 1012)]
    held_out = [*base, "short", "tiny", "never seen"]
    copies = [f"{one[: len(one) * i // 11]} and then {text(2000 + i, 30)}" for i, one in enumerate(base)]
    training = [*copies, *TEXTS[:20], "short", "tiny twice"]
    files = [write(tmp_path / "a.jsonl", training), write(tmp_path / "b.jsonl", held_out)]

    def grams(one: str, n: int = 16) -> set[bytes]:
        content = one.encode()
        return {content[i : i + n] for i in range(max(1, len(content) - n + 1))}

    def share(one: str) -> float:
        return max(len(grams(one) & grams(other)) / len(grams(one)) for other in training)

    expected = {one: share(one) for one in held_out if share(one) >= 0.5}
    assert "short" in expected
    assert 4 < len(expected) < 10
    prepared = made(tmp_path / "out", files[0], validation=(str(files[1]),), ngram=16)
    assert set(documents(prepared, "validation")) == {one.encode() for one in held_out if one not in expected}
    report = prepared.data["near_duplicates"]
    assert (report["dropped"], report["ngram"], report["max_overlap"]) == (len(expected), 16, 0.5)
    found = sorted(row["overlap"] for row in report["examples"])
    assert found == pytest.approx(sorted(expected.values()), abs=1e-4)


def test_where_all_of_the_validation_split_is_contaminated_that_is_an_error(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", TEXTS), write(tmp_path / "b.jsonl", TEXTS[:3])]
    with pytest.raises(ConfigError, match="all of the 3 held-out ones are"):
        made(tmp_path / "out", files[0], validation=(str(files[1]),))


# --- going on -----------------------------------------------------------------------------------


@pytest.fixture
def count_units(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tokenised: list[str] = []

    def counting(task: work.TokenizeTask) -> Any:
        tokenised.append(Path(task.unit.file.path).name)
        return work.tokenize(task)

    monkeypatch.setattr(under_test, "tokenize", counting)
    return tokenised


def test_asking_again_does_nothing_again(reference: Prepared, tmp_path: Path, count_units: list[str]) -> None:
    again = made(tmp_path / "reference", tmp_path / "all.jsonl")
    assert again.was_there
    assert again.manifest == reference.manifest
    assert count_units == []
    assert not (tmp_path / "reference" / WORK).exists()


def test_other_settings_are_refused_by_name_where_shards_are(reference: Prepared, tmp_path: Path) -> None:
    assert reference.directory == tmp_path / "reference"
    with pytest.raises(ConfigError, match=r"other seed, tokens; give another NAME"):
        made(tmp_path / "reference", tmp_path / "all.jsonl", seed=2, tokens=1000)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"expected a directory of its own .* thesis.tex"):
        made(tmp_path / "mine", tmp_path / "all.jsonl")


interrupted = Mock(side_effect=KeyboardInterrupt)


@pytest.mark.parametrize("pattern", ["parts/*.tokens", "parts/*.npy", "parts/*.json"])
def test_a_torn_part_is_redone_and_finished_ones_are_kept(
    reference: Prepared, tmp_path: Path, count_units: list[str], monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    files = [write(tmp_path / f"{i}.jsonl", TEXTS[20 * i : 20 * i + 20]) for i in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(under_test, "choose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "out", *files)
    assert len(count_units) == 4
    torn = sorted((tmp_path / "out" / WORK).glob(pattern))[2]
    os.truncate(torn, torn.stat().st_size // 2)
    (tmp_path / "out" / WORK / "parts" / ".x.tokens.00.tmp").touch()
    assert made(tmp_path / "out", *files).manifest == reference.manifest
    assert len(count_units) == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in reference.directory.iterdir()
    )


def test_a_torn_shard_is_redone_and_finished_ones_are_kept(
    reference: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(under_test, "_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "out", tmp_path / "all.jsonl")
    out = tmp_path / "out"
    os.truncate(out / "train-00001.bin", 100)
    kept = (out / "train-00002.bin").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="was not finished there: give the same command again"):
        read_manifest(out)
    assert made(out, tmp_path / "all.jsonl").manifest == reference.manifest
    assert (out / "train-00002.bin").stat().st_mtime_ns == kept


def test_a_source_that_changed_is_read_again(
    tmp_path: Path, count_units: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / "a.jsonl", TEXTS[:40]), write(tmp_path / "b.jsonl", ["old", *TEXTS[41:]])]
    with monkeypatch.context() as patch:
        patch.setattr(under_test, "choose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "out", *files)
    write(files[1], TEXTS[40:])
    prepared = made(tmp_path / "out", *files)
    assert sorted(count_units) == ["a.jsonl", "b.jsonl", "b.jsonl"]
    assert b"old" not in documents(prepared, "training") + documents(prepared, "validation")


def test_two_preparations_of_one_directory_do_not_meet(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "out" / WORK).mkdir(parents=True)
    with (
        under_test._locked(tmp_path / "out" / WORK / "lock"),
        pytest.raises(ConfigError, match="another process is preparing it"),
    ):
        made(tmp_path / "out", source)


def processes_with(mark: str) -> list[str]:
    """The processes that have this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes as Linux lists them")
def test_killed_at_any_moment_the_same_command_goes_on(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.jsonl.gz", [text(seed, 300) for seed in range(i, 2000, 4)]) for i in range(4)]
    command = [sys.executable, "-m", "hybrid.data", "prepare", f"{tmp_path}/out", *map(str, files)]
    command += ["--tokenizer", "bytes", "--processes", "2", "--val-percent", "20", "--shard-tokens", "100k"]
    environment = os.environ | {"MARK": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    until = time.monotonic() + 60
    while process.poll() is None and not list(tmp_path.glob("out/.work/parts/*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(tmp_path.glob("out/.work/parts/*.json"))
    while (left := processes_with(str(tmp_path))) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left
    subprocess.run(command, check=True, capture_output=True)
    expected = made(
        tmp_path / "expected", *files, val_tokens=10_000_000, shard_tokens=100_000, ngram=64, max_overlap=0.5
    )
    assert read_manifest(tmp_path / "out") == expected.manifest


# --- bad input ----------------------------------------------------------------------------------


def damage(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


@pytest.mark.parametrize("name", ["b.parquet", "b.jsonl.gz", "b.jsonl.zst"])
def test_a_truncated_file_is_named_and_the_others_are_kept(
    reference: Prepared, tmp_path: Path, name: str, count_units: list[str]
) -> None:
    files = [
        write(tmp_path / "a.jsonl", TEXTS[:30]),
        write(tmp_path / name, TEXTS[30:60]),
        write(tmp_path / "c.jsonl", TEXTS[60:]),
    ]
    damage(files[1])
    with pytest.raises(ConfigError) as error:
        made(tmp_path / "out", *files)
    assert str(files[1]) in error.value.problems[0]
    assert "2 of " in error.value.problems[-1]
    assert {"a.jsonl", "c.jsonl"} <= set(count_units)
    count_units.clear()
    write(files[1], TEXTS[30:60])
    assert made(tmp_path / "out", *files).manifest == reference.manifest
    assert set(count_units) == {name}


def test_a_parquet_file_that_is_damaged_within_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TEXTS)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.parquet"):
        made(tmp_path / "out", path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.zst"])
def test_broken_utf8_stops_with_its_place_or_is_left_out_and_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        values = [one.encode() for one in TEXTS]
        values[3] = b"caf\xe9"
        array = pa.array(values, pa.binary())
        text_array = pa.Array.from_buffers(pa.string(), len(array), array.buffers())
        pq.write_table(pa.table({"text": text_array}), path)
    else:
        content = jsonl(TEXTS).split(b"\n")
        content[3] = b'{"text": "caf\xe9"}'
        content[4] = b'{"text": "half a pair \\ud800"}'
        content[5] = b'{"text": "torn'
        packed = b"\n".join(content)
        path.write_bytes(zstandard.compress(packed) if name.endswith("zst") else packed)
    with pytest.raises(ConfigError, match=rf"{name}, (row 3|byte \d+|line 4): no UTF-8 .*--bad skip"):
        made(tmp_path / "out", path)
    prepared = made(tmp_path / "out", path, bad="skip")
    bad = 1 if name.endswith("parquet") else 3
    assert prepared.data["read"]["left_out"] == {"bad": bad}
    assert prepared.manifest.training.documents + prepared.manifest.validation.documents == 80 - bad
    assert len(prepared.data["read"]["bad"]) == bad


def test_empty_and_null_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet"):
        prepared = made(tmp_path / f"out-{name}", write(tmp_path / name, ["", None, *TEXTS]))
        assert prepared.data["read"]["left_out"] == {"empty": 2}


def test_a_missing_column_lists_those_that_there_are(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.jsonl", "a.jsonl.gz"):
        path = write(tmp_path / name, TEXTS)
        with pytest.raises(ConfigError, match=r"--text-column content: expected one of the .*text, url"):
            made(tmp_path / "out", path, text_column="content")
    numbers = tmp_path / "n.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), numbers)
    with pytest.raises(ConfigError, match=r"expected a column of text; .* it is int64"):
        made(tmp_path / "out", numbers)
    (tmp_path / "n.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(ConfigError, match=r"expected a field of text; .* it is int"):
        made(tmp_path / "out", tmp_path / "n.jsonl")


@pytest.mark.parametrize("texts", [[], ["", None]])
def test_an_empty_data_set_is_an_error(tmp_path: Path, texts: list[str | None]) -> None:
    for name in ("a.jsonl", "a.parquet", "a.jsonl.zst"):
        with pytest.raises(ConfigError, match="expected documents to train on"):
            made(tmp_path / f"out-{name}", write(tmp_path / name, texts))
    with pytest.raises(ConfigError, match="expected at least one document; of 1 documents none is held out"):
        made(tmp_path / "one", write(tmp_path / "one.jsonl", ["one"]), val_percent=1e-9)


def test_sources_that_match_nothing_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    given = [tmp_path / "absent", tmp_path / "*.parquet", tmp_path / "notes.txt", tmp_path, "nowhere://x"]
    with pytest.raises(ConfigError) as error:
        made(tmp_path / "out", *given)
    assert [any(str(source) in problem for problem in error.value.problems) for source in given] == [True] * 5


def test_a_tokenizer_that_is_none_says_what_would_do(tmp_path: Path, tokenizer_file: Path) -> None:
    def choose(chosen: str, bos: str | None = None, eos: str | None = None) -> None:
        choose_tokenizer(chosen, name=None, bos=bos, eos=eos)

    (tmp_path / "x.json").write_text("{}")
    for call, message in (
        (lambda: choose(f"{tmp_path}/x.json"), "expected a JSON file of the tokenizers library"),
        (lambda: choose(f"{tmp_path}/y.json"), "there is no such file"),
        (lambda: choose("bytes", bos="<s>"), "--bos <s>: expected none"),
        (lambda: choose(str(tokenizer_file), eos="<|end_of_txt|>"), r"did you mean <\|end_of_text\|>"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    assert choose_tokenizer(str(tokenizer_file.parent), name="x", bos=None, eos=None).name == "x"


def test_json_tokenizer_is_the_library_itself(tokenizer_file: Path) -> None:
    spec = choose_tokenizer(str(tokenizer_file), name=None, bos=None, eos=None)
    judge = Tokenizer.from_file(str(tokenizer_file))
    tokens = open_tokenizer(spec).encode(TEXTS)
    assert [one.tolist() for one in tokens] == [judge.encode(one, add_special_tokens=False).ids for one in TEXTS]


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command_prepares_shows_and_verifies(tmp_path: Path, command: Any) -> None:
    source = write(tmp_path / "a.jsonl", TEXTS)
    arguments = ["prepare", "mine", source, "--tokenizer", "bytes", "--val-percent", 20, "--processes", 1]
    code, out, err = command(*arguments, "--store", tmp_path / "store")
    assert code == 0
    directory = tmp_path / "store" / "data" / "mine"
    assert f"data.fingerprint={read_manifest(directory).fingerprint} data.vocab_size=258" in out
    assert f"python run.py data=corpus data.directory={directory}" in err
    assert "tokenising: 100%" in err
    code, out, err = command(*arguments, "--store", tmp_path / "store")
    assert (code, "is there already" in err) == (0, True)
    assert command("show", directory)[1] == out
    assert json.loads(command("show", directory, "--json")[1])["format"] == 1
    assert command("verify", directory)[0] == 0
    shard = next(directory.glob("train-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2] + b"xx")
    code, out, err = command("verify", directory)
    assert (code, str(shard) in err, "give its python -m hybrid.data prepare command again" in err) == (2, True, True)


def test_the_command_says_all_that_is_wrong_at_once(tmp_path: Path, command: Any) -> None:
    arguments = [
        "--fraction",
        0,
        "--max-overlap",
        2,
        "--tokens",
        "many",
        "--processes",
        0,
        "--tokenizer",
        "bites",
        "--of",
        "x",
    ]
    code, out, err = command("prepare", "my shards", tmp_path, *arguments)
    assert (code, out) == (2, "")
    for word in ("NAME 'my shards'", "--fraction 0", "--max-overlap 2", "--tokens", "--processes 0", "bites", "--of x"):
        assert word in err


def test_a_full_disk_is_one_line_with_the_file(tmp_path: Path, command: Any) -> None:
    source = write(tmp_path / "a.jsonl", TEXTS)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out").write_text("a file")
    code, _, err = command("prepare", f"{tmp_path}/out/deep", source, "--tokenizer", "bytes", "--processes", 1)
    assert code == 1
    assert f"error: {tmp_path}/out" in err


@pytest.mark.parametrize(
    ("given", "of", "expected"),
    [
        (["hf://datasets/o/n@v1/*.parquet", "hf://datasets/o/n@v1/x/*.jsonl"], None, ("o/n", "v1")),
        (["hf://datasets/o/n/*.parquet"], None, ("o/n", "main")),
        (["hf://datasets/o/n/*.parquet", "hf://datasets/o/m/*.parquet"], None, None),
        (["hf://datasets/o/n/*.parquet", "here.jsonl"], None, None),
        (["here.jsonl"], "o/n@main", ("o/n", "main")),
    ],
)
def test_what_corpus_the_sources_are_is_read_off_them(
    given: list[str], of: str | None, expected: tuple[str, str] | None
) -> None:
    from hybrid.data.__main__ import _declared

    assert _declared(given, of) == expected


# --- the hub, in its own words but without a network -----------------------------------------------


class LostConnectionError(Exception):
    """As httpx's, which are no OSErrors."""


class FakeHub(MemoryFileSystem):
    """Files in memory under hf:// URLs, described as huggingface_hub describes them."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    is_down = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").strip("/")

    def glob(self, path: str, detail: bool = False, **settings: Any) -> Any:
        found = super().glob(path, detail=detail, **settings)
        return {name: entry | {"blob_id": f"blob of {name}"} for name, entry in found.items()} if detail else found

    def open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        if FakeHub.is_down:
            raise LostConnectionError("the other side has hung up")
        return super().open(path, mode, **settings)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setitem(registered, "hf", FakeHub)
    hub = FakeHub(skip_instance_cache=True)
    hub.pipe("/datasets/o/books@v1/data/a.jsonl.zst", zstandard.compress(jsonl(TEXTS[:40])))
    hub.pipe("/datasets/o/books@v1/data/b.jsonl", jsonl(TEXTS[40:]))
    yield hub
    FakeHub.store.clear()


def test_a_corpus_of_the_hub_is_read_as_files_are_and_declared_by_its_revision(
    reference: Prepared, hub: FakeHub, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.exists("hf://datasets/o/books@v1/data/b.jsonl")
    arguments = ["--tokenizer", "bytes", "--val-percent", 20, "--shard-tokens", 4000, "--processes", 1]
    arguments = ["prepare", f"{tmp_path}/out", "hf://datasets/o/books@v1/data/*.jsonl*", *arguments]
    monkeypatch.setattr(FakeHub, "is_down", True)
    code, _, err = command(*arguments)
    assert (code, "books@v1/data/a.jsonl.zst: the other side has hung up" in err) == (2, True)
    monkeypatch.setattr(FakeHub, "is_down", False)
    assert command(*arguments)[0] == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.declared == ("o/books", "v1", "bytes")
    assert manifest.fingerprint == reference.manifest.fingerprint
    sources_read = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]["sources"]
    assert [source["version"] for source in sources_read] == [
        "blob of /datasets/o/books@v1/data/a.jsonl.zst",
        "blob of /datasets/o/books@v1/data/b.jsonl",
    ]

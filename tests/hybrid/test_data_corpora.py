"""Training on prepared shards: how they are found, checked, and cut into windows."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hybrid.config import read_config
from hybrid.data import corpora, open_data
from hybrid.data.corpora import CorpusData, open_corpus
from hybrid.data.packed import TokenStream
from hybrid.data.pieces import token_pieces
from hybrid.data.prepare import Prepared, PrepareSettings, prepare
from hybrid.data.prepare.parts import PartSettings
from hybrid.data.prepare.tokenizer import TokenizerSpec, choose_tokenizer, open_tokenizer
from hybrid.decode import canonical_json, decode, encode
from hybrid.manifest import MANIFEST, find_corpus, read_manifest
from hybrid.spec import ConfigError, CorpusSpec, HubSpec, RunSpec

REMOTE = HubSpec(name="o/books", corpus_revision="v1", tokenizer="bytes", vocab_size=258)


def build(
    data_root: Path,
    name: str = "books",
    n: int = 60,
    declared: tuple[str, str] | None = None,
    tokenizer: TokenizerSpec | None = None,
) -> Prepared:
    source = data_root.parent / f"{name}.jsonl"
    source.parent.mkdir(exist_ok=True, parents=True)
    source.write_text("".join(json.dumps({"text": f"document {i} of {name}, " * (i % 7 + 1)}) + "\n" for i in range(n)))
    settings = PrepareSettings(
        sources=(str(source),),
        validation=(),
        part=PartSettings(
            tokenizer=tokenizer or choose_tokenizer("bytes", name=None, bos=None, eos=None),
            text_column="text",
            seed=1,
            fraction=1.0,
            bad="stop",
        ),
        tokens=None,
        val_tokens=None,
        val_percent=30.0,
        ngram=64,
        max_overlap=1.0,
        shard_tokens=700,
        declared=declared,
    )
    return prepare(settings, data_root / name, processes=1, report=lambda *_: None)


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    return tmp_path / "store" / "data"


@pytest.fixture
def books(data_root: Path) -> Prepared:
    return build(data_root, declared=("o/books", "v1"))


def spec_of(prepared: Prepared) -> CorpusSpec:
    return CorpusSpec(fingerprint=prepared.manifest.fingerprint, vocab_size=prepared.manifest.vocab_size)


def joined(prepared: Prepared, split: str) -> np.ndarray:
    return np.concatenate(
        [np.fromfile(prepared.directory / file.name, "<u2") for file in getattr(prepared.manifest, split).files]
    )


# --- batches ------------------------------------------------------------------------------------


def test_a_stream_reads_across_its_parts() -> None:
    numbers = np.arange(30, dtype=np.uint32)
    stream = TokenStream([numbers[:3], numbers[3:3], numbers[3:20], numbers[20:]])
    assert len(stream) == 30
    for start in range(30):
        for length in range(1, 31 - start):
            assert stream.read(start, length).tolist() == list(range(start, start + length))
    assert stream.windows(np.array([1, 18]), 5).tolist() == [[1, 2, 3, 4, 5], [18, 19, 20, 21, 22]]


def test_windows_are_those_of_the_joined_shards_each_once_an_epoch(books: Prepared, data_root: Path) -> None:
    data = open_data(spec_of(books), 32, data_root)
    assert isinstance(data, CorpusData)
    tokens = joined(books, "training")
    assert len(books.manifest.training.files) > 2
    expected = {tuple(tokens[32 * i : 32 * i + 33].tolist()) for i in range(data.train_windows)}
    found = []
    for step in range(data.train_windows):
        batch = data.train_batch(step, 1, data_seed=3)
        found.append((*batch.inputs_BL[0].tolist(), int(batch.targets_BL[0, -1])))
        assert np.array_equal(batch.inputs_BL[:, 1:], batch.targets_BL[:, :-1])
    assert set(found) == expected
    validation = [row for batch in data.validation_batches(3, 10**6) for row in batch.inputs_BL]
    assert len(validation) == data.validation_windows == (len(joined(books, "validation")) - 1) // 32


def test_a_batch_is_a_function_of_seed_and_step_alone(books: Prepared, data_root: Path) -> None:
    one, other = (open_data(spec_of(books), 16, data_root) for _ in range(2))
    for step in (7, 0, 200):
        assert np.array_equal(one.train_batch(step, 4, 5).inputs_BL, other.train_batch(step, 4, 5).inputs_BL)
    halves = np.concatenate([other.train_batch(step, 2, 5).inputs_BL for step in (14, 15)])
    assert np.array_equal(one.train_batch(7, 4, 5).inputs_BL, halves)
    assert not np.array_equal(one.train_batch(0, 4, 5).inputs_BL, one.train_batch(0, 4, 6).inputs_BL)


def test_documents_shorter_than_the_window_are_packed_and_a_corpus_shorter_than_it_is_refused(
    books: Prepared, data_root: Path
) -> None:
    data = open_corpus(spec_of(books), 400, data_root)
    assert np.count_nonzero(data.train_batch(0, 1, 0).inputs_BL == 256) > 1
    n = books.manifest.validation.tokens
    with pytest.raises(ConfigError, match=rf"seq_len = {n}: expected at most {n - 1}.*--val-tokens"):
        open_corpus(spec_of(books), n, data_root)


def test_validation_documents_come_unpacked_and_their_bytes_are_counted(books: Prepared, data_root: Path) -> None:
    data = open_corpus(spec_of(books), 16, data_root)
    documents = list(data.validation_documents())
    assert np.array_equal(np.concatenate(documents), joined(books, "validation"))
    assert len(documents) == books.manifest.validation.documents
    assert all((document[0], document[-1]) == (256, 257) for document in documents)
    tokens = np.concatenate(documents)
    assert data.token_bytes_V[tokens].sum() == books.manifest.validation.text_bytes
    assert np.array_equal(data.validation_text(), tokens)
    assert data.decode(documents[0]) == b"".join(bytes([token]) for token in documents[0][1:-1])
    assert np.array_equal(data.encode(data.decode(documents[0])), documents[0][1:-1])


def test_batches_of_held_out_text_say_which_document_each_target_is_of(books: Prepared, data_root: Path) -> None:
    data = open_corpus(spec_of(books), 16, data_root)
    text = data.validation_text()
    number = np.cumsum(text == 256)
    windows: dict[tuple[int, ...], list[list[int]]] = {}  # some texts begin alike
    for start in range(0, 16 * data.validation_windows, 16):
        inputs, documents = text[start : start + 16], number[start + 1 : start + 17]
        windows.setdefault(tuple(inputs.tolist()), []).append(documents.tolist())
    for batch in data.validation_batches(4, 10**6):
        assert batch.document_BL is not None
        for row, document in zip(batch.inputs_BL, batch.document_BL, strict=True):
            windows[tuple(row.tolist())].remove(document.tolist())
    assert not any(windows.values())


TEXTS = ["größe Δ 🙂 of  a text", "\tan indented\n\nline", "<s> is not special here", "日本語 and more"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama 2's: blanks as U+2581, what is not in the vocabulary as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_tokens_of_a_corpus_are_decoded_and_counted_in_bytes_by_its_own_tokenizer(
    make: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    tokenizer = make()
    special = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if make is byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet) + 20,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS[:1], trainer)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    data = json.loads(path.read_text())
    data["added_tokens"] = data["added_tokens"][:2]  # byte tokens are ordinary ones
    path.write_text(json.dumps(data))
    chosen = choose_tokenizer(str(path), name=None, bos=None, eos=None)
    pieces = token_pieces(path, chosen.vocab_size)
    for text in TEXTS:
        tokens = open_tokenizer(chosen).encode([text])[0].tolist()
        assert len(tokens) > 3
        assert b"".join(pieces[token] for token in tokens) == text.encode()
    assert pieces[0] == pieces[1] == b""


def test_a_corpus_keeps_its_tokenizer_and_says_so_if_it_is_gone(data_root: Path, tmp_path: Path) -> None:
    tokenizer = byte_level()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = tmp_path / "given.json"
    tokenizer.save(str(path))
    prepared = build(data_root, tokenizer=choose_tokenizer(str(path), name=None, bos=None, eos=None))
    path.unlink()
    data = open_corpus(spec_of(prepared), 16, data_root)
    document = next(data.validation_documents())
    assert np.array_equal(data.encode(data.decode(document)), document[1:-1])
    tokens = np.concatenate(list(data.validation_documents()))
    assert data.token_bytes_V[tokens].sum() == prepared.manifest.validation.text_bytes
    (prepared.directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json = .*expected the tokenizer that the shards were made with"):
        _ = open_corpus(spec_of(prepared), 16, data_root).token_bytes_V


# --- finding and checking -----------------------------------------------------------------------


def test_shards_are_found_by_their_content_whatever_they_are_called(books: Prepared, data_root: Path) -> None:
    build(data_root, "other")
    os.rename(data_root / "books", data_root.parent / "elsewhere")
    (data_root / "renamed").symlink_to(data_root.parent / "elsewhere")
    assert find_corpus(data_root, spec_of(books)) == (data_root / "renamed", books.manifest)
    assert find_corpus(data_root, REMOTE)[0] == data_root / "renamed"


def test_shards_that_are_not_there_are_said_with_the_command_that_makes_them(tmp_path: Path, data_root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.name = o/books: expected the shards of .*: there are none; make them: "
    ):
        find_corpus(tmp_path / "nowhere", REMOTE)
    build(data_root, "other")
    with pytest.raises(
        ConfigError, match=r"there are other; make them: python -m hybrid.data prepare .*--of o/books@v1"
    ):
        find_corpus(data_root, REMOTE)
    absent = CorpusSpec(fingerprint="0" * 16, vocab_size=258)
    with pytest.raises(ConfigError, match=r"data\.fingerprint = 0{16}: expected its shards below .*there are other"):
        open_data(absent, 16, data_root)


def test_a_declared_revision_that_two_different_corpora_claim_is_refused(books: Prepared, data_root: Path) -> None:
    build(data_root, "books2", n=50, declared=("o/books", "v1"))
    with pytest.raises(ConfigError, match=r"books \(\w+\), books2 \(\w+\) say that they are o/books at v1"):
        find_corpus(data_root, REMOTE)
    assert find_corpus(data_root, spec_of(books))[0].name == "books"


def test_another_vocabulary_than_the_shards_have_is_refused(books: Prepared, data_root: Path) -> None:
    for spec in (replace(REMOTE, vocab_size=128256), replace(spec_of(books), vocab_size=128256)):
        with pytest.raises(ConfigError, match=r"data\.vocab_size = 128256: expected 258"):
            find_corpus(data_root, spec)


def test_missing_and_wrong_shards_are_named_with_what_to_do(
    books: Prepared, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [books.directory / file.name for file in books.manifest.training.files]
    content = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(content[1][:-2])
    files[2].write_bytes(bytes(2) + content[2][2:])
    with pytest.raises(ConfigError) as error:
        open_data(spec_of(books), 16, data_root)
    assert [str(file) in problem for file, problem in zip(files[:3], error.value.problems, strict=True)] == [True] * 3
    assert all("or remove" in problem for problem in error.value.problems)
    # Of terabytes only the sizes are looked at when a run starts.
    monkeypatch.setattr(corpora, "CHECKED_BYTES", 0)
    with pytest.raises(ConfigError) as error:
        open_data(spec_of(books), 16, data_root)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"fingerprint": "0" * 16}, "expected .*, as its checksums say"),
        (lambda data: data["training"]["files"].reverse() or data, "as its checksums say"),
        (lambda data: data | {"format": 2}, "format 2: expected 1"),
        (lambda data: {key: value for key, value in data.items() if key != "training"}, "expected the manifest"),
        (lambda data: [data], "expected the manifest"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(books: Prepared, change: Any, message: str) -> None:
    path = books.directory / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ConfigError, match=message):
        read_manifest(books.directory)
    path.write_text("{torn")
    with pytest.raises(ConfigError, match="expected the manifest of prepared shards"):
        read_manifest(books.directory)


# --- configurations -----------------------------------------------------------------------------


def run_of(config: dict[str, Any], **data: Any) -> RunSpec:
    null: dict[str, Any] = {"directory": None, "fingerprint": None, "vocab_size": None}
    return read_config(config | {"data": {"kind": "corpus"} | null | data}, stdlib_fingerprint=str).run


def test_a_directory_is_read_for_what_it_holds_and_is_no_part_of_a_run(
    books: Prepared, config: dict[str, Any], tmp_path: Path
) -> None:
    run = run_of(config, directory=str(books.directory))
    assert run.data == spec_of(books)
    assert run.model.vocab_size == 258
    os.rename(books.directory, tmp_path / "elsewhere")
    assert canonical_json(run_of(config, directory=str(tmp_path / "elsewhere"))) == canonical_json(run)
    assert run_of(config, fingerprint=run.data.fingerprint, vocab_size=258) == run
    assert decode(RunSpec, encode(run)) == run


def test_what_a_configuration_of_a_corpus_lacks_or_contradicts_is_said(
    books: Prepared, config: dict[str, Any], tmp_path: Path
) -> None:
    for data, message in (
        ({}, "data.fingerprint = null: expected data.directory=DIR"),
        ({"fingerprint": "0" * 16}, "data.vocab_size = null: expected data.directory=DIR"),
        ({"directory": str(tmp_path)}, "expected the manifest of prepared shards; python -m hybrid.data prepare makes"),
        ({"directory": ""}, "data.directory = '': expected a directory"),
        ({"directory": str(books.directory), "fingerprint": "0" * 16}, "data.fingerprint = 0000000000000000: expected"),
        ({"fingerprint": "x", "vocab_size": 258}, "data.fingerprint = 'x': expected 16 hex digits"),
        ({"fingerprint": "0" * 16, "vocab_size": 0}, "data.vocab_size = 0: expected at least 1"),
        ({"directori": "x"}, "data.directori = 'x': unknown setting"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_of(config, **data)


def test_a_tokenizer_with_more_tokens_than_the_model_has_is_refused(books: Prepared, config: dict[str, Any]) -> None:
    small = config | {"model": config["model"] | {"vocab_size": 200}}
    with pytest.raises(ConfigError, match=r"model\.vocab_size = 200: expected at least the data's 258"):
        run_of(small, directory=str(books.directory))

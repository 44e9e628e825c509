"""Runs on prepared corpora: planned anywhere, started where their shards are, and told by which shards they learnt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved
from hybrid.data.__main__ import main as prepare
from hybrid.manifest import read_manifest
from hybrid.spec import ConfigError
from sweeps.cells import Expansion
from sweeps.commands import _check_trainable
from sweeps.identity import run_id
from sweeps.plan import make_plan
from sweeps.plan_settings import read_plan_settings
from sweeps.stopping import StopFlag
from sweeps.store import Store
from sweeps.worker.generation import GenerateConfig, generate_one
from sweeps.worker.runs import run_one

TINY = (
    "model=llama",
    "model.depth=1",
    "model.d_model=16",
    "model.attention.n_heads=2",
    "model.attention.n_kv_heads=2",
    "model.attention.head_dim=8",
    "model.ffn=null",
    "seq_len=16",
    "batch_tokens=64",
    "budget.tokens=320",
)
DECLARED = (
    "data=pg19",
    "data.corpus_revision=v1",
    "data.tokenizer=bytes",
    "data.vocab_size=258",
    "model.vocab_size=null",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture
def books(store: Store, tmp_path: Path) -> Path:
    source = tmp_path / "books.jsonl"
    source.write_text("".join(json.dumps({"text": f"book {i}: " + "word " * (i % 9)}) + "\n" for i in range(80)))
    options = ["--tokenizer", "bytes", "--val-percent", "30", "--max-overlap", "1", "--processes", "1"]
    where = ["--store", str(store.root), "--of", "emozilla/pg19@v1"]
    assert prepare(["prepare", "books", str(source), *options, *where]) == 0
    return store.data_root / "books"


def train(store: Store, resolved: Resolved) -> str:
    return run_one(store, resolved.run, resolved.execution, stop=StopFlag(), progress=lambda *_: None)


def test_a_run_trains_on_a_corpus_of_ones_own(store: Store, books: Path, resolve: Callable[..., Resolved]) -> None:
    resolved = resolve(*TINY, "data=corpus", f"data.directory={books}")
    assert train(store, resolved) == "done"
    record = store.record(run_id(resolved.run))
    assert record is not None
    assert record["spec"]["data"]["fingerprint"] == read_manifest(books).fingerprint
    assert str(books) not in json.dumps(record["spec"])


def test_a_run_on_a_declared_revision_records_which_shards_it_learnt_from(
    store: Store, books: Path, resolve: Callable[..., Resolved]
) -> None:
    resolved = resolve(*TINY, *DECLARED)
    assert train(store, resolved) == "done"
    record = store.record(run_id(resolved.run))
    assert record is not None
    assert record["provenance"]["corpus"] == read_manifest(books).fingerprint


def test_a_run_on_a_corpus_continues_a_prompt_in_the_words_of_its_tokenizer(
    store: Store, tmp_path: Path, resolve: Callable[..., Resolved]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a word and a word " * 20], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = tmp_path / "words.jsonl"
    source.write_text("".join(json.dumps({"text": f"{i} " + "word " * (9 + i % 9)}) + "\n" for i in range(80)))
    options = ["--tokenizer", str(tmp_path / "tokenizer.json"), "--bos", "<s>", "--eos", "</s>", "--max-overlap", "1"]
    assert prepare(["prepare", "words", str(source), *options, "--val-percent", "30", "--store", str(store.root)]) == 0
    resolved = resolve(*TINY, "data=corpus", f"data.directory={store.data_root / 'words'}")
    assert train(store, resolved) == "done"
    settings = GenerateConfig(prompt="a word", tokens=12, temperature=0.0, top_k=None, top_p=None, seed=1)
    pieces: list[str] = []
    generate_one(store, resolved.run, resolved.execution, settings, pieces.append)
    assert pieces[0] == "a word"
    vocabulary = {tokenizer.decode([token]) for token in range(2, tokenizer.get_vocab_size())}
    assert set(pieces[1:]) <= vocabulary | {""}
    assert any(len(piece) > 1 for piece in pieces[1:]), "tokens of several letters are the likeliest here"


def test_a_damaged_shard_fails_the_run_and_is_named(
    store: Store, books: Path, resolve: Callable[..., Resolved]
) -> None:
    shard = next(books.glob("train-*.bin"))
    shard.write_bytes(bytes(2) + shard.read_bytes()[2:])
    resolved = resolve(*TINY, "data=corpus", f"data.directory={books}")
    with pytest.raises(ConfigError, match=f"{shard} = SHA-256"):
        train(store, resolved)
    error = json.loads(next(store.root.glob("runs/*/*/attempts/001/error.json")).read_text())
    assert str(shard) in json.dumps(error)


def test_a_request_is_planned_without_shards_and_not_started_without_them(
    store: Store, books: Path, expand_request: Callable[..., Expansion], config: dict[str, Any]
) -> None:
    expansion = expand_request(*TINY, *DECLARED, "optim.lr=1e-3,2e-3")
    plan = make_plan(expansion.runs, store, read_plan_settings(config["plan"]))
    assert len(plan.startable) == 2
    _check_trainable(plan, store)
    (books / "manifest.json").rename(books / "manifest.old")
    with pytest.raises(ConfigError, match=r"expected the shards of emozilla/pg19 at v1 .*mode=plan") as error:
        _check_trainable(plan, store)
    assert len(error.value.problems) == 1

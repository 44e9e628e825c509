import json
import os
from pathlib import Path

import numpy as np
import pytest

from hybrid.corpus import stdlib_fingerprint
from hybrid.data import Batch, open_data
from hybrid.data.shards import Shards, open_shards
from hybrid.data.stdlib import StdlibData
from hybrid.spec import ConfigError, StdlibSpec

# fmt: off
GOLDEN_EPOCHS = [
    0, 70, 80, 60, 90, 50, 10, 30, 20, 40,
    90, 40, 20, 10, 0, 70, 80, 50, 30, 60,
]
# fmt: on


def numbered(train_tokens: int = 101, validation_tokens: int = 37) -> Shards:
    """Streams in which every token is its own position, so that a window shows where it was cut."""
    return Shards(
        directory=Path("nowhere"),
        training=np.arange(train_tokens, dtype=np.uint16),
        validation=np.arange(1000, 1000 + validation_tokens, dtype=np.uint16),
    )


def starts(batch: Batch) -> list[int]:
    return [int(start) for start in batch.inputs_BL[:, 0]]


def test_windows_are_consecutive_tokens_with_targets_one_ahead() -> None:
    batch = StdlibData(numbered(), seq_len=10).train_batch(0, 4, 0)
    assert batch.inputs_BL.shape == batch.targets_BL.shape == (4, 10)
    assert batch.inputs_BL.dtype == batch.targets_BL.dtype == np.int64
    assert np.array_equal(batch.inputs_BL, batch.inputs_BL[:, :1] + np.arange(10))
    assert np.array_equal(batch.targets_BL, batch.inputs_BL + 1)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_each_epoch_visits_every_window_once_in_an_order_of_its_own(batch_size: int) -> None:
    data = StdlibData(numbered(), seq_len=10)
    assert data.train_windows == 10
    order = [start for step in range(-(-30 // batch_size)) for start in starts(data.train_batch(step, batch_size, 3))]
    epochs = [order[0:10], order[10:20], order[20:30]]
    assert all(sorted(epoch) == list(range(0, 100, 10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_training_order_does_not_depend_on_how_it_is_batched() -> None:
    data = StdlibData(numbered(), seq_len=10)
    assert [s for step in range(12) for s in starts(data.train_batch(step, 2, 1))] == starts(data.train_batch(0, 24, 1))


def test_a_batch_depends_on_its_arguments_only() -> None:
    used = StdlibData(numbered(), seq_len=10)
    for step, seed in ((9, 0), (0, 1), (2, 0)):
        used.train_batch(step, 8, seed)
    list(used.validation_batches(2, 3))
    assert starts(used.train_batch(5, 8, 0)) == starts(StdlibData(numbered(), seq_len=10).train_batch(5, 8, 0))


def test_training_order_is_the_golden_one() -> None:
    """A change here changes every curve on the library: raise `StdlibSpec.revision` with it."""
    assert starts(StdlibData(numbered(), seq_len=10).train_batch(0, 20, 0)) == GOLDEN_EPOCHS


def test_data_seeds_give_different_orders() -> None:
    data = StdlibData(numbered(), seq_len=2)
    assert len({tuple(starts(data.train_batch(0, 50, seed))) for seed in range(5)}) == 5


def test_validation_is_every_window_once_in_one_order_however_batched() -> None:
    data = StdlibData(numbered(), seq_len=5)
    whole = [s for batch in data.validation_batches(3, 100) for s in starts(batch)]
    assert sorted(whole) == list(range(1000, 1035, 5))
    assert [s for batch in data.validation_batches(2, 4) for s in starts(batch)] == whole[:4]
    assert [len(batch.inputs_BL) for batch in data.validation_batches(3, 100)] == [3, 3, 1]


def test_split_of_exactly_one_window_is_enough_and_less_is_refused() -> None:
    assert StdlibData(numbered(validation_tokens=37), seq_len=36).validation_windows == 1
    with pytest.raises(ConfigError, match="seq_len = 37: expected at most 36"):
        StdlibData(numbered(validation_tokens=37), seq_len=37)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the real library's shards; parallel test processes share it, and may well race to build it."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "installed-stdlib"
    open_shards(installed_spec(), cache)
    return cache


def installed_spec() -> StdlibSpec:
    return StdlibSpec(fingerprint=stdlib_fingerprint(), val_percent=4)


def test_installed_library_yields_its_own_bytes(installed: Path) -> None:
    data = open_data(installed_spec(), 256, installed)
    assert isinstance(data, StdlibData)
    assert data.train_windows > 10 * data.validation_windows > 1000
    batch = data.train_batch(0, 32, 0)
    assert 0 <= batch.inputs_BL.min() <= batch.inputs_BL.max() < installed_spec().vocab_size
    assert b"import " in b"".join(
        bytes(row[row < 256].astype(np.uint8)) for row in data.train_batch(0, 64, 0).inputs_BL
    )


def test_code_pages_are_one_cluster_on_one_side_of_the_split(installed: Path) -> None:
    manifest = json.loads((open_shards(installed_spec(), installed).directory / "manifest.json").read_text())
    with_code_pages = [c for c in manifest["near_duplicates"] if any("encodings/cp125" in path for path in c)]
    assert len(with_code_pages) == 1
    assert {f"encodings/cp125{digit}.py" for digit in range(9)} <= set(with_code_pages[0])
    assert {"encodings/iso8859_1.py", "encodings/koi8_r.py", "encodings/mac_roman.py"} <= set(with_code_pages[0])
    assert all(path.startswith("encodings/") for path in with_code_pages[0])
    held_out = set(manifest["validation_documents"])
    assert all(held_out.isdisjoint(c) or held_out.issuperset(c) for c in manifest["near_duplicates"])


def test_no_cluster_chains_through_the_library(installed: Path) -> None:
    manifest = json.loads((open_shards(installed_spec(), installed).directory / "manifest.json").read_text())
    outside_encodings = [c for c in manifest["near_duplicates"] if not c[0].startswith("encodings/")]
    documents = sum(part["documents"] for part in manifest["files"].values())
    assert max(map(len, outside_encodings)) < documents / 20
    tokens = {name: part["tokens"] for name, part in manifest["files"].items()}
    assert 0.039 < tokens["validation.bin"] / sum(tokens.values()) < 0.0405

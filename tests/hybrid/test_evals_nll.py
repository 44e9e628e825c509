import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybrid.data import NOT_SCORED, Batch, DataSource
from hybrid.data.recall import RecallData
from hybrid.data.shards import Shards
from hybrid.data.stdlib import StdlibData
from hybrid.eval_spec import NllEvalSpec, canonical, eval_id
from hybrid.evals import nll
from hybrid.evals.intervals import ratio_interval
from hybrid.evals.nll import evaluate_nll, evaluate_nll_by_document
from hybrid.model import LanguageModel
from hybrid.spec import AttentionSpec, BlockSpec, ModelSpec, RecallSpec

SEQ_LEN = 16


def model(vocab_size: int) -> LanguageModel:
    mixer = AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=8, rope=None)
    blocks = (BlockSpec(mixer=mixer, ffn=None),)
    built = LanguageModel(
        ModelSpec(d_model=16, vocab_size=vocab_size, tie_embeddings=True, norm_eps=1e-5, init_std=0.5, blocks=blocks)
    )
    built.init_weights(1)
    return built


def recall() -> RecallData:
    return RecallData(RecallSpec(n_symbols=32, n_pairs=3, power=0.1), SEQ_LEN)


def text() -> StdlibData:
    tokens = np.random.default_rng(0).integers(0, 258, size=1000).astype(np.uint16)
    return StdlibData(Shards(directory=Path("nowhere"), training=tokens, validation=tokens[:333]), SEQ_LEN)


class Masked(DataSource):
    """Validation of which nothing, or little and unevenly much, is scored."""

    def __init__(self, n_scored: int) -> None:
        self._n_scored = n_scored

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        raise NotImplementedError

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        for batch in text().validation_batches(batch_size, max_examples):
            targets_BL = np.full_like(batch.targets_BL, NOT_SCORED)
            targets_BL[0, : self._n_scored] = batch.targets_BL[0, : self._n_scored]
            yield Batch(inputs_BL=batch.inputs_BL, targets_BL=targets_BL)


def by_hand(built: LanguageModel, data: DataSource, max_examples: int) -> tuple[float, float, int]:
    """Sequence by sequence and all logits in float64."""
    built = model(built.spec.vocab_size).double()
    losses, hits = [], []
    for batch in data.validation_batches(1, max_examples):
        targets = torch.from_numpy(batch.targets_BL[0])
        with torch.no_grad():
            logits = built(torch.from_numpy(batch.inputs_BL))[0]
        scored = targets != NOT_SCORED
        losses += F.cross_entropy(logits[scored], targets[scored], reduction="none").tolist()
        hits += (logits.argmax(-1) == targets)[scored].tolist()
    return float(np.mean(losses)), float(np.mean(hits)), len(losses)


@pytest.mark.parametrize(
    ("data", "vocab_size"), [(recall(), 32), (text(), 258), (Masked(5), 258)], ids=["recall", "text", "masked"]
)
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_it_is_the_mean_over_scored_positions_whatever_the_batches(
    data: DataSource, vocab_size: int, batch_size: int
) -> None:
    built = model(vocab_size)
    found = evaluate_nll(built, data, max_examples=10, batch_size=1 if isinstance(data, Masked) else batch_size)
    loss, accuracy, n_scored = by_hand(built, data, 10)
    assert found.loss_nats == pytest.approx(loss, rel=1e-5)
    assert found.accuracy == pytest.approx(accuracy, rel=1e-12)
    assert found.n_scored == n_scored


def test_in_float64_batches_make_no_difference_beyond_rounding() -> None:
    built = model(258).double()
    one, many = (evaluate_nll(built, text(), max_examples=10, batch_size=size) for size in (1, 7))
    assert one.loss_nats == pytest.approx(many.loss_nats, rel=1e-13)


def test_no_limit_reads_the_whole_split() -> None:
    data = text()
    assert evaluate_nll(model(258), data, max_examples=None, batch_size=8).n_scored == SEQ_LEN * data.validation_windows


def test_no_limit_ends_where_the_data_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nll, "ENDLESS_SPLIT_EXAMPLES", 20)
    assert evaluate_nll(model(32), recall(), max_examples=None, batch_size=8).n_scored == 20 * 3


def test_bits_per_byte_spread_the_loss_of_all_tokens_over_the_bytes() -> None:
    data = text()
    found = evaluate_nll(model(258), data, max_examples=12, batch_size=5)
    targets = np.concatenate([batch.targets_BL for batch in data.validation_batches(1, 12)])
    n_bytes = int((targets < 256).sum())
    assert n_bytes < found.n_scored
    assert found.bits_per_byte == pytest.approx(found.loss_nats / math.log(2) * found.n_scored / n_bytes, rel=1e-12)
    assert evaluate_nll(model(32), recall(), max_examples=4, batch_size=4).bits_per_byte is None


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_mode_gradients_and_random_state_alone(training: bool) -> None:
    built = model(32).train(training)
    random = torch.get_rng_state()
    evaluate_nll(built, recall(), max_examples=8, batch_size=4)
    assert all(module.training is training for module in built.modules())
    assert all(parameter.grad is None for parameter in built.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="no position is scored"):
        evaluate_nll(model(258), Masked(0), max_examples=4, batch_size=2)


def test_bfloat16_is_close_to_float32_and_another_number() -> None:
    built = model(32)
    half = evaluate_nll(built, recall(), max_examples=64, batch_size=8, dtype="bfloat16")
    full = evaluate_nll(built, recall(), max_examples=64, batch_size=8)
    assert half.loss_nats != full.loss_nats
    assert half.loss_nats == pytest.approx(full.loss_nats, rel=0.02)


def test_ids_are_the_hash_of_the_canonical_json_and_frozen() -> None:
    spec = NllEvalSpec(max_examples=100)
    assert canonical(spec) == {"kind": "nll", "max_examples": 100}
    text = json.dumps(canonical(spec), sort_keys=True, separators=(",", ":"))
    assert eval_id(spec) == hashlib.sha256(text.encode()).hexdigest()[:12] == "af2da3365f5d"
    assert eval_id(NllEvalSpec()) == "78d158c05107"


@pytest.mark.parametrize(
    ("data", "vocab_size"), [(recall(), 32), (text(), 258), (Masked(5), 258)], ids=["recall", "text", "masked"]
)
def test_by_document_it_is_the_same_mean(data: DataSource, vocab_size: int) -> None:
    whole = evaluate_nll(model(vocab_size), data, max_examples=9, batch_size=2)
    found = evaluate_nll_by_document(model(vocab_size), data, max_examples=9, batch_size=2)
    assert found.mean.loss_nats == pytest.approx(whole.loss_nats, rel=1e-6)
    assert found.mean.bits_per_byte == (None if whole.bits_per_byte is None else pytest.approx(whole.bits_per_byte))
    assert (found.mean.accuracy, found.mean.n_scored) == (whole.accuracy, whole.n_scored)


def test_documents_are_what_stands_from_one_bos_to_the_next_wherever_windows_end() -> None:
    """A document of three windows, the end of one, two in one window, and the beginning of one that is cut off."""
    lengths = [7, 40, 3, 5, 20, 30]
    tokens = np.random.default_rng(0).integers(0, 256, size=sum(lengths)).astype(np.uint16)
    tokens[np.cumsum([0, *lengths[:-1]])] = 256
    data = StdlibData(Shards(directory=Path("nowhere"), training=tokens, validation=tokens), SEQ_LEN)
    built = model(258).double()
    found = evaluate_nll_by_document(built, data, max_examples=None, batch_size=4)
    loss, n, n_bytes = np.zeros(len(lengths)), np.zeros(len(lengths)), np.zeros(len(lengths))
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for first in range(0, data.validation_windows * SEQ_LEN, SEQ_LEN):
        window = torch.from_numpy(tokens[first : first + SEQ_LEN + 1].astype(np.int64))
        with torch.no_grad():
            losses = F.cross_entropy(built(window[None, :-1])[0], window[1:], reduction="none")
        for position, value in enumerate(losses.tolist(), first + 1):
            loss[document_of[position]] += value
            n[document_of[position]] += 1
            n_bytes[document_of[position]] += tokens[position] < 256
    assert found.n_documents == len(lengths)
    assert found.mean.loss_nats == pytest.approx(loss.sum() / n.sum(), rel=1e-12)
    assert found.loss_nats_interval == pytest.approx(ratio_interval(loss, n), rel=1e-12)
    assert found.bits_per_byte_interval == pytest.approx(ratio_interval(loss / math.log(2), n_bytes), rel=1e-12)


def test_without_documents_sequences_are_resampled() -> None:
    assert evaluate_nll_by_document(model(32), recall(), max_examples=9, batch_size=2).n_documents == 9
    one = evaluate_nll_by_document(model(32), recall(), max_examples=1, batch_size=2)
    assert one.loss_nats_interval is None
    assert one.metrics("pg19")["pg19_loss_nats_low"] is None


def test_on_other_data_the_names_of_a_record_begin_with_theirs() -> None:
    found = evaluate_nll_by_document(model(258), text(), max_examples=9, batch_size=2)
    assert found.metrics(None)["loss_nats"] == found.metrics("pg19")["pg19_loss_nats"] == found.mean.loss_nats
    assert all(name.startswith("pg19_") for name in found.metrics("pg19"))


def test_by_document_nothing_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="no position is scored"):
        evaluate_nll_by_document(model(258), Masked(0), max_examples=4, batch_size=2)

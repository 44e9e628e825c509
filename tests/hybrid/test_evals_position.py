from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybrid.config import Resolved
from hybrid.evals.position import PositionLoss, evaluate_positions, long_documents, streamed_losses
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError

LENGTH = 48
MODEL = ("model.d_model=32", "model.attention.head_dim=8", "model.window={size: 5, sink: 2}", "model.mamba.d_ssm=32")


@pytest.fixture(params=["A W M A.", "M I M", "A D M"])
def model(request: pytest.FixtureRequest, resolve: Callable[..., Resolved]) -> LanguageModel:
    """Every primitive beside others, in float64; its training length is a third of what it is asked to read."""
    run = resolve("model=pattern", f"model.pattern={request.param}", "model.depth=null", "seq_len=16", *MODEL).run
    built = LanguageModel(run.model, ssd_chunk=8).double()
    built.init_weights(1)
    return built


def documents(n: int, length: int = LENGTH + 1) -> list[np.ndarray]:
    random = np.random.default_rng(n)
    return [np.concatenate(([256], random.integers(0, 256, size=length - 1 + i))) for i in range(n)]


def whole(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens[None, :-1]))[0]
    return F.cross_entropy(logits, torch.from_numpy(tokens[1:]), reduction="none").numpy()


@pytest.mark.parametrize("piece", [1, 7, 16, 100])
def test_streamed_losses_are_those_of_a_whole_forward_pass(model: LanguageModel, piece: int) -> None:
    tokens_BT = np.stack([tokens[: LENGTH + 1] for tokens in documents(3)])
    with torch.no_grad():
        pieces = list(streamed_losses(model.eval(), torch.from_numpy(tokens_BT), dtype="float32", piece=piece))
    assert [loss.shape[1] for loss in pieces[:-1]] == [piece] * (len(pieces) - 1)
    expected = np.stack([whole(model, tokens) for tokens in tokens_BT])
    assert torch.cat(pieces, dim=1).numpy() == pytest.approx(expected, abs=1e-10)


def test_bins_are_means_over_documents_whatever_the_batches(model: LanguageModel) -> None:
    expected = np.stack([whole(model, tokens[: LENGTH + 1]) for tokens in documents(5)[:4]])
    for batch_size in (1, 3):
        found = evaluate_positions(
            model.train(),
            documents(5),
            length=LENGTH,
            bin_width=12,
            max_documents=4,
            training_length=16,
            batch_size=batch_size,
        )
        assert model.training
        assert found.loss_nats_DN == pytest.approx(expected.reshape(4, 4, 12).mean(-1), abs=1e-10)


def result(loss_nats_DN: list[list[float]], training_length: int) -> dict[str, object]:
    loss = np.array(loss_nats_DN)
    return PositionLoss(bin=4, training_length=training_length, loss_nats_DN=loss, n_too_short=2).metrics()


def test_a_record_has_the_middles_the_means_and_their_intervals() -> None:
    metrics = result([[4.0, 3.0, 2.0], [6.0, 3.0, 4.0]], 8)
    assert metrics["positions"] == [2.5, 6.5, 10.5]
    assert metrics["bin_loss_nats"] == [5.0, 3.0, 3.0]
    assert metrics["bin_loss_nats_low"] == [4.0, 3.0, 2.0]
    assert metrics["bin_loss_nats_high"] == [6.0, 3.0, 4.0]
    assert (metrics["n_documents"], metrics["n_documents_too_short"]) == (2, 2)
    assert metrics["beyond_loss_nats"] == 3.0
    assert metrics["beyond_minus_within_nats"] == 0.0
    assert metrics["beyond_minus_within_nats_low"] == -1.0


def test_a_bin_that_the_training_length_cuts_is_neither_within_nor_beyond() -> None:
    metrics = result([[4.0, 9.0, 2.0]], 6)
    assert metrics["beyond_minus_within_nats"] == -2.0
    assert metrics["beyond_minus_within_nats_low"] is None
    assert metrics["bin_loss_nats_low"] == [None] * 3


def test_nothing_is_beyond_where_the_length_ends_with_the_training() -> None:
    assert result([[4.0, 3.0]], 8)["beyond_minus_within_nats"] is None


def test_short_documents_are_counted_out() -> None:
    tokens_DT, n_too_short = long_documents([*documents(2, 30), *documents(3)], LENGTH, 2)
    assert tokens_DT.shape == (2, LENGTH + 1)
    assert n_too_short == 2


def test_where_no_document_is_long_enough_the_longest_is_named() -> None:
    with pytest.raises(ConfigError, match=r"length = 48: expected at most 30, as the longest of 2 documents has 31"):
        long_documents(documents(2, 30), LENGTH, 5)

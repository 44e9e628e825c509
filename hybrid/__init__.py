"""What a run is and how it runs: specs, architectures, costs, data, training and evaluation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hybrid.model import LanguageModel


def load(
    run_id: str,
    *,
    store: "str | Path | None" = None,
    checkpoints: "str | Path | None" = None,
    device: str = "cpu",
    mixers: "Sequence[str | Path] | None" = None,
) -> "LanguageModel":
    """The trained model of a finished run, in eval mode: a torch module that gives the logits of tokens (B, L).

    `store` is the directory of results ($HYBRID_STORE, else ./store, unless given), `checkpoints` where the weights
    are, if store.checkpoints was set, and `mixers` the files of the run's outside mixers, if they have been moved.
    Parameters are float32; a bfloat16 run was trained and evaluated under torch.autocast.

    The record is checked to be that of this very run, its outside mixers' files to be the same to the byte, and the
    weights to be those that it ended with, by their SHA-256 where the record has it, else by names and shapes alone.

    Raises ConfigError where one of these is not so, where there is no such run, or device, or the run has not come to
    an end that leaves weights.
    """
    from hybrid import trained

    return trained.load(run_id, store=store, checkpoints=checkpoints, device=device, mixers=mixers)


def export(
    run_id: str,
    directory: "str | Path",
    *,
    store: "str | Path | None" = None,
    checkpoints: "str | Path | None" = None,
    data: "str | Path | None" = None,
) -> "Path":
    """Write the trained model of a finished run as a checkpoint that transformers loads, into a new or empty directory.

    Its architecture is transformers' Llama, Mamba2 or Bamba; logits are the same, in float32. The tokenizer
    comes along: of models on bytes with a bos before every text, of those on a corpus the one that its shards were made
    with, if these are there (below `data`, if store.data was set).

    Raises ConfigError as `load` does, for a directory that is not empty, and, naming all of it, for what of the model
    has no counterpart there.
    """
    from hybrid import exported

    return exported.export(run_id, directory, store=store, checkpoints=checkpoints, data=data)

"""The settings of a run that a reader must know: in the caption if equal in all rows, else a column."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never, final

from analysis.tables.table import Value
from analysis.tables.words import count, show, si, whole
from hybrid.spec import (
    CompressionSpec,
    CorpusSpec,
    FuzzyRecallSpec,
    HubSpec,
    InContextRecallSpec,
    MemorisationSpec,
    NeedleSpec,
    RecallSpec,
    RunSpec,
    SelectiveCopyingSpec,
    StdlibSpec,
)


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of a run that a reader must know: in the caption if equal in all rows, else a column."""

    key: str
    header: str
    phrase: str
    value: Callable[[RunSpec], str | int | float | None]
    text: Callable[[Value], str]


SETTINGS: Final = (
    Setting(key="data", header="data", phrase="{}", value=lambda spec: _data_text(spec), text=show),
    Setting(key="lr", header="lr", phrase="learning rate {}", value=lambda spec: spec.optim.lr, text=show),
    Setting(
        key="batch_size",
        header="batch",
        phrase="batches of {} sequences",
        value=lambda spec: spec.batch_size,
        text=whole,
    ),
    Setting(
        key="seq_len", header="seq len", phrase="{} tokens a sequence", value=lambda spec: spec.seq_len, text=whole
    ),
    Setting(
        key="train_tokens",
        header="tokens",
        phrase="{} training tokens",
        value=lambda spec: spec.train_tokens if spec.stop is None else None,
        text=lambda value: si(value),
    ),
    Setting(
        key="max_steps",
        header="max steps",
        phrase="at most {} steps",
        value=lambda spec: None if spec.stop is None else spec.train_steps,
        text=whole,
    ),
    Setting(key="stop", header="threshold", phrase="solved at {}", value=lambda spec: _stop_text(spec), text=show),
)


def _data_text(spec: RunSpec) -> str:
    match spec.data:
        case RecallSpec(n_symbols=symbols, n_pairs=pairs):
            return f"recall of {pairs} pairs over {symbols} symbols"
        case NeedleSpec(n_needles=needles, n_digits=digits):
            return f"{count(needles, 'needle')} of {count(digits, 'digit')} in random letters"
        case InContextRecallSpec(n_symbols=symbols, n_noise_symbols=noise, noise_fraction=fraction, train_on=train_on):
            told = f", {noise} of noise in {100 * fraction:g}% of pairs" if noise else ""
            return f"in-context recall over {symbols} symbols{told}{_trained(train_on)}"
        case FuzzyRecallSpec(n_symbols=symbols, key_size=keys, value_size=values, train_on=train_on):
            sizes = f"keys of up to {keys} and values of up to {values}"
            return f"fuzzy recall over {symbols} symbols, {sizes}{_trained(train_on)}"
        case SelectiveCopyingSpec(n_symbols=symbols, n_copied=copied):
            return f"selective copying of {copied} over {symbols} symbols"
        case CompressionSpec(n_symbols=symbols, n_compressed=compressed):
            return f"compression of {compressed} over {symbols} symbols"
        case MemorisationSpec(n_symbols=symbols, map_seed=seed):
            return f"memorisation over {symbols} symbols (map {seed})"
        case StdlibSpec():
            return "bytes of the Python standard library"
        case HubSpec(name=name, corpus_revision=revision):
            return f"{name} at {revision}"
        case CorpusSpec(fingerprint=fingerprint):
            return f"the corpus {fingerprint}"
        case _ as never:
            assert_never(never)


def _trained(train_on: str) -> str:
    return ", trained on every token" if train_on == "all" else ""


def _stop_text(spec: RunSpec) -> str | None:
    if spec.stop is None:
        return None
    every = max(1, spec.stop.every_tokens // spec.batch_tokens)
    return f"{spec.stop.metric} {spec.stop.threshold:g} (measured every {count(every, 'step')})"

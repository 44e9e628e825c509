"""Values, numbers and names of metrics as a person reads them."""

import math
import re
from collections.abc import Sequence
from typing import Final, Literal, assert_never

from analysis import stats
from analysis.tables.table import Shift, Value
from hybrid.layout import compact

VAL_LOSS: Final = "val_loss_nats"
LONGEST_LAYOUT: Final = 16
NAMES_SHOWN: Final = 8


def show(value: Value) -> str:
    """A value as a person reads it."""
    match value:
        case None:
            return ""
        case stats.Estimate(mean=mean, half=None):
            return f"{mean:.4f}"
        case stats.Estimate(mean=mean, half=half):
            digits = min(8, max(0, 1 - math.floor(math.log10(half)))) if half else 4
            return f"{mean:.{digits}f} ± {half:.{digits}f}"
        case stats.Proportion(k=k, n=n, low=low, high=high):
            return f"{k}/{n}" if low is None or high is None else f"{k}/{n} [{percent(low)}, {percent(high)}]"
        case stats.CensoredMedian(time=time, low=low, high=high, last=last):
            beyond = f">{last:.0f}"
            if time is None and low is None:
                return beyond
            bounds = f"[{'?' if low is None else f'{low:.0f}'}, {beyond if high is None else f'{high:.0f}'}]"
            return f"{beyond if time is None else f'{time:.0f}'} {bounds}"
        case stats.MedianRange(median=middle, low=low, high=high):
            return f"{middle:.3g}" if low is None or high is None else f"{middle:.3g} [{low:.3g}, {high:.3g}]"
        case str():
            return value
        case Shift(value=shift):
            return f"{shift:+.4g}"
        case int() | float():
            return f"{value:g}"
        case _ as never:
            assert_never(never)


def show_p(p: float) -> str:
    """A p value to two digits; small ones as a bound."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


# Words for the usual metrics; any other metric is shown under its own name.
METRICS: Final[dict[str, tuple[str, Literal["lower", "higher"] | None]]] = {
    VAL_LOSS: ("val loss (nats)", "lower"),
    "train_loss_nats": ("train loss (nats)", "lower"),
    "val_accuracy": ("val accuracy", "higher"),
    "val_bits_per_byte": ("bits per byte", "lower"),
    "pg19_loss_nats": ("PG19 loss (nats)", "lower"),
    "lambada_accuracy_percent": ("LAMBADA %", "higher"),
    "hellaswag_accuracy_percent": ("HellaSwag %", "higher"),
    "piqa_accuracy_percent": ("PIQA %", "higher"),
    "arc_accuracy_percent": ("ARC %", "higher"),
    "openbookqa_accuracy_percent": ("OBQA %", "higher"),
    "few_shot_accuracy_percent": ("few-shot average %", "higher"),
    "recall_accuracy_percent": ("accuracy %", "higher"),
    "tokens_per_s": ("tokens/s", "higher"),
    "train_tokens_per_s": ("training tokens/s", "higher"),
    "train_mfu_percent": ("MFU %", "higher"),
    "prefill_tokens_per_s": ("prefill tokens/s", "higher"),
    "decode_tokens_per_s": ("decoding tokens/s", "higher"),
    "largest_batch_decode_tokens_per_s": ("decoding tokens/s, largest batch", "higher"),
    "wall_s": ("wall s", "lower"),
    "steps_to_threshold": ("steps to threshold", "lower"),
}
_DECODING_AT: Final = re.compile(r"decode_tokens_per_s_at_(\d+)")


def metric_better(metric: str) -> Literal["lower", "higher"] | None:
    """Which way is good in a metric; None where that is not known."""
    return METRICS.get(metric, (metric, "higher" if _DECODING_AT.fullmatch(metric) else None))[1]


def metric_header(metric: str) -> str:
    """The words for a metric, with its unit."""
    at = _DECODING_AT.fullmatch(metric)
    return METRICS.get(metric, (f"decoding tokens/s to {int(at[1]):,}" if at else metric, None))[0]


def whole(value: Value) -> str:
    return f"{value:,}" if isinstance(value, int) else show(value)


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    left = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {left} more" if left > 0 else "")


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def number(value: Value) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"a column of numbers holds {value!r}")


def si(value: Value) -> str:
    """Three digits with a suffix: 12.3M."""
    amount = number(value)
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if amount >= 0.9995 * factor:
            return three_digits(amount / factor) + suffix
    return three_digits(amount)


def three_digits(value: Value) -> str:
    amount = number(value)
    return f"{amount:.0f}" if abs(amount) >= 99.95 else f"{amount:.3g}"


def four_digits(value: Value) -> str:
    return f"{number(value):.4f}"


def show_flops(value: Value) -> str:
    mantissa, _, exponent = f"{number(value):.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def show_p_value(value: Value) -> str:
    return show_p(number(value))


def show_layout(value: Value) -> str:
    text = show(value)
    return text if len(text) <= LONGEST_LAYOUT else compact(text)

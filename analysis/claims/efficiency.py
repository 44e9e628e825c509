"""Claims about throughput and memory: measured by the paper, or computed from our specs."""

import math
from fractions import Fraction
from typing import Final

from analysis.claims.parts import (
    DCLM,
    LENGTHS,
    MEAN_THROUGHPUT,
    THROUGHPUT,
    TRAINING_MEMORY,
    TRAINING_SPEED,
    Exact,
    Part,
    Remark,
    Row,
    Unknown,
    all_of,
    any_of,
    better,
)
from analysis.claims.source import Source
from analysis.reference.compare import EQUAL_FLOPS, Place
from hybrid.cost import run_cost

_HYBRIDS: Final = ("Inter-H 1:5", "Intra-H 1:5")


def _speed(model: str) -> Row:
    return Row("13", model)


def intra_points_are_not_dominated(source: Source) -> Part:
    """No model of another kind is at least as good in both throughput and loss as an intra-layer hybrid."""
    rows = source.rows.of("13")
    intra = [row for row in rows if row.label.startswith("Intra-H")]
    others = [row for row in rows if not row.label.startswith("Intra-H")]
    return all_of(
        any_of([better(a, b, MEAN_THROUGHPUT), better(_at_equal_flops(a), _at_equal_flops(b), DCLM)])
        for a in intra
        for b in others
    )


def _at_equal_flops(row: Row) -> Row:
    return Row("9", row.label + ("" if row.label == "Llama" else EQUAL_FLOPS))


def fewer_flops_take_less_time(source: Source) -> Part:
    """FLOPs follow from our specs; step times and memory are in a figure alone. Tokens a second are step times."""
    llama, hybrids = Row("2", "Llama"), [Row("2", name) for name in ("Inter-H", "Intra-H")]
    flops = {
        name: run_cost(source.rows.sweeps.run(Place(label=name, sweep="table2", row=name))).paper_train_flops_per_sample
        for name in ("Llama", "SWA", "Mamba", "Inter-H", "Intra-H")
    }
    text = ", ".join(f"{name} {value / 1e12:.1f}" for name, value in flops.items())
    return all_of(
        [
            Exact(
                text="hybrids take fewer FLOPs a sample than Llama",
                true=all(flops[name] < flops["Llama"] for name in ("Inter-H", "Intra-H")),
                found=f"1e12 training FLOPs a sample of 8K, paper convention: {text}",
                numbers={f"{name} train FLOPs per sample": value for name, value in flops.items()},
            ),
            *(better(hybrid, llama, TRAINING_SPEED) for hybrid in hybrids),
            *(better(llama, hybrid, TRAINING_MEMORY) for hybrid in hybrids),
        ]
    )


def hybrids_stay_fast_and_small(source: Source) -> Part:
    faster = [better(_speed(hybrid), _speed("Llama"), THROUGHPUT[length]) for hybrid in _HYBRIDS for length in LENGTHS]
    growth = {row.label: _cache_growth(source, row) for row in source.rows.of("13")}
    hybrids = {name: growth[name] for name in _HYBRIDS}
    return all_of(
        [
            *faster,
            Exact(
                text="the cache of hybrids grows by a power of the length below 2",
                true=all(power < 2 for power in hybrids.values()),
                found="power of the length with which the cache grows from 2K to 32K: "
                + ", ".join(f"{name} {power:.2f}" for name, power in hybrids.items()),
                numbers={f"{name} cache exponent": round(power, 4) for name, power in growth.items()},
            ),
            *_of_every_model(growth),
        ]
    )


def _of_every_model(growth: dict[str, float]) -> list[Remark]:
    """What is true of every model tells none from another."""
    if not all(power < 2 for power in growth.values()):
        return []
    return [
        Remark(
            text=f"a cache that grows by less than the square of the length is no property of hybrids: all "
            f"{len(growth)} models have one, Llama's growing by the power {growth['Llama']:.2f}"
        )
    ]


def _cache_growth(source: Source, row: Row) -> float:
    from hybrid.decode_cost import decode_cost

    model = source.rows.run(row).model
    short, long = (decode_cost(model, batch=1, length=n, element_bytes=2) for n in (LENGTHS[0], LENGTHS[-1]))
    ratio = Fraction(long.kv_bytes + long.state_bytes, short.kv_bytes + short.state_bytes)
    return math.log(ratio) / math.log(LENGTHS[-1] / LENGTHS[0])


def windows_are_slower(_: Source) -> Part:
    return all_of(
        better(_speed(hybrid), _speed("SWA 1:5"), THROUGHPUT[length]) for hybrid in _HYBRIDS for length in LENGTHS
    )


def intra_is_faster_than_inter(_: Source) -> Part:
    return all_of(better(_speed("Intra-H 1:5"), _speed("Inter-H 1:5"), THROUGHPUT[length]) for length in LENGTHS)


def positions_extrapolate(_: Source) -> Part:
    return Unknown(
        text="losses by position, before and after 8192",
        missing="the losses are in Figure 3c alone, without numbers",
        needs="position-wise loss up to 24K on 30 unpacked PG19 books, of the five rows of "
        "`python run.py -m +sweep=table2`",
    )


def hybrids_find_needles(_: Source) -> Part:
    return Unknown(
        text="accuracy by depth and length of the context",
        missing="the accuracies are in Figure 4 alone, without numbers",
        needs="the needle evaluation (lengths to 16K, 11 depths, 100 trials) of the five rows of "
        "`python run.py -m +sweep=table2`",
    )

"""Claims about losses and accuracies: rows against rows."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Final

from analysis.claims.parts import (
    ACCURACY,
    DCLM,
    Compare,
    Metric,
    Part,
    Quoted,
    Remark,
    Row,
    all_of,
    any_of,
    better,
    mean_better,
)
from analysis.claims.source import Entry, PrintedSource, Source
from analysis.reference.compare import EQUAL_FLOPS

_DATA: Final = "equal data"
_FLOPS: Final = "equal FLOPs"
_ARCHITECTURES: Final = ("Llama", "Mamba", "Inter-H", "Intra-H")
_SCALES: Final = ("1B", "350M")
_MIXED: Final = ("1:1", "1:3", "1:5", "1:12")


def _table2(model: str, *, equal_flops: bool) -> Row:
    return Row("2", model + (EQUAL_FLOPS if equal_flops and model != "Llama" else ""))


def _against(ours: Sequence[Row], theirs: Sequence[Row], metrics: Sequence[Metric], setting: str) -> list[Compare]:
    """Each of ours better than each of theirs in each metric."""
    return [better(a, b, metric, setting=setting) for metric in metrics for a in ours for b in theirs]


# --- main results ---------------------------------------------------------------------------------


def hybrids_gain_up_to(_: Source) -> Part:
    hybrids = [_table2(name, equal_flops=True) for name in ("Inter-H", "Intra-H")]
    homogeneous = [_table2(name, equal_flops=True) for name in ("Llama", "Mamba")]
    comparisons = _against(hybrids, homogeneous, [ACCURACY], _FLOPS)
    return all_of([*comparisons, any_of([Quoted(compare=c, value=2.9, digits=1) for c in comparisons])])


def hybrids_beat_windows(_: Source) -> Part:
    return all_of(
        part
        for equal_flops, setting in ((False, _DATA), (True, _FLOPS))
        for part in _against(
            [_table2(name, equal_flops=equal_flops) for name in ("Inter-H", "Intra-H")],
            [_table2("SWA", equal_flops=equal_flops)],
            [DCLM, ACCURACY],
            setting,
        )
    )


def hybrids_gain_so_much(_: Source) -> Part:
    llama = Row("2", "Llama")
    hybrids = [_table2(name, equal_flops=True) for name in ("Inter-H", "Intra-H")]
    in_loss = _against(hybrids, [llama], [DCLM], _FLOPS)
    in_accuracy = _against(hybrids, [llama], [ACCURACY], _FLOPS)
    return all_of(
        [
            *in_loss,
            *in_accuracy,
            any_of([Quoted(compare=c, value=2.9, digits=1) for c in in_accuracy]),
            any_of([Quoted(compare=c, value=0.04, digits=2) for c in in_loss]),
        ]
    )


def mixtures_beat_homogeneous(_: Source) -> Part:
    return all_of(
        _against(
            [_table2(name, equal_flops=False) for name in ("SWA", "Inter-H", "Intra-H")],
            [_table2(name, equal_flops=False) for name in ("Llama", "Mamba")],
            [DCLM, ACCURACY],
            _DATA,
        )
    )


def every_ratio_at_both_scales(source: Source) -> Part:
    parts: list[Compare] = []
    for table in ("9", "10"):
        for budget, setting, suffix in (("equal_data", _DATA, ""), ("equal_flops", _FLOPS, EQUAL_FLOPS)):
            hybrids = [row for row in source.rows.of(table, _is_hybrid) if source.rows.entry(row).budget == budget]
            homogeneous = [Row(table, "Llama"), Row(table, f"Mamba{suffix}")]
            parts += _against(
                hybrids, homogeneous, [DCLM, ACCURACY], f"{setting}, {source.rows.entry(hybrids[0]).scale}"
            )
    return all_of(parts)


def _is_hybrid(entry: Entry) -> bool:
    return entry.printed["models"] in ("Inter-H", "Intra-H")


def experts_help_everywhere(_: Source) -> Part:
    parts: list[Part] = []
    for metric, value, digits in ((DCLM, 0.08, 2), (ACCURACY, 4.0, 0)):
        comparisons = [better(Row("3", f"{name} MoE"), Row("3", name), metric) for name in _ARCHITECTURES]
        parts += comparisons
        parts += [Quoted(compare=c, value=value, digits=digits) for c in comparisons]
    return all_of(parts)


def the_recipe_does_not_matter(source: Source) -> Part:
    """The difference of every two architectures is the same in both recipes."""
    first = {name: _table2(name, equal_flops=False) for name in _ARCHITECTURES}
    second = {name: Row("14/15", f"{name} 1B 4e20") for name in _ARCHITECTURES}
    shifts = [
        Compare(
            text=f"{a} - {b} in validation loss, scaling runs (0.5M tokens a batch) against Table 2 (2M)",
            plus=(second[a], first[b]),
            minus=(second[b], first[a]),
            metric=DCLM,
            wants="same",
        )
        for a, b in combinations(_ARCHITECTURES, 2)
    ]
    return all_of([*shifts, *_orders(source, {"Table 2": first, "the scaling runs": second})])


def _orders(source: Source, recipes: Mapping[str, Mapping[str, Row]]) -> list[Remark]:
    """The architectures by their losses, with their tokens, in each recipe."""
    texts = []
    for recipe, rows in recipes.items():
        losses = {name: source.value(row, DCLM) for name, row in rows.items()}
        ranked = sorted((value.mean, name) for name, value in losses.items() if value is not None)
        if len(ranked) < len(rows):
            return []
        listed = " < ".join(f"{name} {loss:.3f}{_tokens(source, rows[name])}" for loss, name in ranked)
        texts.append(f"{recipe}: {listed}")
    return [Remark(text=f"order, with tokens: {'; '.join(texts)}")]


def _tokens(source: Source, row: Row) -> str:
    """As printed, or of the runs."""
    printed = source.rows.entry(row).printed
    run = source.run(row)
    if isinstance(source, PrintedSource):
        return f" ({printed.get('tok') or printed.get('tok_B')}e9)"
    return "" if run is None else f" ({run.train_tokens:.3g})"


# --- inter-layer hybrids --------------------------------------------------------------------------


def _ratio(scale: str, ratio: str) -> Row:
    return Row("4", f"{scale} {ratio}")


def one_to_one_is_best(_: Source) -> Part:
    others = ("1:3", "1:5", "1:12", "1:0", "0:1")
    return all_of(better(_ratio(scale, "1:1"), _ratio(scale, other), DCLM) for scale in _SCALES for other in others)


def every_ratio_beats_both(_: Source) -> Part:
    return all_of(
        better(_ratio(scale, ratio), _ratio(scale, pure), DCLM)
        for scale in _SCALES
        for ratio in _MIXED
        for pure in ("1:0", "0:1")
    )


def loss_rises_with_mamba(_: Source) -> Part:
    return all_of(
        better(_ratio(scale, more), _ratio(scale, less), DCLM) for scale in _SCALES for more, less in pairwise(_MIXED)
    )


def attention_belongs_in_the_middle(source: Source) -> Part:
    parts: list[Compare] = []
    for scale in _SCALES:
        single = [row for row in source.rows.of("17", _is_single) if source.rows.entry(row).scale == scale]
        parts += [better(row, single[0], DCLM) for row in single[1:]]
        middle = [row for row in single if _in_the_middle(source.rows.entry(row))]
        where = " and ".join(row.label.rpartition(" ")[2] for row in middle)
        parts += [
            Compare(
                text=f"mean of {scale} 1:12 at {where} < {row.label} in validation loss",
                plus=tuple(middle),
                minus=(row,) * len(middle),
                metric=DCLM,
                weight=1 / len(middle),
            )
            for row in single[1:]
            if row not in middle
        ]
    return all_of(parts)


def _is_single(entry: Entry) -> bool:
    """One attention block: its position is all that the rows differ in."""
    return bool(entry.printed["pattern"] == "Single")


def _in_the_middle(entry: Entry) -> bool:
    """Whether the one attention block stands in the middle third of the depth."""
    depth = entry.printed["n_attn"] + entry.printed["n_ssm"]
    return bool(depth / 3 < int(entry.printed["attn_idx"]) - 0.5 < 2 * depth / 3)


def front_is_worse_than_pure(source: Source) -> Part:
    """The weaker reading: worse than the better of the two homogeneous models, that is than one of them."""
    fronts = source.rows.of(
        "17", lambda entry: entry.printed["pattern"] == "Front" or str(entry.printed["attn_idx"]) == "1"
    )
    return all_of(
        any_of([better(_ratio(source.rows.entry(front).scale, pure), front, DCLM) for pure in ("1:0", "0:1")])
        for front in fronts
    )


# --- intra-layer hybrids --------------------------------------------------------------------------

_VARIANT_TABLES: Final = (("18", "1B"), ("19", "350M"))
_DESIGN: Final = ("norm", "scalar", "fusion", "value", "out")


def normalise_and_do_not_scale(source: Source) -> Part:
    """The mean over all pairs of variants that differ in the norm alone, or in a scalar alone beside a norm."""
    parts: list[Compare] = []
    for table, scale in _VARIANT_TABLES:
        design = _designs(source, table)
        normed = _pairs(design, "norm", "Group", None)
        plain = [
            pair
            for scalar in ("Scale", "Diff-T")
            for pair in _pairs(design, "scalar", None, scalar)
            if design[pair[0]]["norm"] == "Group"
        ]
        for pairs, text in ((normed, "a norm < no norm"), (plain, "no scalar < a scalar, with a norm")):
            parts.append(
                mean_better(
                    [a for a, _ in pairs],
                    [b for _, b in pairs],
                    DCLM,
                    f"{text}, mean of {len(pairs)} pairs at {scale}, in validation loss",
                )
            )
    parts.append(better(Row("5", "group add joint"), Row("5", "group gate add joint"), DCLM))
    return all_of(parts)


def _designs(source: Source, table: str) -> dict[Row, Mapping[str, object]]:
    """The variants that join attention and Mamba in one block, by their printed design."""
    return {
        row: {key: source.rows.entry(row).printed.get(key) for key in _DESIGN}
        for row in source.rows.of(table, lambda entry: entry.printed["module"] == "T/M")
    }


def _pairs(
    designs: Mapping[Row, Mapping[str, object]], axis: str, first: str | None, second: str | None
) -> list[tuple[Row, Row]]:
    """Pairs that differ in one property alone, as given."""
    return [
        (a, b)
        for a, of_a in designs.items()
        for b, of_b in designs.items()
        if of_a[axis] == first and of_b[axis] == second and {**of_a, axis: second} == of_b
    ]


def subtract_or_concatenate(_: Source) -> Part:
    return all_of(
        better(Row("5", a), Row("5", b), DCLM)
        for a, b in (
            ("group diff joint", "group add joint"),
            ("group concat joint", "group add joint"),
            ("group diff separate", "group add separate"),
        )
    )


def beats_earlier_designs(_: Source) -> Part:
    final = Row("5", "group diff separate")
    return all_of(
        better(final, Row("5", other), metric) for metric in (DCLM, ACCURACY) for other in ("Hymba", "Diff-T", "Diff-M")
    )


def more_attention_dimensions_help(_: Source) -> Part:
    shares = ("2:1", "1:1", "1:2", "1:10")
    return all_of(
        better(Row("20", f"{scale} {more}"), Row("20", f"{scale} {less}"), DCLM)
        for scale in _SCALES
        for more, less in pairwise(shares)
    )


def more_intra_blocks_help(_: Source) -> Part:
    shares = ("1:0", *_MIXED)
    return all_of(
        better(Row("9", f"Intra-H {more}"), Row("9", f"Intra-H {less}"), DCLM, setting=_DATA)
        for more, less in pairwise(shares)
    )


def scatter_and_never_sandwich(_: Source) -> Part:
    parts: list[Compare] = []
    for ratio in ("1:1", "1:3", "1:5"):
        scatter, cluster, sandwich = (Row("21", f"{ratio} {name}") for name in ("scatter", "cluster", "sandwich"))
        parts.append(
            Compare(
                text=f"{scatter.label} no worse than {cluster.label} in validation loss",
                plus=(scatter,),
                minus=(cluster,),
                metric=DCLM,
                wants="not worse",
            )
        )
        parts.append(better(cluster, sandwich, DCLM))
    return all_of(parts)

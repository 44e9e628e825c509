"""Claims about settings: against what is printed elsewhere, and against our sweep files, which say what is run."""

from decimal import Decimal
from fractions import Fraction
from typing import Final

from analysis.claims.parts import LENGTHS, THROUGHPUT, Exact, Part, Remark, Row, all_of
from analysis.claims.source import Source
from analysis.reference.compare import Place
from hybrid.cost import layout_of, run_cost
from hybrid.spec import AdamWSpec, AttentionSpec, RunSpec, TrapezoidSpec

_MODELS: Final = ("Llama", "Mamba", "Inter-H", "Intra-H")
_SIZES: Final = ("100M", "350M", "1B", "3B")
_FEW_SHOT: Final = ("ld", "hs", "pq", "arc", "ob")
# The average and the five are each rounded to one digit.
_AVERAGE_TOLERANCE: Final = Decimal("0.1")


def four_scales_five_budgets(source: Source) -> Part:
    rows = source.rows.of("14/15")
    entries = [source.rows.entry(row) for row in rows]
    cells = {(entry.scale, str(entry.printed["model"]), float(entry.printed["flops"])) for entry in entries}
    sizes = sorted({size for size, _, _ in cells})
    budgets = sorted({budget for _, _, budget in cells})
    models = sorted({model for _, model, _ in cells})
    full = len(sizes) * len(budgets) * len(models)
    absent = [
        (size, model, budget)
        for size in sizes
        for model in models
        for budget in budgets
        if (size, model, budget) not in cells
    ]
    where = sorted({size for size, _, _ in absent})
    parts: list[Part] = [
        Exact(
            text="four scales and five budgets",
            true=len(sizes) == 4 and len(budgets) == 5,
            found=f"{len(sizes)} scales ({', '.join(sizes)}) and {len(budgets)} budgets "
            f"({', '.join(f'{budget:g}' for budget in budgets)}) in Tables 14 and 15, and in sweep isoflop",
            numbers={"scales": sizes, "budgets": budgets, "runs": len(cells)},
        )
    ]
    if absent:
        parts.append(
            Remark(
                text=f"{len(cells)} of the {full} runs that {len(models)} architectures at these would make are "
                f"printed: those that are missing are of {' and '.join(where)}",
                numbers={"runs": len(cells), "grid": full},
            )
        )
    return all_of(parts)


def limited_to(source: Source) -> Part:
    entries = [source.rows.entry(row) for row in source.rows]
    sizes = {entry.scale for entry in entries}
    equal_data = {
        float(entry.printed["tok"]) for entry in entries if entry.budget == "equal_data" and entry.printed.get("tok")
    } - {0.0}
    at_8k = {
        float(source.rows.entry(row).printed["tok"])
        for table in ("2", "9", "10")
        for row in source.rows.of(table, lambda entry: entry.budget == "equal_data")
    }
    longest = max(
        (float(entry.printed.get("tok") or entry.printed.get("tok_B") or 0), entry.place.label) for entry in entries
    )
    largest = max(sizes, key=lambda size: float(size[:-1]) * (1e9 if size.endswith("B") else 1e6))
    return all_of(
        [
            Exact(
                text="no model is larger than 3B",
                true=largest == "3B",
                found=f"the largest that is printed is {largest}",
                numbers={"sizes": sorted(sizes)},
            ),
            Exact(
                text="60e9 tokens at equal data",
                true=at_8k == {60.0},
                found=f"Tables 2, 9 and 10 print {', '.join(f'{tokens:g}e9' for tokens in sorted(at_8k))}",
                numbers={"tokens at equal data, 1e9": sorted(equal_data)},
            ),
            Remark(
                text=f"runs are as long as {longest[0]:g}e9 tokens ({longest[1]}, Tables 14 and 15), and v1, which "
                "says 1B, fits the scaling of models to 3B as well",
                numbers={"longest run, 1e9 tokens": longest[0]},
            ),
        ]
    )


def figure_1_settings(source: Source) -> Part:
    llama, windows = _run(source, "Llama"), _run(source, "SWA")
    flops = Fraction(run_cost(llama).paper_train_flops, 10**20)
    window = next(
        block.mixer.window
        for block in windows.model.blocks
        if isinstance(block.mixer, AttentionSpec) and block.mixer.window is not None
    )
    layout = layout_of(windows.model)
    with_all = [
        row for row in source.rows.of("13") if all(source.rows.number(row, THROUGHPUT[n]) is not None for n in LENGTHS)
    ]
    return all_of(
        [
            Exact(
                text="4.5e20 training FLOPs at 1B",
                true=abs(flops - Fraction(9, 2)) <= Fraction(1, 20),
                found=f"Llama on {llama.train_tokens / 1e9:.2f}e9 tokens takes {float(flops):.4f}e20",
                numbers={"paper_train_flops": run_cost(llama).paper_train_flops},
            ),
            Exact(
                text="8K context, window 512 with 64 sinks, about 1:5",
                true=(llama.seq_len, window.size, window.sink, layout.count("A")) == (8192, 512, 64, 3),
                found=f"sweep table2: {llama.seq_len}, {window.size} with {window.sink}, "
                f"{layout.count('A')}:{layout.count('W')}",
                numbers={"seq_len": llama.seq_len, "window": window.size, "sink": window.sink},
            ),
            Exact(
                text="throughput at 2K, 4K, 8K, 16K and 32K",
                true=len(with_all) == len(source.rows.of("13")),
                found=f"{len(with_all)} rows of Table 13 (v3) print all five",
                numbers={"rows": len(with_all)},
            ),
        ]
    )


def training_recipe(source: Source) -> Part:
    run = _run(source, "Llama")
    rates = {size: _rate(_scaling(source, size)) for size in _SIZES}
    expected = {"100M": 6e-3, "350M": 3e-3, "1B": 6e-4, "3B": 3e-4}
    schedule = run.schedule
    if not isinstance(schedule, TrapezoidSpec):
        raise ValueError("table2: expected a trapezoid schedule")
    warmup, cooldown = (Fraction(part, run.train_tokens) for part in (schedule.warmup_tokens, schedule.cooldown_tokens))
    within = Fraction(run.batch_tokens, run.train_tokens)
    scaling = _scaling(source, "1B")
    parts: list[Part] = [
        Exact(
            text="60e9 tokens in batches of 2e6",
            true=abs(run.train_tokens - 60 * 10**9) < run.batch_tokens and round(run.batch_tokens / 1e6) == 2,
            found=f"sweep table2: {run.train_tokens / 1e9:.3f}e9 tokens in batches of {run.batch_tokens}",
            numbers={"train_tokens": run.train_tokens, "batch_tokens": run.batch_tokens},
        ),
        Exact(
            text="learning rates 6e-3, 3e-3, 6e-4, 3e-4",
            true=rates == expected,
            found="sweep isoflop: " + ", ".join(f"{size} {rate:g}" for size, rate in rates.items()),
            numbers=dict(rates),
        ),
        Exact(
            text="warmup 25%, cooldown 20%",
            true=abs(warmup - Fraction(1, 4)) <= within and abs(cooldown - Fraction(1, 5)) <= within,
            found=f"sweep table2: {float(warmup):.2%} and {float(cooldown):.2%}",
            numbers={"warmup_tokens": schedule.warmup_tokens, "cooldown_tokens": schedule.cooldown_tokens},
        ),
        Remark(text="the devices, 8 H200, are part of no run's description and cannot be checked"),
    ]
    if scaling.batch_tokens != run.batch_tokens:
        printed = source.rows.entry(Row("14/15", "Llama 1B 4e20")).printed
        implied = float(printed["tok_B"]) * 1e9 / (float(printed["steps_K"]) * 1e3)
        parts.append(
            Remark(
                text=f"the scaling runs have other batches: {scaling.batch_tokens} tokens in sweep isoflop, and "
                f"Tables 14 and 15 print {printed['tok_B']}e9 tokens in {printed['steps_K']}e3 steps, "
                f"{implied / 1e6:.2f}e6 each",
                numbers={"batch_tokens of the scaling runs": scaling.batch_tokens, "printed": round(implied)},
            )
        )
    return all_of(parts)


def averages_of_five(source: Source) -> Part:
    """Table 2 alone decides; the other tables with the same columns are remarked on."""
    off: list[tuple[Decimal, Row, Decimal, Decimal]] = []
    counts = {"2": 0, "others": 0}
    for row in source.rows:
        printed = source.rows.entry(row).printed
        if any(printed.get(name) is None for name in (*_FEW_SHOT, "avg")):
            continue
        counts["2" if row.table == "2" else "others"] += 1
        mean = sum((Decimal(printed[name]) for name in _FEW_SHOT), Decimal(0)) / 5
        difference = abs(mean - Decimal(printed["avg"]))
        if difference > _AVERAGE_TOLERANCE:
            off.append((difference, row, mean, Decimal(printed["avg"])))
    in_table_2 = [row for _, row, _, _ in off if row.table == "2"]
    elsewhere = sorted(((d, row, mean, avg) for d, row, mean, avg in off if row.table != "2"), reverse=True)
    parts: list[Part] = [
        Exact(
            text="the average is the mean of the five columns",
            true=not in_table_2 and counts["2"] > 0,
            found=f"so in {counts['2'] - len(in_table_2)} of {counts['2']} rows of Table 2, within what is rounded",
            numbers={"rows": counts["2"], "off": len(in_table_2)},
        )
    ]
    if elsewhere:
        listed = "; ".join(f"{row}: {avg} for {mean:.2f}" for _, row, mean, avg in elsewhere[:5])
        parts.append(
            Remark(
                text=f"in {len(elsewhere)} of {counts['others']} rows of other tables it is not: {listed}",
                numbers={str(row): [float(avg), float(mean)] for _, row, mean, avg in elsewhere},
            )
        )
    return all_of(parts)


def _run(source: Source, row: str) -> RunSpec:
    return source.rows.sweeps.run(Place(label=row, sweep="table2", row=row))


def _scaling(source: Source, size: str) -> RunSpec:
    return source.rows.sweeps.run(Place(label=size, sweep="isoflop", row="Llama", axes=(("scale", size.lower()),)))


def _rate(run: RunSpec) -> float:
    if not isinstance(run.optim, AdamWSpec):
        raise ValueError("isoflop: expected AdamW")
    return run.optim.lr

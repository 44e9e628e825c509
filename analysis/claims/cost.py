"""Claims about costs: exact, computed from our specs in the paper's convention, without noise."""

from decimal import Decimal
from fractions import Fraction
from typing import Final

from analysis.claims.parts import Exact, Part, Remark, all_of
from analysis.claims.source import Source
from analysis.reference.compare import COLUMNS, EQUAL_FLOPS, Place, agrees, value_of
from hybrid.cost import layout_of, parts, run_cost
from hybrid.spec import AttentionSpec, IntraSpec, Mamba2Spec, RunSpec

_MODELS: Final = ("Llama", "Mamba", "Inter-H", "Intra-H")


def _run(source: Source, row: str, sweep: str = "table2") -> RunSpec:
    return source.rows.sweeps.run(Place(label=row, sweep=sweep, row=row))


def _flops(source: Source, row: str) -> int:
    return run_cost(_run(source, row)).paper_train_flops_per_sample


def _about(value: Fraction | float, quoted: float, digits: int) -> bool:
    return agrees(Decimal(str(quoted)), digits, Fraction(value))


def llama_takes_more_flops(source: Source) -> Part:
    llama, mamba = _flops(source, "Llama"), _flops(source, "Mamba")
    more, less = 100 * (Fraction(llama, mamba) - 1), 100 * (1 - Fraction(mamba, llama))
    return Exact(
        text="Llama takes 18% more training FLOPs a sample than Mamba",
        true=_about(more, 18, 0),
        found=f"{llama / 1e12:.2f}e12 against {mamba / 1e12:.2f}e12: Llama takes {float(more):.1f}% more, which is "
        f"{float(less):.1f}% less for Mamba",
        numbers={
            "Llama train FLOPs per sample": llama,
            "Mamba train FLOPs per sample": mamba,
            "Llama / Mamba - 1, %": round(float(more), 3),
        },
    )


def mamba_takes_fewer_flops(source: Source) -> Part:
    llama, mamba = _flops(source, "Llama"), _flops(source, "Mamba")
    less = 100 * (1 - Fraction(mamba, llama))
    return Exact(
        text="Mamba takes 18% fewer training FLOPs a sample than Llama",
        true=_about(less, 18, 0),
        found=f"{mamba / 1e12:.2f}e12 against {llama / 1e12:.2f}e12: {float(less):.1f}% fewer",
        numbers={
            "Llama train FLOPs per sample": llama,
            "Mamba train FLOPs per sample": mamba,
            "1 - Mamba / Llama, %": round(float(less), 3),
        },
    )


def mamba_has_more_parameters(source: Source) -> Part:
    llama, mamba = _run(source, "Llama").model, _run(source, "Mamba").model
    attention = parts(llama.blocks[0].mixer, llama.d_model).paper_params
    recurrent = parts(mamba.blocks[0].mixer, mamba.d_model).paper_params
    ratio = Fraction(recurrent, attention)
    mixer = mamba.blocks[0].mixer
    remarks: list[Part] = []
    if isinstance(mixer, Mamba2Spec):
        sizes = {
            "d_model": mamba.d_model,
            "d_ssm": mixer.d_ssm,
            "d_state": mixer.d_state,
            "N_head": mixer.n_heads,
            "N_conv": mixer.d_conv,
        }
        formula = str(next(row for row in source.rows.printed.tables["1"].rows if row["model"] == "Mamba")["params"])
        printed = evaluate(formula, sizes)
        if not _about(Fraction(printed, attention), 2.5, 1):
            remarks.append(
                Remark(
                    text=f"the formula that Table 1 prints for Mamba gives {printed / 1e6:.1f}M, "
                    f"{printed / attention:.2f} times attention's, not {recurrent / 1e6:.1f}M",
                    numbers={"Table 1 formula": printed},
                )
            )
    return all_of(
        [
            Exact(
                text="a Mamba mixer has 2.5 times the parameters of an attention mixer",
                true=_about(ratio, 2.5, 1),
                found=f"{recurrent / 1e6:.2f}M against {attention / 1e6:.2f}M: {float(ratio):.2f} times",
                numbers={"Mamba": recurrent, "attention": attention, "ratio": round(float(ratio), 4)},
            ),
            *remarks,
        ]
    )


def evaluate(formula: str, sizes: dict[str, int]) -> int:
    """A printed formula of sums and products with these sizes. Raises ValueError for anything else."""
    import ast

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in sizes:
                return sizes[name]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
            case _:
                raise ValueError(f"{formula}: expected sums and products of {', '.join(sizes)}")

    return value(ast.parse(formula, mode="eval").body)


def mamba_caches_less(source: Source) -> Part:
    llama, mamba = (run_cost(_run(source, name)).paper_cache_bytes for name in ("Llama", "Mamba"))
    less = 100 * (1 - Fraction(mamba, llama))
    mib = {name: Fraction(size, 2**20) for name, size in (("Llama", llama), ("Mamba", mamba))}
    return all_of(
        [
            Exact(
                text="Mamba's cache is 95% smaller",
                true=_about(less, 95, 0),
                found=f"{float(less):.1f}% smaller at 8K",
                numbers={"1 - Mamba / Llama, %": round(float(less), 3)},
            ),
            Exact(
                text="the caches are 256 MiB and 13.4 MiB",
                true=_about(mib["Llama"], 256, 0) and _about(mib["Mamba"], 13.4, 1),
                found=f"{float(mib['Llama']):.1f} MiB and {float(mib['Mamba']):.1f} MiB",
                numbers={f"{name} cache, MiB": round(float(size), 4) for name, size in mib.items()},
            ),
        ]
    )


def ratios_are_about_one_to_five(source: Source) -> Part:
    """About: the whole number of blocks that is nearest to one in six."""
    found: list[Part] = []
    for name, first, printed in (("SWA", "A", (3, 13)), ("Inter-H", "A", (2, 11)), ("Intra-H", "I", (2, 11))):
        layout = layout_of(_run(source, name).model)
        n = layout.count(first)
        nearest = max(1, round(Fraction(len(layout), 6)))
        found.append(
            Exact(
                text=f"{name} has {printed[0]}:{printed[1]} blocks, about 1:5",
                true=(n, len(layout) - n) == printed and n == nearest,
                found=f"{n}:{len(layout) - n}, 1:{(len(layout) - n) / n:.2f}; {nearest} of {len(layout)} is nearest",
                numbers={"blocks of the first kind": n, "others": len(layout) - n},
            )
        )
    return all_of(found)


def experts_multiply_parameters(source: Source) -> Part:
    """The totals that Table 3 prints, and what they are made of."""
    found: list[Part] = []
    for name in _MODELS:
        label = f"{name} MoE"
        row = next(row for row in source.rows.of("3") if row.label == label)
        run = source.rows.run(row)
        printed = source.rows.entry(row).printed["total"]
        total = value_of("total", run, run_cost(run))
        ffn = run.model.blocks[0].ffn
        found.append(
            Exact(
                text=f"{label} has {printed}e9 parameters in all",
                true=agrees(printed, COLUMNS["total"].digits, total),
                found=f"{float(total):.4f}e9 with {ffn.n_shared} shared and top-{ffn.top_k} of {ffn.n_experts} experts"  # type: ignore[union-attr]
                f" of {ffn.d_ffn}",  # type: ignore[union-attr]
                numbers={"total": float(total), "printed": float(printed)},
            )
        )
    return all_of(found)


def tokens_follow_from_flops(source: Source) -> Part:
    found: list[Part] = []
    for name in ("SWA", "Mamba", "Inter-H", "Intra-H"):
        row = next(row for row in source.rows.of("2") if row.label == name + EQUAL_FLOPS)
        run = source.rows.run(row)
        tokens = value_of("tok", run, run_cost(run))
        printed = source.rows.entry(row).printed["tok"]
        found.append(
            Exact(
                text=f"{name} trains on {printed}e9 tokens at Llama's FLOPs",
                true=agrees(printed, 0, tokens),
                found=f"{float(tokens):.2f}e9",
                numbers={"tokens": run.train_tokens, "printed, 1e9": float(printed)},
            )
        )
    return all_of(found)


def heads_are_halved(source: Source) -> Part:
    """In the rows of Table 5 that join both modules in a block: half of the heads, and half of each width."""
    llama, mamba = _run(source, "Llama", "table5").model, _run(source, "Mamba", "table5").model
    full_attention, full_mamba = llama.blocks[0].mixer, mamba.blocks[0].mixer
    if not isinstance(full_attention, AttentionSpec) or not isinstance(full_mamba, Mamba2Spec):
        raise ValueError("table5: expected attention in Llama and Mamba-2 in Mamba")
    printed = next(row for row in source.rows.of("20") if row.label == "1B 1:1")
    width = source.rows.entry(printed).printed["d_trans"]
    full = (full_attention.n_heads, full_attention.n_heads * full_attention.head_dim, full_mamba.d_ssm)
    found: list[Part] = []
    for row in source.rows.of("5", lambda entry: entry.printed["module"] == "T/M"):
        model = source.rows.run(row).model
        mixers = {block.mixer for block in model.blocks}
        mixer = model.blocks[0].mixer
        if not isinstance(mixer, IntraSpec):
            raise ValueError(f"{row}: expected intra-hybrid blocks")
        ours = (mixer.attention.n_heads, mixer.attention.n_heads * mixer.attention.head_dim, mixer.mamba.d_ssm)
        shares = [Fraction(part, whole) for part, whole in zip(ours, full, strict=True)]
        found.append(
            Exact(
                text=f"{row.label} has half the heads and half the widths in every block",
                true=len(mixers) == 1 and all(share == Fraction(1, 2) for share in shares),
                found=f"{ours[0]} of {full[0]} heads; d_qk {ours[1]} of {full[1]} ({float(shares[1]):.0%}), d_ssm "
                f"{ours[2]} of {full[2]} ({float(shares[2]):.0%}): with these the printed parameters come out",
                numbers={"heads": ours[0], "d_qk": ours[1], "d_ssm": ours[2]},
            )
        )
    if 2 * width != full[1]:
        found.append(
            Remark(
                text=f"Table 20 prints d_qk {width} of {full[1]} for the concatenated block at 1:1",
                numbers={"d_trans": int(width)},
            )
        )
    return all_of(found)

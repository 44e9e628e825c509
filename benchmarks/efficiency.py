"""How fast models train, read and decode here, beside their rooflines: architecture by total length.

    python benchmarks/efficiency.py [--models llama swa mamba inter intra] [--lengths 128 256 512 1024] [--json FILE]
    python benchmarks/efficiency.py --paper [--rows 'Llama' 'Mamba'] [--json FILE]

Weights are random: speed does not depend on them. The first form measures models of scale=toy on the CPU, in float32
on one thread unless OMP_NUM_THREADS says otherwise, as the evaluation `throughput` does (hybrid/evals/throughput.py):
medians, with the share of the roofline that was reached, against peak rates measured in the same process. Of one thread
it is CPU time, as other processes may want the processor too; of several, and of training, wall time. The load at the
beginning and the end is printed.

The second form has the paper's 1B models in bfloat16, batch 4, prompt 512, total lengths of 2K to 32K, beside Table 13
of version 3: what it prints as a share of the roofline of an H200 (its device is not said); and measured here, where
there is a GPU.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

TOY = ("llama", "swa", "mamba", "inter", "intra")
TOY_LENGTHS = (128, 256, 512, 1024)
BATCH, TOY_PROMPT, PAPER_PROMPT = 4, 16, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(TOY))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(TOY_LENGTHS))
    parser.add_argument(
        "--max-batch", type=int, default=64, help="decode at the largest batch that fits too, up to this"
    )
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--paper", action="store_true", help="the paper's 1B models")
    parser.add_argument("--rows", nargs="+", help="with --paper: rows of Table 13 (none: all)")
    parser.add_argument("--json", type=Path, help="write all that was found to this file")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    found = paper(options.rows, options.repeats) if options.paper else toy(options)
    print(f"load {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


# --- toy models on the CPU ----------------------------------------------------------------------


def toy(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from hybrid.config import read_config
    from hybrid.cost import layout_of
    from hybrid.evals.throughput import Repeats, measure_inference, measure_training, peaks_of
    from hybrid.train.loop import build_model
    from sweeps.compose import Composer
    from sweeps.speed import available_memory_bytes, processor

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    repeats = Repeats(warmup=3, counted=options.repeats, clock=clock)
    resolved = {}
    with Composer() as composer:
        for name in options.models:
            config = composer.compose([f"model={name}", f"exec.threads={threads}"])
            resolved[name] = read_config(config, stdlib_fingerprint=lambda: "0" * 16)
    peaks = peaks_of(torch.device("cpu"), "float32", clock)
    print(
        f"{processor()}, {threads} thread(s), float32, torch {torch.__version__}, batch {BATCH}, prompt {TOY_PROMPT}\n"
        f"peaks {peaks.flops_per_s / 1e9:.0f} GFLOP/s, {peaks.bytes_per_s / 1e9:.1f} GB/s ({peaks.source})"
    )
    models = {}
    for name, one in resolved.items():
        models[name] = build_model(one.run, one.execution)
        models[name].init_weights(1)
    at: dict[str, dict[int, Any]] = {name: {} for name in models}
    for length in options.lengths:
        for name, model in models.items():
            at[name] |= measure_inference(
                model,
                lengths=[length],
                batch=BATCH,
                prompt=TOY_PROMPT,
                repeats=repeats,
                peaks=peaks,
                max_batch=options.max_batch,
                memory_bytes=available_memory_bytes(),
            )
    steps = Repeats(warmup=1, counted=5)
    training = {
        name: measure_training(one.run, one.execution, repeats=steps, peaks=peaks) for name, one in resolved.items()
    }
    labels = {name: f"{name} {layout_of(one.run.model)}" for name, one in resolved.items()}
    told: dict[str, Any] = {}
    for what, of in (("decode", "decode"), ("decode, largest batch", "largest"), ("prefill", "prefill")):
        measured = {
            labels[name]: {n: m for n, one in by_length.items() if (m := getattr(one, of)) is not None}
            for name, by_length in at.items()
        }
        show_lengths(what, measured)
        told[what] = {label: {n: m.metrics() for n, m in by.items()} for label, by in measured.items()}
    print("\ntraining: tokens/s (share of the roofline), MFU, step with its quartiles, memory predicted")
    for name, one in training.items():
        times = one.steps.times
        print(
            f"  {labels[name]:<24}{one.steps.tokens_per_s:>8.0f} ({one.steps.roofline_fraction:.1%}), "
            f"{one.mfu_percent:.1f}%, {times.median_s:.3f} s [{times.low_s:.3f}, {times.high_s:.3f}], "
            f"{one.predicted_memory_bytes / 2**20:.0f} MiB"
        )
    say_bound("training", {labels[name]: one.steps.roofline_fraction for name, one in training.items()})
    told["training"] = {labels[name]: one.metrics() for name, one in training.items()}
    machine = {
        "processor": processor(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    device = {"flops_per_s": peaks.flops_per_s, "bytes_per_s": peaks.bytes_per_s, "source": peaks.source}
    return {"machine": machine, "peaks": device, "batch": BATCH, "prompt": TOY_PROMPT, **told}


def show_lengths(what: str, measured: dict[str, dict[int, Any]]) -> None:
    """A table, architecture by length, and what of it is bound to implementations."""
    lengths = sorted({length for by_length in measured.values() for length in by_length})
    if not lengths:
        return
    batches = sorted({m.tokens for by_length in measured.values() for m in by_length.values()})
    batch = f", batch {' to '.join(map(str, dict.fromkeys((batches[0], batches[-1]))))}" if what != "prefill" else ""
    print(f"\n{what}{batch}: tokens/s (share of the roofline) by total length")
    print(" " * 26 + "".join(f"{length:>16,}" for length in lengths))
    for label, by_length in measured.items():
        cells = [
            f"{m.tokens_per_s:.0f} ({m.roofline_fraction:.1%})" if (m := by_length.get(n)) else "-" for n in lengths
        ]
        print(f"  {label:<24}" + "".join(f"{cell:>16}" for cell in cells))
    for length in lengths:
        shares = {label: by[length].roofline_fraction for label, by in measured.items() if length in by}
        say_bound(f"at {length:,}", shares)


def say_bound(what: str, shares: dict[str, float]) -> None:
    from analysis.claims.unequal import implementation_bound

    bound = implementation_bound(what, shares)
    if bound is not None:
        print(f"  {bound}")


# --- the paper's models -------------------------------------------------------------------------


def paper(wanted: Sequence[str] | None, repeats: int) -> dict[str, Any]:
    import torch

    from analysis.claims.parts import LENGTHS, THROUGHPUT
    from analysis.claims.source import PaperRows
    from analysis.reference.compare import Sweeps
    from analysis.reference.printed import read_printed
    from hybrid.decode_cost import H200_SXM
    from hybrid.roofline import Peaks, decode_work
    from sweeps.compose import Composer

    gpu = torch.cuda.is_available()
    peaks = Peaks.published(H200_SXM)
    print(f"1B models in bfloat16, batch {BATCH}, prompt {PAPER_PROMPT}, by total length; rooflines {peaks.source},")
    print(
        "in the middle of generation: tokens/s that it allows; of them what v3's Table 13 prints; measured here, "
        + ("on " + torch.cuda.get_device_name() if gpu else "on nothing: there is no GPU")
    )
    print(" " * 16 + "".join(f"{length:>34,}" for length in LENGTHS))
    found: dict[str, Any] = {}
    with Composer() as composer:
        rows = PaperRows(read_printed(), Sweeps(composer))
        execution = gpu_execution(composer) if gpu else None
        for row in rows.of("13"):
            if wanted and row.label not in wanted:
                continue
            run = rows.run(row)
            measured = measured_on_gpu(run, execution, LENGTHS, repeats) if gpu else {}
            cells, told = [], {}
            for length in LENGTHS:
                work = decode_work(run.model, batch=BATCH, length=(PAPER_PROMPT + length) // 2, element_bytes=2)
                allowed = BATCH / work.roofline(peaks).time_s
                printed = rows.number(row, THROUGHPUT[length])
                here = measured.get(length)
                cells.append(
                    f"{allowed:,.0f}; "
                    + ("-" if printed is None else f"{printed:,.0f} ({printed / allowed:.1%})")
                    + (f"; {here['tokens_per_s']:,.0f} ({here['roofline_fraction']:.1%})" if here else "")
                )
                told[length] = {"allowed_tokens_per_s": allowed, "printed_tokens_per_s": printed, "measured": here}
            print(f"  {row.label:<14}" + "".join(f"{cell:>34}" for cell in cells), flush=True)
            found[row.label] = told
    for length in LENGTHS:
        shares = {
            label: told[length]["printed_tokens_per_s"] / told[length]["allowed_tokens_per_s"]
            for label, told in found.items()
            if told[length]["printed_tokens_per_s"] is not None
        }
        say_bound(f"as printed, at {length:,}", shares)
        here = {
            label: told[length]["measured"]["roofline_fraction"]
            for label, told in found.items()
            if told[length]["measured"]
        }
        say_bound(f"as measured, at {length:,}", here)
    return {"peaks": peaks.source, "gpu": torch.cuda.get_device_name() if gpu else None, "rows": found}


def gpu_execution(composer: Any) -> Any:
    from hybrid.config import read_config

    return read_config(composer.compose(["exec.device=cuda"]), stdlib_fingerprint=lambda: "0" * 16).execution


def measured_on_gpu(run: Any, execution: Any, lengths: Sequence[int], repeats: int) -> dict[int, Any]:
    """Decoding of one model by total length; nothing of it is left on the GPU."""
    import torch

    from hybrid.evals.throughput import Repeats, free_memory_bytes, measure_inference, peaks_of
    from hybrid.train.loop import build_model

    device = torch.device("cuda")
    model = build_model(run, execution).to(torch.bfloat16)
    found = measure_inference(
        model,
        lengths=lengths,
        batch=BATCH,
        prompt=PAPER_PROMPT,
        repeats=Repeats(warmup=5, counted=repeats),
        peaks=peaks_of(device, "bfloat16"),
        max_batch=None,
        memory_bytes=free_memory_bytes(device),
    )
    del model
    torch.cuda.empty_cache()
    return {length: at.decode.metrics() | {"prefill": at.prefill.metrics()} for length, at in found.items()}


if __name__ == "__main__":
    main()

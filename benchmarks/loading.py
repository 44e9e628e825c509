"""Reading a store of 10,000 finished runs with 200 metric lines each, beside MLflow's SQLite store of the same runs.

    python -m venv /tmp/mlflow && /tmp/mlflow/bin/pip install mlflow
    python benchmarks/loading.py --mlflow-python /tmp/mlflow/bin/python [--runs 10000] [--points 200] [--rounds 5]
    python benchmarks/loading.py --no-mlflow --runs 10000 100000       how the times grow with the number of runs

Of several sizes only the first is compared with MLflow. A store of 100,000 runs with 200 lines each takes 5 GB.

MLflow is no dependency of the project: it has an environment of its own. Its store is filled through its client with
`log_batch`: of each run its settings as parameters, what its record says in numbers as metrics, and the points of one
curve, where ours has lines of seven numbers. It is read with `search_runs`, to a DataFrame.

Every figure is of a process of its own, and counts from when its modules are imported (and MLflow is connected) to when
the result is there; ours and MLflow's take turns. "first": with no index yet. Files were just written, so that no disk
is waited for. The directories are made to look an hour old, as the index looks again at what is younger than seconds.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

NAME, SMALL = "bench", "small"
N_SMALL = 250
LAYOUTS = ("AAAA", "MMMM", "AMMM", "MAMM", "MMAM", "MMMA", "AMAM", "MAMA", "AAMM", "MMAA")
EXPERIMENT = "bench"
BATCH = 900  # metrics at once; with the parameters, MLflow takes 1,000


# --- the runs -----------------------------------------------------------------------------------


def specs(n: int, n_seeds: int) -> Iterator[tuple[str, float, int, Any]]:
    """Row, learning rate, seed and spec of as many runs: ten layouts, `n_seeds` seeds, learning rates as needed."""
    from dataclasses import replace

    from hybrid.spec import (
        AdamWSpec,
        AttentionSpec,
        BlockSpec,
        Mamba2Spec,
        ModelSpec,
        RopeSpec,
        RunSpec,
        StdlibSpec,
        SwigluSpec,
        TrapezoidSpec,
    )

    attention = AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=16, rope=RopeSpec(theta=10000.0, scaling=None))
    mamba = Mamba2Spec(
        d_ssm=128,
        head_dim=32,
        d_state=16,
        n_groups=1,
        d_conv=4,
        a_init_min=1.0,
        a_init_max=16.0,
        dt_init_min=0.001,
        dt_init_max=0.1,
    )
    blocks = {
        "A": BlockSpec(mixer=attention, ffn=SwigluSpec(d_ffn=128)),
        "M": BlockSpec(mixer=mamba, ffn=SwigluSpec(d_ffn=128)),
    }
    data = StdlibSpec(fingerprint="0123456789abcdef", val_percent=2)
    base = RunSpec(
        model=ModelSpec(
            d_model=64, vocab_size=data.vocab_size, tie_embeddings=True, norm_eps=1e-5, init_std=0.02, blocks=()
        ),
        data=data,
        optim=AdamWSpec(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0),
        schedule=TrapezoidSpec(warmup_tokens=81920, cooldown_tokens=0),
        stop=None,
        train_tokens=2000 * 4096,
        batch_tokens=4096,
        seq_len=64,
        dtype="float32",
        init_seed=1,
        data_seed=1,
    )
    for i in range(n):
        layout, rest = LAYOUTS[i // n_seeds % len(LAYOUTS)], i // (n_seeds * len(LAYOUTS))
        seed, lr = i % n_seeds + 1, 1e-4 * (rest + 1)
        model = replace(base.model, blocks=tuple(blocks[letter] for letter in layout))
        optim = replace(base.optim, lr=lr)
        yield layout, lr, seed, replace(base, model=model, optim=optim, init_seed=seed, data_seed=seed)


def build(root: Path, n: int, n_points: int, n_seeds: int, exported: Path | None) -> None:
    """A store of `n` runs that nobody trained, in one request; with `exported`, what MLflow is to be told of them."""
    import random
    from dataclasses import asdict

    from hybrid.cost import run_cost
    from hybrid.decode import canonical_json, encode
    from sweeps.identity import run_id as identify
    from sweeps.store import Cell, Request, Store

    store = Store(root)
    store.prepare()
    dice = random.Random(1)
    cells = []
    execution = {"device": "cpu", "kernels": "torch", "threads": 1, "nodes": 1, "gpus_per_node": 1, "ssd_chunk": 64}
    hour_ago = time.time() - 3600
    with open(exported, "w") if exported is not None else contextlib.nullcontext() as told:
        for layout, lr, seed, spec in specs(n, n_seeds):
            run_id = identify(spec)
            cells.append(
                Cell(name=f"{layout}/lr={lr:g}/s{seed}", row=layout, axes={"optim.lr": lr}, seed=seed, run_id=run_id)
            )
            loss = 2.0 + 0.1 * LAYOUTS.index(layout) + dice.gauss(0.0, 0.01)
            steps = [spec.train_steps * (i + 1) // n_points for i in range(n_points)]
            curve = [loss + 3.0 / (1 + i / 8) + dice.gauss(0.0, 0.02) for i in range(n_points)]
            directory = store.run_dir(run_id)
            attempt = directory / "attempts" / "001"
            os.makedirs(attempt)
            (directory / "spec.json").write_text(canonical_json(spec) + "\n")
            with open(attempt / "metrics.jsonl", "w") as lines:
                for i, step in enumerate(steps):
                    line = {"step": step, "tokens": step * spec.batch_tokens, "train_loss_nats": curve[i], "lr": lr}
                    line |= {"grad_norm": 1.0 + curve[i] / 7, "tokens_per_s": 2e5 / curve[i], "wall_s": step * 0.0213}
                    lines.write(json.dumps(line) + "\n")
            record = {
                "schema": 1,
                "run_id": run_id,
                "status": "done",
                "attempt": 1,
                "spec": encode(spec),
                "cost": asdict(run_cost(spec)),
                "metrics": {
                    "steps": spec.train_steps,
                    "tokens": spec.train_tokens,
                    "train_loss_nats": curve[-1],
                    "val_loss_nats": loss,
                    "val_accuracy": 0.5 - loss / 10,
                    "val_bits_per_byte": loss * 1.4427,
                    "val_tokens": 65536,
                    "expert_load_max": None,
                    "solved": None,
                    "steps_to_threshold": None,
                    "wall_s": spec.train_steps * 0.0213 + dice.random(),
                    "tokens_per_s": 2e5 + 1e3 * dice.random(),
                },
                "provenance": {
                    "git_commit": "0" * 40,
                    "git_diff_sha": None,
                    "snapshot": None,
                    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "safetensors": "0.7.0"},
                    "host": f"node{dice.randrange(16)}",
                    "platform": "Linux",
                    "processor": "made up",
                    "device": "cpu",
                    "exec": execution,
                    "mixers": {},
                    "command": ["python", "run.py", "-m", "+sweep=bench"],
                    "user": "ada",
                    "slurm": None,
                    "trunk": None,
                    "started_at": "2026-11-20T10:00:00.000000+00:00",
                    "finished_at": f"2026-11-20T11:00:00.{dice.randrange(10**6):06d}+00:00",
                    "device_name": "made up",
                    "predicted_memory_bytes": 10**8,
                    "peak_memory_bytes": 10**8 + dice.randrange(10**6),
                    "preflight_tokens_per_s": None,
                },
            }
            (directory / "record.json").write_text(json.dumps(record, sort_keys=True, indent=1) + "\n")
            os.utime(directory, (hour_ago, hour_ago))
            if told is not None:
                told.write(json.dumps(_for_mlflow(layout, record, steps, curve)) + "\n")
    created_at = "2026-11-20T10:00:00+00:00"
    for name, part in ((NAME, cells), (SMALL, cells[:N_SMALL])):
        store.publish_request(Request(sweep=name, overrides=(), created_at=created_at, report={}, cells=tuple(part)))


def _for_mlflow(layout: str, record: dict[str, Any], steps: list[int], curve: list[float]) -> dict[str, Any]:
    numbers = {**record["metrics"], **{f"cost.{name}": value for name, value in record["cost"].items()}}
    optim = {f"optim.{name}": value for name, value in record["spec"]["optim"].items()}
    scalars = {name: value for name, value in record["spec"].items() if not isinstance(value, dict)}
    return {
        "name": record["run_id"],
        "params": {"layout": layout, **optim, **scalars, "host": record["provenance"]["host"]},
        "metrics": {name: value for name, value in numbers.items() if value is not None},
        "curve": list(zip(steps, curve, strict=True)),
    }


# --- what is timed, each in a process of its own -------------------------------------------------


def _timed(work: Callable[[], int]) -> None:
    """Say how long it took by the clock and of the processor, what came of it, and the process's most memory."""
    before, began = _processor_s(), time.perf_counter()
    result = work()
    wall_s, cpu_s = time.perf_counter() - began, _processor_s() - before
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "result": result, "peak_mib": peak_mib}))


def _processor_s() -> float:
    """Of this process and those that it has waited for."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def time_index(root: Path) -> None:
    """The records."""
    from sweeps.index import Index
    from sweeps.store import Store

    _import("numpy")
    _timed(lambda: len(Index(Store(root)).final))


def time_lines(root: Path) -> None:
    """All metric lines, in columns; of the records there is an index."""
    from sweeps.index import Index
    from sweeps.store import Store

    _import("numpy")

    def lines() -> int:
        index = Index(Store(root))
        return index.metric_lines(index.final)[1].n_rows

    _timed(lines)


def time_frame(root: Path) -> None:
    from analysis.frame import runs

    _import_pandas()
    _timed(lambda: len(runs(root)))


def time_request_frame(root: Path) -> None:
    from analysis.frame import runs

    _import_pandas()
    _timed(lambda: len(runs(root, NAME)))


def time_metrics_frame(root: Path) -> None:
    from analysis.frame import metrics

    _import_pandas()
    _timed(lambda: len(metrics(root)))


def time_table(root: Path, name: str) -> None:
    """`python -m analysis tables`, from the command line read to the table printed."""
    import io

    from analysis.__main__ import main

    _import("numpy", "scipy.stats", "analysis.load", "analysis.render", "analysis.stats", "analysis.tables")
    _import("sweeps.index")

    def table() -> int:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = main(["tables", name, "--store", str(root)])
        assert not code, code
        return len(printed.getvalue().splitlines())

    _timed(table)


def time_report(root: Path) -> None:
    """`python -m analysis report` of the request, with the paper's claims, to the file on the disk."""
    from analysis.__main__ import main

    _import("numpy", "scipy.stats", "scipy.special", "analysis.report.data", "analysis.report.page", "hydra.core")
    _import("analysis.claims.judge", "analysis.claims.show", "analysis.claims.source", "analysis.claims.verdicts")
    _import("analysis.reference.compare", "analysis.reference.printed", "sweeps.compose", "hydra._internal.utils")

    def report() -> int:
        with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(None):
            path = Path(directory) / "report.html"
            code = main(["report", NAME, "--store", str(root), "--out", str(path)])
            assert not code, code
            return path.stat().st_size

    _timed(report)


def _import(*modules: str) -> None:
    for module in modules:
        importlib.import_module(module)


def _import_pandas() -> None:
    """With what it imports when it is first used."""
    import pandas

    len(pandas.DataFrame({"a": ["text"], "b": [1.5]}))


def fill_mlflow(uri: str, told: Path) -> None:
    """MLflow's store of the same runs, through its client."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment(EXPERIMENT)

    def fill() -> int:
        n = 0
        with open(told) as lines:
            for n, line in enumerate(lines, start=1):  # noqa: B007
                run = json.loads(line)
                made = client.create_run(experiment, run_name=run["name"]).info.run_id
                points = [Metric(name, value, 0, 0) for name, value in run["metrics"].items()]
                points += [Metric("curve", value, step, step) for step, value in run["curve"]]
                params = [Param(name, str(value)) for name, value in run["params"].items()]
                for begin in range(0, len(points), BATCH):
                    client.log_batch(made, metrics=points[begin : begin + BATCH], params=[] if begin else params)
                client.set_terminated(made)
        return n

    _timed(fill)


def time_mlflow(uri: str) -> None:
    import mlflow

    _import_pandas()
    mlflow.set_tracking_uri(uri)
    mlflow.search_runs(experiment_names=[EXPERIMENT], max_results=1)
    _timed(lambda: len(mlflow.search_runs(experiment_names=[EXPERIMENT], max_results=10**6)))


CHILDREN: dict[str, Callable[..., None]] = {
    "index": lambda root: time_index(Path(root)),
    "lines": lambda root: time_lines(Path(root)),
    "frame": lambda root: time_frame(Path(root)),
    "request-frame": lambda root: time_request_frame(Path(root)),
    "metrics-frame": lambda root: time_metrics_frame(Path(root)),
    "table": lambda root: time_table(Path(root), NAME),
    "small-table": lambda root: time_table(Path(root), SMALL),
    "report": lambda root: time_report(Path(root)),
    "mlflow-fill": lambda uri, told: fill_mlflow(uri, Path(told)),
    "mlflow": time_mlflow,
}


def child(python: str, what: str, *arguments: object) -> dict[str, float]:
    command = [python, str(Path(__file__).resolve()), "--child", what, *map(str, arguments)]
    done = subprocess.run(command, cwd=os.environ["XDG_CACHE_HOME"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{what} failed: {' '.join(command)}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- the whole ----------------------------------------------------------------------------------


def check_mlflow(python: str) -> None:
    found = subprocess.run([python, "-c", "import mlflow; print(mlflow.__version__)"], capture_output=True, text=True)
    if found.returncode != 0:
        last = found.stderr.strip().splitlines()[-1:] or [f"exit code {found.returncode}"]
        raise SystemExit(
            f"--mlflow-python = {python}: it cannot import mlflow ({last[0]}); make an environment that can:\n"
            "  python -m venv /tmp/mlflow && /tmp/mlflow/bin/pip install mlflow\n"
            "and give --mlflow-python /tmp/mlflow/bin/python, or --no-mlflow to time ours alone"
        )
    print(f"MLflow {found.stdout.strip()}, SQLite", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Made:
    """Our store of so many runs, and MLflow's, if it is to be timed."""

    runs: int
    root: Path
    uri: str | None


def make(scratch: Path, runs: int, options: argparse.Namespace, *, with_mlflow: bool) -> Made:
    """The stores, unless they are there."""
    scratch.mkdir(parents=True, exist_ok=True)
    root, told, database = scratch / "store", scratch / "told.jsonl", scratch / "mlflow.db"
    if not root.exists():
        began, part = time.perf_counter(), scratch / "part"
        shutil.rmtree(part, ignore_errors=True)
        build(part, runs, options.points, options.seeds, told if with_mlflow else None)
        part.rename(root)
        print(f"store of {runs:,} runs made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if with_mlflow and not database.exists():
        part = scratch / "part.db"
        part.unlink(missing_ok=True)
        filled = child(options.mlflow_python, "mlflow-fill", f"sqlite:///{part}", told)
        assert filled["result"] == runs
        part.rename(database)
        print(f"MLflow's store filled in {filled['wall_s']:.0f} s", file=sys.stderr)
    return Made(runs=runs, root=root, uri=f"sqlite:///{database}" if with_mlflow else None)


MEASURED = {
    "first index": "first index, of the records",
    "first metric lines": "first index, of the metric lines",
    "frame": "DataFrame of all runs, warm",
    "mlflow": "MLflow search_runs to a DataFrame, warm",
    "request-frame": "DataFrame of a request of all runs, warm",
    "metrics-frame": "DataFrame of all metric lines, warm",
    "table": "table of a request of all runs, warm",
    "small-table": f"table of a request of {N_SMALL} runs, warm",
    "report": "report of a request of all runs, with claims, warm",
}
Times = dict[str, list[dict[str, float]]]


def measure(stores: Sequence[Made], options: argparse.Namespace) -> None:
    """Time everything, the stores in turns, and print what was found."""
    found: dict[int, Times] = {made.runs: {} for made in stores}

    def take(made: Made, what: str, expected: int | None, name: str | None = None) -> None:
        python, of = (options.mlflow_python, made.uri) if what == "mlflow" else (sys.executable, made.root)
        told = child(python, what, of)
        assert expected is None or told["result"] == expected, (what, told)
        found[made.runs].setdefault(name or what, []).append(told)

    for made in stores:
        for _ in range(options.firsts):
            (made.root / "index.runs").unlink(missing_ok=True)
            shutil.rmtree(made.root / "index.metrics", ignore_errors=True)
            take(made, "index", made.runs, "first index")
            take(made, "lines", made.runs * options.points, "first metric lines")
    for number in range(options.rounds):
        for made in stores:
            take(made, "frame", made.runs)
            if made.uri is not None:
                take(made, "mlflow", made.runs)
            take(made, "request-frame", made.runs)
            take(made, "metrics-frame", made.runs * options.points)
            for what in ("table", "small-table", "report"):
                take(made, what, None)
            times = found[made.runs].items()
            said = [f"{what} {taken[-1]['wall_s']:.2f} s" for what, taken in times if len(taken) > number]
            print(f"round {number + 1}, {made.runs:,} runs: {', '.join(said)}", file=sys.stderr)
    print(
        f"{options.seeds} seeds a line of the table, {options.points} metric lines a run; "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}; medians of {options.rounds} ({options.firsts} of the first)"
    )
    for made in stores:
        print_times(made.runs, found[made.runs])
    for smaller, larger in itertools.pairwise(found):
        print_growth(smaller, larger, found[smaller], found[larger])


def print_times(runs: int, found: Times) -> None:
    print(f"\n{f'{runs:,} runs':<50} {'wall s':>8} {'least':>8} {'CPU s':>8} {'peak MiB':>9}")
    for what, title in MEASURED.items():
        if what in found:
            walls, cpus = _all(found[what], "wall_s"), _all(found[what], "cpu_s")
            print(
                f"{title:<50} {statistics.median(walls):8.3f} {min(walls):8.3f} {statistics.median(cpus):8.3f} "
                f"{max(_all(found[what], 'peak_mib')):9,.0f}"
            )
    if "mlflow" in found:
        ratios = [_median(found["mlflow"], unit) / _median(found["frame"], unit) for unit in ("wall_s", "cpu_s")]
        print(f"DataFrame of all runs, MLflow's median over ours: {ratios[0]:.0f} by the clock, {ratios[1]:.0f} of CPU")


def print_growth(smaller: int, larger: int, times: Times, of_larger: Times) -> None:
    print(f"\n{f'{larger / smaller:g} times the runs: so many times as long':<50} {'wall':>8} {'CPU':>8}")
    for what, title in MEASURED.items():
        if what in times and what in of_larger:
            ratios = [_median(of_larger[what], unit) / _median(times[what], unit) for unit in ("wall_s", "cpu_s")]
            print(f"{title:<50} {ratios[0]:8.1f} {ratios[1]:8.1f}")


def _median(found: list[dict[str, float]], unit: str) -> float:
    return statistics.median(_all(found, unit))


def _all(found: list[dict[str, float]], unit: str) -> list[float]:
    return [one[unit] for one in found]


def main() -> None:
    """Build, measure, print a table."""
    if sys.argv[1:2] == ["--child"]:
        CHILDREN[sys.argv[2]](*sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000], help="how many (default 10000), or several")
    parser.add_argument("--points", type=int, default=200, help="metric lines a run (default 200)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of a line of the table (default 5)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="interleaved rounds of what is warm (default 5); 0: make the stores and end",
    )
    parser.add_argument("--firsts", type=int, default=1, help="how often the first index is made (default 1)")
    parser.add_argument("--mlflow-python", metavar="FILE", default=sys.executable, help="a Python that has mlflow")
    parser.add_argument("--no-mlflow", action="store_true", help="time ours alone")
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, help="make the stores there and keep them; used if they are there already"
    )
    options = parser.parse_args()
    if not options.no_mlflow:
        check_mlflow(options.mlflow_python)
    with contextlib.ExitStack() as stack:
        scratch = (options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        scratch.mkdir(parents=True, exist_ok=True)
        # Both write where caches are, MLflow also where it is started.
        cache = scratch / "cache"
        cache.mkdir(exist_ok=True)
        os.environ["XDG_CACHE_HOME"] = str(cache)
        sizes = sorted(set(options.runs))
        stores = [
            make(scratch / str(runs), runs, options, with_mlflow=runs == sizes[0] and not options.no_mlflow)
            for runs in sizes
        ]
        if options.rounds:
            measure(stores, options)


if __name__ == "__main__":
    main()

"""Stores made up of runs that nobody trained: real files, written by the real store.

For tests, and for the small store that is committed (tests/data/make.py).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hybrid.cost import run_cost
from hybrid.decode import encode
from hybrid.spec import (
    AdamWSpec,
    AttentionSpec,
    BlockSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    RecallSpec,
    RunSpec,
    StdlibSpec,
    StopSpec,
    SwigluSpec,
    TrapezoidSpec,
)
from sweeps.identity import run_id
from sweeps.store import Cell, Request, Store, make_dir

MAX_STEPS = 1200


BYTES = StdlibSpec(fingerprint="f" * 16, val_percent=2)


def run_spec(
    layout: str,
    seed: int,
    *,
    lr: float = 0.002,
    probe: bool = True,
    corpus: StdlibSpec = BYTES,
    d_ffn: int | None = 128,
) -> RunSpec:
    """A toy run; its layout as letters. A probe stops at a threshold, and has no `corpus`."""
    mixers: dict[str, MixerSpec] = {
        "A": AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=16, rope=None),
        "M": Mamba2Spec(
            d_ssm=128,
            head_dim=32,
            d_state=16,
            n_groups=1,
            d_conv=4,
            a_init_min=0.01,
            a_init_max=2.0,
            dt_init_min=0.001,
            dt_init_max=0.1,
        ),
    }
    data = RecallSpec(n_symbols=64, n_pairs=8, power=0.01) if probe else corpus
    ffn = None if d_ffn is None else SwigluSpec(d_ffn=d_ffn)
    return RunSpec(
        model=ModelSpec(
            d_model=64,
            vocab_size=data.vocab_size,
            tie_embeddings=True,
            norm_eps=1e-5,
            init_std=0.02,
            blocks=tuple(BlockSpec(mixer=mixers[letter], ffn=ffn) for letter in layout),
        ),
        data=data,
        optim=AdamWSpec(lr=lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0),
        schedule=TrapezoidSpec(warmup_tokens=81920, cooldown_tokens=0),
        stop=StopSpec(metric="accuracy", threshold=0.9, every_tokens=20 * 4096, examples=256) if probe else None,
        train_tokens=MAX_STEPS * 4096,
        batch_tokens=4096,
        seq_len=64,
        dtype="float32",
        init_seed=seed,
        data_seed=seed,
    )


@dataclass
class Book:
    """Writes runs and requests into a store, as the worker and the planner would.

    Records that are not `in_full` say what no other file says: neither spec nor cost, and few metrics.
    """

    store: Store
    host: str = "here"
    in_full: bool = True
    cells: list[Cell] = field(default_factory=list)
    spec = staticmethod(run_spec)

    def cell(self, spec: RunSpec, row: str, seed: int, axes: dict[str, Any] | None = None) -> str:
        identity = run_id(spec)
        self.cells.append(Cell(name=f"{row}/s{seed}", row=row, axes=axes or {}, seed=seed, run_id=identity))
        return identity

    def record(self, spec: RunSpec, status: str = "done", **metrics: Any) -> str:
        """A finished run; metrics not given are plausible."""
        identity = self.store.publish_spec(spec)
        steps = metrics.get("steps", spec.train_steps)
        usual = {"tokens": steps * spec.batch_tokens, "wall_s": steps * 0.02, "tokens_per_s": 200_000.0}
        if isinstance(spec.data, StdlibSpec) and metrics.get("val_loss_nats"):
            usual["val_bits_per_byte"] = metrics["val_loss_nats"] / math.log(2)
        record = {"schema": 1, "run_id": identity, "status": status, "provenance": {"host": self.host, "device": "cpu"}}
        if self.in_full:
            usual |= {"steps": steps, "train_loss_nats": 1.0, "val_accuracy": 0.95, "val_tokens": 65536}
            usual |= dict.fromkeys(("val_loss_nats", "solved", "steps_to_threshold"))
            record |= {"spec": encode(spec), "cost": asdict(run_cost(spec))}
        assert self.store.publish_record(identity, {**record, "metrics": usual | metrics})
        return identity

    def probe(self, row: str, layout: str, steps: Sequence[int | None], *, spare: int = 0, lr: float = 0.002) -> None:
        """A row of a probe: the steps to the threshold of each seed, None for unsolved; then `spare` seeds not run."""
        for seed in range(1, len(steps) + spare + 1):
            spec = run_spec(layout, seed, lr=lr)
            self.cell(spec, row, seed)
            if seed <= len(steps):
                reached = steps[seed - 1]
                self.record(spec, steps=reached or MAX_STEPS, solved=reached is not None, steps_to_threshold=reached)

    def losses(self, row: str, layout: str, losses: Sequence[float], *, lr: float = 0.002, **axes: Any) -> None:
        """A row of ordinary runs with their validation losses, and a made-up curve for each."""
        for seed, loss in enumerate(losses, start=1):
            spec = run_spec(layout, seed, lr=lr, probe=False)
            self.cell(spec, row, seed, axes)
            self.record(spec, val_loss_nats=loss)
            self.curve(spec, loss)

    def curve(self, spec: RunSpec, loss: float) -> None:
        directory = self.store.attempt_dir(run_id(spec), 1)
        make_dir(directory)
        lines = [
            {"step": step, "tokens": step * spec.batch_tokens, "val_loss_nats": loss + 3 * 2 ** (-step / 150)}
            for step in range(50, spec.train_steps + 1, 50)
        ]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def fail(self, spec: RunSpec) -> None:
        identity = self.store.publish_spec(spec)
        directory = self.store.attempt_dir(identity, 1)
        make_dir(directory)
        (directory / "error.json").write_text('{"class": "oom", "message": "out of memory"}\n')

    def request(
        self,
        sweep: str = "demo",
        *,
        overrides: tuple[str, ...] = (),
        created_at: str = "2026-11-20T10:00:00+00:00",
        report: dict[str, Any] | None = None,
    ) -> Request:
        """Publish the cells so far as a request, and begin a new one."""
        request = Request(
            sweep=sweep, overrides=overrides, created_at=created_at, report=report or {}, cells=tuple(self.cells)
        )
        self.store.publish_request(request)
        self.cells = []
        return request

"""Every row of every sweep, and every preset, trains at toy scale: what is planned for a cluster runs on a laptop."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

import pytest
import torch

from hybrid.config import read_config
from hybrid.data.recall import RecallData
from hybrid.evals.nll import batch_loss
from hybrid.spec import ExecSpec, RecallSpec, RunSpec
from hybrid.train.loop import build_model, numerics
from hybrid.train.optim import build_optimizer
from sweeps.cells import expand
from sweeps.compose import Composer

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
# The whole study is made of the other sweeps.
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml") if path.stem != "paper")
PRESETS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
# Short sequences that are still longer than the toy window and sink.
SMALL = (
    "scale=toy",
    "data=recall",
    "seq_len=32",
    "batch_tokens=128",
    "budget.scale_tokens=384",
    "budget.max_mismatch=1",
    "model.vocab_size=64",
)
CPU = torch.device("cpu")


@cache
def runs(name: str) -> dict[str, tuple[RunSpec, ExecSpec]]:
    """Each distinct row of a sweep, or one preset, with how it is carried out."""
    with Composer() as composer:
        if name in SWEEPS:
            arguments = (f"+sweep={name}", *SMALL, "sweep.seeds=null", "stop=null", "schedule.warmup_tokens=0")
            found = expand(arguments, composer, stdlib_fingerprint=lambda: "0" * 16).runs
            return {run.cell.name: (run.resolved.run, run.resolved.execution) for run in found}
        resolved = read_config(composer.compose([*SMALL, f"model={name}"]), stdlib_fingerprint=lambda: "0" * 16)
        return {name: (resolved.run, resolved.execution)}


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    losses: tuple[float, ...]
    without_gradient: tuple[str, ...]
    still: tuple[str, ...]


@cache
def trained(run: RunSpec, execution: ExecSpec, steps: int = 3) -> Outcome:
    """A few AdamW steps on one batch: the losses, and the parameters and experts' biases that had no part in them.

    Rows of several sweeps are one run, which is trained once in a process, by whichever test comes first.
    """
    assert isinstance(run.data, RecallSpec)
    with numerics(execution, run.init_seed):
        model = build_model(run, execution)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = build_optimizer(run.optim, model)
        batch = RecallData(run.data, run.seq_len).train_batch(0, run.batch_size, run.data_seed)
        losses: list[float] = []
        # Weight decay moves what has a gradient of zero, so that moving alone says nothing.
        with_gradient: set[str] = set()
        for _ in range(steps):
            optimizer.zero_grad()
            loss, scored, _ = batch_loss(model, batch, CPU)
            torch.autograd.backward(loss / scored)
            losses.append(float(loss.detach() / scored))
            with_gradient |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
            optimizer.step()
            model.balance_experts()
    return Outcome(
        losses=tuple(losses),
        without_gradient=tuple(name for name, _ in model.named_parameters() if name not in with_gradient),
        still=tuple(name for name, value in model.state_dict().items() if torch.equal(value, before[name])),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SWEEPS, *(f"model:{preset}" for preset in PRESETS)])
def test_every_row_trains_a_few_steps_at_toy_scale(name: str) -> None:
    found = runs(name.removeprefix("model:"))
    assert found
    for row, (run, execution) in found.items():
        outcome = trained(run, execution)
        assert outcome.losses[-1] < outcome.losses[0], row
        assert not outcome.without_gradient, row
        assert not outcome.still, row

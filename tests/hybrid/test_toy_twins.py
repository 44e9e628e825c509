"""Every row of every sweep, and every preset, trains at toy scale: what is planned for a cluster runs on a laptop."""

from functools import cache
from pathlib import Path

import pytest
import torch

from hybrid.config import read_config
from hybrid.data import RecallData
from hybrid.evals.nll import batch_loss
from hybrid.model import LanguageModel
from hybrid.spec import ExecSpec, ModelSpec, RecallSpec, RunSpec
from hybrid.train.loop import build_model, numerics
from hybrid.train.optim import build_optimizer
from sweeps.cells import expand
from sweeps.compose import Composer

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
# Short sequences that are still longer than the toy window and sink.
SMALL = ("scale=toy", "data=recall", "seq_len=32", "batch_tokens=128", "budget.tokens=384", "model.vocab_size=64")
CPU = torch.device("cpu")
seen: dict[ModelSpec, str] = {}


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


def trained(run: RunSpec, execution: ExecSpec, steps: int = 3) -> tuple[LanguageModel, list[float], dict[str, float]]:
    """The model after a few AdamW steps on one batch, the losses, and how far each parameter moved."""
    assert isinstance(run.data, RecallSpec)
    model = build_model(run, execution)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(run.optim, model)
    batch = RecallData(run.data, run.seq_len).train_batch(0, run.batch_size, run.data_seed)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, scored, _ = batch_loss(model, batch, CPU)
        (loss / scored).backward()
        losses.append(float(loss.detach() / scored))
        optimizer.step()
        model.balance_experts()
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()}
    return model, losses, moved


@pytest.mark.parametrize("name", [*SWEEPS, *(f"model:{preset}" for preset in PRESETS)])
def test_every_row_trains_a_few_steps_at_toy_scale(name: str) -> None:
    for row, (run, execution) in runs(name.removeprefix("model:")).items():
        if run.model in seen:  # rows of several sweeps are one model
            continue
        seen[run.model] = row
        with numerics(execution, run.init_seed):
            _, losses, moved = trained(run, execution)
        assert losses[-1] < losses[0], row
        still = [parameter for parameter, distance in moved.items() if distance == 0.0 and "experts" not in parameter]
        assert not still, f"{row}: no step moved {still}"

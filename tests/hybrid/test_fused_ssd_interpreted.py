"""mamba-ssm's Triton scan through our wrapper, interpreted on the CPU, against the recurrence and PyTorch's path.

Triton decides at its import whether to interpret. So this file is also a script, which the tests run in a process of
its own, and which prints what it measured. The interpreter knows no bfloat16; float16 stands for half precision.
"""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hybrid.init import Initializer
from hybrid.mixers.mamba2 import Mamba2
from hybrid.ops.fused_ssd import fused_ssd
from hybrid.ops.kernels import TORCH
from hybrid.ops.ssd import ssd, ssd_naive
from hybrid.spec import Mamba2Spec

pytestmark = pytest.mark.slow

TRITON = replace(TORCH, ssd="triton")
REQUIRE = "HYBRID_REQUIRE_TRITON"
"""Set where the packages have to be there (CI): without them the tests then fail, and are not skipped."""


@dataclass(frozen=True, kw_only=True)
class Case:
    length: int
    chunk: int
    batch: int = 1
    groups: int = 1
    heads_per_group: int = 2
    head_dim: int = 8
    d_state: int = 16
    decay: float = 1.0
    initial: bool = False
    return_state: bool = True
    dtype: torch.dtype = torch.float32
    # Largest differences from the recurrence in float64, and from PyTorch's path in the same dtype: rounding, which
    # strong decay makes larger in the gradients of dt and A, in PyTorch's path most (see `_backward` there).
    tolerance: float = 2e-6
    torch_tolerance: float = 1e-5


CASES = {
    "whole_chunks": Case(length=64, chunk=32, head_dim=16),
    "part_of_a_chunk": Case(length=5, chunk=64, initial=True),
    "groups_batch_and_a_last_chunk_cut_short": Case(length=37, chunk=16, batch=2, groups=2, initial=True),
    "no_power_of_two_anywhere": Case(length=20, chunk=12, heads_per_group=3, head_dim=5, d_state=6, initial=True),
    "no_state_asked_for": Case(length=33, chunk=16, return_state=False),
    "strong_decay": Case(length=40, chunk=16, decay=30.0, initial=True, tolerance=2e-5, torch_tolerance=2e-4),
    "half_precision": Case(
        length=48, chunk=16, initial=True, dtype=torch.float16, tolerance=2e-3, torch_tolerance=2e-3
    ),
}


# --- the script ---------------------------------------------------------------------------------


def tensors(case: Case, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    n_heads = case.groups * case.heads_per_group

    def normal(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)).float()

    made = [
        normal(case.dtype, case.batch, case.length, n_heads, case.head_dim),
        uniform(0.001, 1.0, case.batch, case.length, n_heads),
        uniform(-2.0 * case.decay, -0.01 * case.decay, n_heads),
        normal(case.dtype, case.batch, case.length, case.groups, case.d_state),
        normal(case.dtype, case.batch, case.length, case.groups, case.d_state),
    ]
    if case.initial:
        made.append(normal(torch.float32, case.batch, n_heads, case.head_dim, case.d_state))
    return [t.to(device) for t in made]


def results(case: Case, path: str, device: str = "cpu") -> dict[str, Tensor]:
    """Outputs and gradients of every input."""
    dtype = torch.float64 if path == "naive" else None
    leaves = [t.to(dtype or t.dtype).requires_grad_() for t in tensors(case, device)]
    initial = leaves[5] if case.initial else None
    if path == "naive":
        y, state = ssd_naive(*leaves[:5], initial_state_BHPN=initial)
    else:
        y, state = ssd(
            *leaves[:5],
            chunk=case.chunk,
            initial_state_BHPN=initial,
            return_state=case.return_state,
            kernels=TRITON if path == "triton" else TORCH,
        )
    outputs = {"y": y}
    if case.return_state:
        assert state is not None
        outputs["state"] = state
    else:
        assert path == "naive" or state is None
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, dtype=torch.float64, generator=generator).to(o) for o in outputs.values()]
    grads = torch.autograd.grad(tuple(outputs.values()), leaves, weights)
    names = ("dx", "ddt", "dA", "dB", "dC", "dinitial")
    return outputs | dict(zip(names, grads, strict=False))


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).abs().max() / other.abs().max())


def worst(distances: dict[str, float]) -> float:
    return max(distances.values())


def compared(case: Case, device: str = "cpu") -> dict[str, dict[str, float]]:
    """How far the scan's values and gradients are from the recurrence's in float64, and from PyTorch's path."""
    fused, torch_path, naive = (results(case, path, device) for path in ("triton", "torch", "naive"))
    assert {name: t.dtype for name, t in fused.items()} == {name: t.dtype for name, t in torch_path.items()}
    return {
        "naive": {name: distance(fused[name], naive[name]) for name in naive},
        "torch": {name: distance(fused[name], torch_path[name]) for name in naive},
    }


def one_position(dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, float]:
    """The update kernel of decoding."""
    x, dt, A, B, C, state = tensors(Case(length=1, chunk=64, batch=2, groups=2, initial=True, dtype=dtype), device)
    before = state.clone()
    with torch.no_grad():
        y, after = fused_ssd(x, dt, A, B, C, chunk=64, initial_state_BHPN=state)
    assert torch.equal(state, before)
    assert after is not None
    wanted_y, wanted = ssd_naive(*(t.double() for t in (x, dt, A, B, C)), initial_state_BHPN=state.double())
    return {"y": distance(y, wanted_y), "state": distance(after, wanted)}


def gradients_of_the_future(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    case = Case(length=40, chunk=16, initial=True, dtype=dtype)
    leaves = [t.requires_grad_() for t in tensors(case, device)]
    y, _ = ssd(*leaves[:5], chunk=16, initial_state_BHPN=leaves[5], kernels=TRITON)
    grads = torch.autograd.grad(y[:, 20].sum(), (leaves[0], leaves[1], leaves[3], leaves[4]))
    return max(float(g[:, 21:].abs().max()) for g in grads)


def mixer() -> dict[str, float]:
    """A Mamba-2 mixer of either path: outputs, gradients of all parameters, and decoding in pieces."""
    spec = Mamba2Spec(
        d_ssm=24,
        head_dim=6,
        d_state=5,
        n_groups=2,
        d_conv=4,
        a_init_min=0.01,
        a_init_max=2.0,
        dt_init_min=0.001,
        dt_init_max=0.1,
    )
    x = torch.randn(2, 21, 12, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(2, 21, 12, generator=torch.Generator().manual_seed(3))
    made: list[tuple[Tensor, ...]] = []
    for kernels in (TRITON, TORCH):
        module = Mamba2(spec, 12, norm_eps=1e-5, ssd_chunk=8, kernels=kernels)
        module.init_weights(Initializer(module, 1, std=0.5, residual_std=0.5))
        y = module(x)
        grads = torch.autograd.grad((y * weights).sum(), list(module.parameters()))
        pieces: list[Tensor] = []
        state = module.init_state(2, 21, torch.device("cpu"), torch.float32)
        with torch.no_grad():
            for piece in x.split((1, 9, 1, 10), dim=1):
                stepped, state = module.step(piece, state)
                pieces.append(stepped)
        made.append((y, torch.cat(pieces, dim=1), *grads))
    names = ("forward", "step", *(name for name, _ in module.named_parameters()))
    return {name: distance(one, other) for name, one, other in zip(names, *made, strict=True)}


def main() -> None:
    # What the kernels' launchers ask of CUDA, and the interpreter has no use for.
    torch.cuda.device = lambda _index: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda _device: SimpleNamespace(multi_processor_count=1)
    # Interpreted products are float32's own; on a GPU this setting would let them be TF32.
    torch.set_float32_matmul_precision("high")
    measured = {
        "cases": {name: compared(case) for name, case in CASES.items()},
        "one_position": one_position(),
        "gradients_of_the_future": gradients_of_the_future(),
        "mixer": mixer(),
        "left_imported": "mamba_ssm" in sys.modules,
    }
    print(json.dumps(measured))


# --- the tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict:
    missing = [name for name in ("triton", "mamba_ssm", "einops") if find_spec(name) is None]
    if missing:
        message = f"not installed: {', '.join(missing)} (make install-triton)"
        if os.environ.get(REQUIRE):
            pytest.fail(f"{REQUIRE} is set and this is {message}")
        pytest.skip(message)
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "MAMBA_DETERMINISTIC": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_triton_scan_equals_the_recurrence_and_pytorchs_path_in_values_and_gradients(name: str, measured: dict) -> None:
    got = measured["cases"][name]
    assert worst(got["naive"]) < CASES[name].tolerance, got["naive"]
    # Were nothing different, the same path would have been taken twice.
    assert 0 < worst(got["torch"]) < CASES[name].torch_tolerance, got["torch"]


def test_update_of_one_position_equals_the_recurrence_and_leaves_the_given_state(measured: dict) -> None:
    assert worst(measured["one_position"]) < 1e-6, measured["one_position"]


def test_gradients_of_later_inputs_are_exactly_zero(measured: dict) -> None:
    assert measured["gradients_of_the_future"] == 0.0


def test_mixer_with_the_scan_equals_the_mixer_with_pytorchs_path(measured: dict) -> None:
    assert 0 < worst(measured["mixer"]) < 2e-5, measured["mixer"]


def test_no_half_of_the_package_stays_imported(measured: dict) -> None:
    assert measured["left_imported"] is False


if __name__ == "__main__":
    main()

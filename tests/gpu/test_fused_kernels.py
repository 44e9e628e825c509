"""The fused kernels on a GPU: the contracts of the operations and of every mixer, with the packages that are installed.

Against float64 or PyTorch's own path on the same device; where a kernel is not installed, PyTorch's stands in for it.
"""

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.mixers import Mixer
from hybrid.mixers.attention import Attention
from hybrid.mixers.diff_attention import DiffAttention
from hybrid.mixers.mamba2 import Mamba2
from hybrid.model import LanguageModel
from hybrid.ops.attention import attention
from hybrid.ops.conv import causal_conv, causal_conv_silu
from hybrid.ops.kernels import TORCH, Kernels, select
from hybrid.ops.window import attention_naive
from hybrid.spec import BlockSpec, ConfigError, MixerSpec, ModelSpec, SwigluSpec, WindowSpec
from tests.contract import test_mixers as contract
from tests.hybrid import test_fused_ssd_interpreted as scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Inductor's advice on cards that have TF32, which float32 here does without on purpose.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]

DEVICE = "cuda"
# Rounding of products: eight bits of mantissa in bfloat16, eleven in TF32 and in float16, which interpreted stays
# below 1e-3.
SCAN_TOLERANCE = {torch.float32: 3e-3, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def fused() -> Kernels:
    """What `exec.kernels=fused` takes on this machine."""
    try:
        return select("fused", torch.device(DEVICE))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _own_compilations() -> None:
    # FlexAttention is compiled for each shape, and PyTorch gives up after eight in a process.
    torch.compiler.reset()


@pytest.fixture
def tf32() -> Any:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(precision)


# --- operations ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("fused", "tf32")
@pytest.mark.parametrize("dtype", SCAN_TOLERANCE)
@pytest.mark.parametrize("name", scan.CASES)
def test_scan_equals_the_recurrence_in_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    got = scan.compared(replace(scan.CASES[name], dtype=dtype), DEVICE)
    assert scan.worst(got["naive"]) < SCAN_TOLERANCE[dtype], got["naive"]
    assert scan.worst(got["torch"]) > 0


@pytest.mark.usefixtures("fused", "tf32")
@pytest.mark.parametrize("dtype", SCAN_TOLERANCE)
def test_scan_of_one_position_equals_the_recurrence(dtype: torch.dtype) -> None:
    got = scan.one_position(dtype, DEVICE)
    assert scan.worst(got) < SCAN_TOLERANCE[dtype], got


@pytest.mark.usefixtures("fused", "tf32")
@pytest.mark.parametrize("dtype", SCAN_TOLERANCE)
def test_scan_gives_later_inputs_gradients_of_exactly_zero(dtype: torch.dtype) -> None:
    assert scan.gradients_of_the_future(dtype, DEVICE) == 0.0


@pytest.mark.parametrize("convolution", [causal_conv, causal_conv_silu])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize(("width", "start"), [(64, 0), (100, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_equals_pytorchs_path(
    convolution: Any, taps: int, width: int, start: int, dtype: torch.dtype, fused: Kernels
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 70, width, generator=generator).to(DEVICE, dtype)
    weight, bias, dy = (
        torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((64, taps), (64,), (2, 70, 64))
    )
    results: list[tuple[Tensor, ...]] = []
    for kernels in (fused, TORCH):
        leaves = tuple(t.clone().requires_grad_() for t in (rows, weight, bias))
        y = convolution(leaves[0][..., start : start + 64], *leaves[1:], kernels=kernels)
        results.append((y, *torch.autograd.grad(y, leaves, dy.to(dtype))))
    # Sums over 140 positions, in float32 in both.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert [scan.distance(one, other) < tolerance for one, other in zip(*results, strict=True)] == [True] * 4


@pytest.mark.parametrize("window", [None, WindowSpec(size=40, sink=0), WindowSpec(size=40, sink=10)])
@pytest.mark.parametrize(("heads", "dims"), [((4, 4, 4), (32, 32)), ((8, 2, 2), (64, 64)), ((8, 2, 4), (72, 128))])
@pytest.mark.parametrize("length", [128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_equals_the_reference_in_values_and_gradients(
    window: WindowSpec | None,
    heads: tuple[int, int, int],
    dims: tuple[int, int],
    length: int,
    dtype: torch.dtype,
    fused: Kernels,
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads[0], dims[0]), (heads[1], dims[0]), (heads[2], dims[1]))
    leaves = [
        torch.randn(2, n, length, dim, generator=generator).to(DEVICE, dtype).requires_grad_() for n, dim in shapes
    ]
    y = attention(*leaves, window=window, kernels=fused)
    dy = torch.randn(y.shape, generator=generator).to(y)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = attention_naive(*exact, window=window)
    got = (y, *torch.autograd.grad(y, leaves, dy))
    expected = (wanted, *torch.autograd.grad(wanted, exact, dy.double()))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    distances = [scan.distance(one, other) for one, other in zip(got, expected, strict=True)]
    assert max(distances) < tolerance, distances


# --- mixers -------------------------------------------------------------------------------------


def widened(spec: Any) -> Any:
    """The same mixer with heads and states eight times as wide, which is what the fused kernels are made for."""
    wide = {"head_dim", "value_head_dim", "d_ssm", "d_state"}
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = widened(value)
        elif field.name in wide and value is not None:
            changes[field.name] = 8 * value
    return replace(spec, **changes)


def built(spec: MixerSpec, kernels: Kernels, dtype: torch.dtype = torch.float32) -> Mixer[Any]:
    mixer = contract.built(spec, dtype).to(DEVICE)
    for module in mixer.modules():
        if isinstance(module, Attention | DiffAttention | Mamba2):
            module.kernels = kernels
    return mixer


def inputs(length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return contract.inputs(length, dtype).to(DEVICE)


def outputs_and_gradients(
    spec: MixerSpec, kernels: Kernels, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, all gradients, and what they are gradients of; bfloat16 is float32 under autocast."""
    autocast = dtype == torch.bfloat16
    of_weights = torch.float32 if autocast else dtype
    mixer, x = built(spec, kernels, of_weights), inputs(150, of_weights).requires_grad_()
    leaves = contract.leaves_of(mixer, x)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
        y = mixer(x).double()
    return y.detach(), contract.gradients(y, leaves), leaves


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


every_mixer = pytest.mark.parametrize(
    "spec", [widened(spec) for spec in contract.SPECS.values()], ids=contract.SPECS.keys()
)


@every_mixer
# In bfloat16 the products inside the scan are bfloat16's here, and float32's on PyTorch's path.
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_mixer_is_as_near_to_float64_as_pytorchs_path_in_values_and_gradients(
    spec: MixerSpec, dtype: torch.dtype, rounding: float, fused: Kernels
) -> None:
    exact = outputs_and_gradients(spec, TORCH, torch.float64)
    own = outputs_and_gradients(spec, TORCH, dtype)
    got = outputs_and_gradients(spec, fused, dtype)
    wanted, wanted_gradients, leaves = exact
    of_fused, of_torch = (
        {"y": relative(y, wanted), **contract.gradient_distances(grads, wanted_gradients, leaves)}
        for y, grads, _ in (got, own)
    )
    # Where PyTorch's path is as far away as that, it is no measure: one would be compared with another model.
    assert all(distance < 0.3 for distance in of_torch.values()), of_torch
    far = {
        name: (distance, of_torch[name])
        for name, distance in of_fused.items()
        if not distance < 2 * of_torch[name] + rounding
    }
    assert not far


@every_mixer
@pytest.mark.parametrize("autocast", [False, True])
def test_step_over_a_partition_equals_forward(spec: MixerSpec, autocast: bool, fused: Kernels) -> None:
    mixer, x = built(spec, fused), inputs(150)
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
        got = contract.stepped(mixer, x, [100, 1, 1, 41, 7], 160)
        whole = mixer(x)
    assert relative(got.float(), whole.float()) < (0.05 if autocast else 1e-4)


@every_mixer
def test_gradients_of_future_inputs_are_exactly_zero(spec: MixerSpec, fused: Kernels) -> None:
    mixer, x = built(spec, fused), inputs(150).requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        (dx,) = torch.autograd.grad(mixer(x)[:, 70].float().sum(), x)
    assert dx[:, 71:].abs().max() == 0
    assert dx[:, 70].abs().max() > 0


# --- a model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_hybrid_model_trains_as_with_pytorchs_path(activation_checkpointing: bool, fused: Kernels) -> None:
    mixers = (
        "mamba2",
        "window_3_1",
        "attention_grouped",
        "intra_group_none_diff_separate_separate",
        "diff_mamba_output",
    )
    spec = ModelSpec(
        d_model=64,
        vocab_size=50,
        tie_embeddings=True,
        norm_eps=1e-5,
        init_std=0.1,
        blocks=tuple(BlockSpec(mixer=widened(contract.SPECS[name]), ffn=SwigluSpec(d_ffn=96)) for name in mixers),
    )
    tokens = torch.randint(50, (4, 129), generator=torch.Generator().manual_seed(5)).to(DEVICE)
    losses: list[list[float]] = []
    for kernels in (fused, TORCH):
        model = LanguageModel(spec, kernels=kernels, activation_checkpointing=activation_checkpointing)
        model.init_weights(seed=1)
        model.to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses.append([])
        for _ in range(20):
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                logits = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0] - 0.5
    assert losses[0] == pytest.approx(losses[1], abs=0.05)

"""Which kernels `exec.kernels` gives on which device, with which packages installed."""

import subprocess
import sys

import pytest
import torch

from hybrid.ops import kernels as kernels_module
from hybrid.ops.kernels import TORCH, Kernels, select
from hybrid.spec import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SCAN = {"mamba_ssm", "triton", "einops"}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """`install("triton")`: what seems to be installed, and nothing else."""

    def only(*names: str) -> None:
        monkeypatch.setattr(kernels_module, "_installed", lambda name: name in names)

    return only


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_torch_is_plain_pytorch_everywhere(device: torch.device, install) -> None:
    install(*SCAN)
    assert select("torch", device) == TORCH


def test_auto_on_the_cpu_is_plain_pytorch(install) -> None:
    install(*SCAN)
    assert select("auto", CPU) == TORCH


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ((), TORCH),
        (("triton",), Kernels(ssd="torch", conv="torch", attention="sdpa", window="flex")),
        ((*SCAN,), Kernels(ssd="triton", conv="torch", attention="sdpa", window="flex")),
        (("mamba_ssm", "triton"), Kernels(ssd="torch", conv="torch", attention="sdpa", window="flex")),
        (
            ("causal_conv1d", "causal_conv1d_cuda"),
            Kernels(ssd="torch", conv="causal_conv1d", attention="sdpa", window="blocked"),
        ),
        (
            ("flash_attn", "flash_attn_2_cuda"),
            Kernels(ssd="torch", conv="torch", attention="flash_attn", window="blocked"),
        ),
        # Sources without their compiled part; flash_attn without it is also what flash-attn-4 installs.
        (("causal_conv1d", "flash_attn"), TORCH),
    ],
)
def test_auto_on_a_gpu_takes_each_kernel_that_is_installed(
    installed: tuple[str, ...], expected: Kernels, install
) -> None:
    install(*installed)
    assert select("auto", CUDA) == expected


def test_fused_takes_the_scan_and_what_else_is_installed(install) -> None:
    install(*SCAN)
    assert select("fused", CUDA) == select("auto", CUDA)
    install(*SCAN, "flash_attn", "flash_attn_2_cuda", "causal_conv1d", "causal_conv1d_cuda")
    assert select("fused", CUDA) == Kernels(ssd="triton", conv="causal_conv1d", attention="flash_attn", window="flex")


def test_fused_without_a_gpu_is_refused(install) -> None:
    install(*SCAN)
    with pytest.raises(ConfigError, match=r"exec\.kernels = fused: .*CUDA device.*exec\.device is cpu.*install-cuda"):
        select("fused", CPU)


def test_fused_without_its_packages_is_refused_by_name(install) -> None:
    install("triton")
    with pytest.raises(ConfigError) as refused:
        select("fused", CUDA)
    assert "packages that are not installed: mamba_ssm, einops;" in str(refused.value)
    assert "make install-cuda" in str(refused.value)
    assert "CUDA device" not in str(refused.value)


def test_everything_that_is_missing_is_said_at_once(install) -> None:
    install()
    with pytest.raises(ConfigError) as refused:
        select("fused", CPU)
    assert "CUDA device" in str(refused.value)
    assert "not installed: mamba_ssm, triton, einops" in str(refused.value)


def test_selecting_imports_no_kernel_package() -> None:
    code = (
        "import sys, torch; from hybrid.ops.kernels import select; from hybrid.ops import attention, conv, ssd;"
        "select('auto', torch.device('cuda'));"
        "print([name for name in ('triton', 'mamba_ssm', 'flash_attn', 'causal_conv1d', 'torch._dynamo')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

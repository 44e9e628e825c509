"""The formulas of hybrid/cost.py beside the modules that they describe, and beside torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybrid.cost import block_state_bytes, full_block_forward_flops, run_cost
from hybrid.mixers import state_bytes
from hybrid.model import LanguageModel
from hybrid.spec import Mamba2Spec

SCALES = ["toy", "100m", "350m", "1b", "3b"]
MODELS = ["llama", "mamba", "inter"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("model", MODELS)
def test_parameters_equal_the_modules_exactly(resolve, scale: str, model: str) -> None:
    run = resolve(f"scale={scale}", f"model={model}").run
    with torch.device("meta"):
        module = LanguageModel(run.model)
    cost = run_cost(run)
    assert sum(p.numel() for p in module.parameters()) == cost.total_params
    assert cost.total_params == cost.embedding_params + cost.head_params + cost.non_embedding_params


def test_an_untied_head_is_counted_once_more(resolve) -> None:
    run = resolve("model.tie_embeddings=false").run
    with torch.device("meta"):
        module = LanguageModel(run.model)
    assert sum(p.numel() for p in module.parameters()) == run_cost(run).total_params


@pytest.mark.parametrize("length", [32, 64, 512])
@pytest.mark.parametrize("scale", ["toy", "100m", "1b"])
@pytest.mark.parametrize("model", MODELS)
def test_full_flops_equal_an_independent_counter(resolve, scale: str, model: str, length: int) -> None:
    """At chunk 64 and without a causal discount.

    Torch's counter is told of the in-place product that it does not know, and does not see the convolution, which is
    elementwise in our code.
    """
    run = resolve(f"scale={scale}", f"model={model}", f"seq_len={length}", "batch_tokens=2048").run
    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * a[2] * b[2]}
    with torch.device("meta"):
        module = LanguageModel(run.model, ssd_chunk=64)
        tokens = torch.zeros((1, length), dtype=torch.long)
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.no_grad():
            module(tokens)
    convolutions = sum(
        length * 2 * m.d_conv * (m.d_ssm + 2 * m.n_groups * m.d_state)
        for m in (block.mixer for block in run.model.blocks)
        if isinstance(m, Mamba2Spec)
    )
    head = 2 * length * run.model.d_model * run.model.vocab_size
    ours = head + sum(full_block_forward_flops(block, run.model.d_model, length) for block in run.model.blocks)
    assert counter.get_total_flops() + convolutions == ours
    assert run_cost(run).full_train_flops_per_sample == 3 * ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("model", MODELS)
def test_state_bytes_equal_what_is_allocated(resolve, model: str, dtype: torch.dtype) -> None:
    run = resolve(f"model={model}", "model.depth=3").run
    state = LanguageModel(run.model).to(dtype).init_state(2, 100, dtype)
    held = sum(state_bytes(mixer) for mixer in state.mixers)
    assert held == 2 * sum(block_state_bytes(block, 100, dtype.itemsize) for block in run.model.blocks)

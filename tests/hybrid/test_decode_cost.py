"""What a decoding step costs, beside the modules' own step and state."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybrid import outside
from hybrid.config import read_config
from hybrid.cost import convolution_flops, model_state_bytes, parts, run_cost
from hybrid.decode_cost import (
    A100_80GB_SXM,
    H100_SXM,
    H200_SXM,
    DecodeCost,
    DeviceSpec,
    decode_cost,
    expected_experts,
    roofline,
)
from hybrid.mixers import state_bytes
from hybrid.model import LanguageModel
from hybrid.spec import BlockSpec, ModelSpec, MoeSpec, OutsideSpec
from sweeps.compose import Composer

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
MORE = {
    "a convolution on q, k, v": ("model=llama", "model.attention.qkv_conv=4", "model.depth=2"),
    "a bare convolution": ("model.pattern=C A", "model.ratio=null", "model.placement=null", "model.depth=2"),
    "a shared value": ("model=intra", "model.intra.value=shared", "model.intra.output=joint", "model.depth=3"),
    "a gate": ("model=intra", "model.intra.scalar=gate", "model.depth=3"),
}
Compose = Callable[..., ModelSpec]


@pytest.fixture(scope="module")
def toy() -> Iterator[Compose]:
    """A model at the toy scale, composed once."""
    with Composer() as composer:
        yield cache(
            lambda *overrides: (
                read_config(composer.compose(["scale=toy", *overrides]), stdlib_fingerprint=lambda: "0" * 16).run.model
            )
        )


def counted_step(model: ModelSpec, batch: int, length: int) -> int:
    """The step at position `length` on the meta device, as torch's counter sees it; convolutions and outer products."""
    with torch.device("meta"), torch.no_grad():
        module = LanguageModel(model)
        state = module.init_state(batch, length)
        _, state = module.step(torch.zeros((batch, length - 1), dtype=torch.long), state)
        with FlopCounterMode(display=False) as counter:
            module.step(torch.zeros((batch, 1), dtype=torch.long), state)
    made = [parts(block.mixer, model.d_model) for block in model.blocks]
    elementwise = sum(map(convolution_flops, made))
    elementwise += sum(2 * m.d_ssm * m.d_state for one in made for m in one.scans)  # (dt x) B^T, added to the state
    return counter.get_total_flops() + batch * elementwise


@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_flops_of_a_step_equal_the_counter(toy: Compose, name: str) -> None:
    model = toy(*MORE.get(name, (f"model={name}",)))
    for batch, length in ((1, 9), (3, 40)):
        cost = decode_cost(model, batch=batch, length=length, element_bytes=2)
        assert counted_step(model, batch, length) == cost.full_flops


@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_bytes_of_a_step_are_those_of_the_modules_states(toy: Compose, name: str) -> None:
    """Keys and values are read once by each block that sees them, recurrent states read and written."""
    model = toy(*MORE.get(name, (f"model={name}",)))
    module = LanguageModel(model).to(torch.bfloat16)
    module.init_weights(1)
    with torch.no_grad():
        state = module.init_state(2, 40)
    kv = recurrent = written = lent = 0
    for block, mixer in zip(model.blocks, state.mixers, strict=True):
        (softmax,) = parts(block.mixer, model.d_model).softmaxes or (None,)
        held = state_bytes(mixer)
        keys_and_values = 0
        if softmax is not None:
            own = 2 * 2 * softmax.d_kv * softmax.visible(model.meta_tokens + 40)
            keys_and_values = lent = lent if softmax.borrowed else own
            written += 0 if softmax.borrowed else 2 * 2 * softmax.d_kv
            held -= 0 if softmax.borrowed else own
        kv += keys_and_values
        recurrent += held
    cost = decode_cost(model, batch=2, length=40, element_bytes=2)
    assert cost.kv_bytes == kv + written
    assert cost.state_bytes == 2 * recurrent


def test_without_borrowers_what_is_read_is_what_is_held(toy: Compose) -> None:
    model = toy("model=inter")
    softmaxes = [softmax for block in model.blocks for softmax in parts(block.mixer, model.d_model).softmaxes]
    written = 2 * sum(softmax.d_kv for softmax in softmaxes)
    cost = decode_cost(model, batch=1, length=99, element_bytes=2)
    assert cost.kv_bytes - written + cost.state_bytes // 2 == model_state_bytes(model, 99, 2)


def test_weights_are_read_once_for_the_batch_and_of_the_embedding_its_rows(resolve: Any) -> None:
    run = resolve("scale=toy", "model=inter").run
    params, d = run_cost(run).total_params, run.model.d_model
    for batch in (1, 8):
        cost = decode_cost(run.model, batch=batch, length=5, element_bytes=2)
        untied = decode_cost(replace(run.model, tie_embeddings=False), batch=batch, length=5, element_bytes=2)
        assert cost.weight_bytes == untied.weight_bytes == 2 * (params + batch * d)


def test_a_tied_block_is_read_at_each_of_its_places(toy: Compose) -> None:
    model = toy("model=zamba2")
    untied = replace(model, blocks=tuple(replace(block, tie=None) for block in model.blocks))
    one, other = (decode_cost(m, batch=1, length=9, element_bytes=2) for m in (model, untied))
    assert one == other


def test_of_experts_those_that_the_batch_is_sent_to_are_read(resolve: Any) -> None:
    run = resolve("scale=toy", "model=llama", "model.moe.every=1").run
    cost, d = run_cost(run), run.model.d_model
    embedding = run.model.vocab_size * d
    one = decode_cost(run.model, batch=1, length=9, element_bytes=2)
    assert one.weight_bytes == 2 * (cost.active_params + embedding + d)
    many = decode_cost(run.model, batch=1000, length=9, element_bytes=2)
    assert many.weight_bytes == 2 * (cost.total_params + 1000 * d)


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 1), (6, 2), (3, 3)])
def test_expected_experts_are_those_of_independent_tokens(n_experts: int, top_k: int) -> None:
    """Over all ways in which two tokens can be sent."""
    moe = MoeSpec(d_ffn=1, n_experts=n_experts, top_k=top_k, n_shared=0, bias_step=0.0)
    assert expected_experts(moe, 1) == top_k
    overlap = top_k * top_k / n_experts
    assert float(expected_experts(moe, 2)) == pytest.approx(2 * top_k - overlap)


def test_a_window_costs_what_its_width_does_however_long_the_sequence(toy: Compose) -> None:
    model = toy("model=swa", "model.ratio=0:1", "model.depth=2")
    at = [decode_cost(model, batch=2, length=length, element_bytes=2) for length in (18, 1000, 100_000)]
    assert at[0] == at[1] == at[2]


OUTSIDE = """
from hybrid.outside import OutsideMixer

class Mixer(OutsideMixer):
    name, version = "for_decode_cost", 1

    def params(self, settings, d_model):
        return 11 * d_model

    def forward_flops(self, settings, d_model, seq_len):
        return 7 * d_model * seq_len

    def state_bytes(self, settings, d_model, seq_len, element_bytes):
        return 3 * element_bytes * d_model

    def build(self, settings, d_model):
        raise NotImplementedError
"""


def test_an_outside_mixer_costs_one_positions_forward_and_its_state_read_and_written(
    toy: Compose, tmp_path: Path
) -> None:
    path = tmp_path / "mixer.py"
    path.write_text(OUTSIDE)
    outside.load([str(path)])
    block = BlockSpec(mixer=OutsideSpec(name="for_decode_cost", version=1, settings=()), ffn=None)
    model = replace(toy("model=llama"), blocks=(block,))
    empty = replace(model, blocks=())
    cost, rest = (decode_cost(m, batch=4, length=9, element_bytes=2) for m in (model, empty))
    d = model.d_model
    assert cost.full_flops - rest.full_flops == 4 * 7 * d
    assert cost.weight_bytes - rest.weight_bytes == 2 * (11 * d + d)
    assert (cost.kv_bytes, cost.state_bytes) == (0, 4 * 2 * 3 * 2 * d)


def test_the_roofline_is_the_slower_of_operations_and_bytes() -> None:
    device = DeviceSpec(
        name="a device", reported_names=(), flops_per_s=1e12, bytes_per_s=1e9, memory_bytes=10**9, dtype="bfloat16"
    )
    cost = DecodeCost(full_flops=4 * 10**12, weight_bytes=10**9, kv_bytes=10**9, state_bytes=10**9)
    line = roofline(cost, device)
    assert (line.compute_s, line.memory_s, line.time_s) == (4.0, 3.0, 4.0)
    assert cost.moved_bytes == 3 * 10**9


def test_decoding_is_bound_by_memory_on_every_device_and_long_attention_by_its_cache(resolve: Any) -> None:
    """At the batch of 4 of arXiv 2510.04800v3, Table 13: at 32K tokens Llama's step takes longer than Mamba's."""
    models = {name: resolve("scale=1b", f"model={name}").run.model for name in ("llama", "mamba", "inter", "swa")}
    for device in (A100_80GB_SXM, H100_SXM, H200_SXM):
        lines = {
            name: roofline(decode_cost(model, batch=4, length=32768, element_bytes=2), device)
            for name, model in models.items()
        }
        assert all(line.time_s == line.memory_s > line.compute_s for line in lines.values())
        assert lines["llama"].time_s > 2 * lines["mamba"].time_s
        assert lines["mamba"].time_s < lines["inter"].time_s < lines["llama"].time_s


def test_h200_reads_llama_1b_at_32k_in_its_bytes_over_its_bandwidth(resolve: Any) -> None:
    model = resolve("scale=1b", "model=llama").run.model
    cost = decode_cost(model, batch=4, length=32768, element_bytes=2)
    kv = 4 * 16 * 2 * 2 * 8 * 64 * (32768 + 1)
    weights = 2 * (run_cost(resolve("scale=1b", "model=llama").run).total_params + 4 * 2048)
    assert (cost.kv_bytes, cost.weight_bytes, cost.state_bytes) == (kv, weights, 0)
    assert math.isclose(roofline(cost, H200_SXM).time_s, (kv + weights) / 4.8e12)

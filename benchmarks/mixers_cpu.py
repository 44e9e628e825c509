"""Time of one layer, forward and backward, on one CPU thread: ours beside transformers' own at the same shape.

    python benchmarks/mixers_cpu.py [--seconds 6] [--only window] [--profile]

Every row is one process and one thread, in which ours and theirs take turns, so that a slow moment of the machine meets
both; times are CPU time. Ratio: their median over ours, and the quartiles of the ratio in single rounds. Where theirs
has a choice (chunk of the scan, how experts are multiplied) the fastest of its forms is the one compared with. Its
masks and rotary tables, which its models make once for all layers, are made beforehand. Exits with 1 if ours is slower
in three rounds of four.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here needs the network

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1ForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRotaryEmbedding
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMLP

from hybrid.ffn import build_ffn
from hybrid.init import Initializer
from hybrid.mixers import build_mixer
from hybrid.spec import (
    AttentionSpec,
    DiffAttentionSpec,
    FfnSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    MoeSpec,
    Relu2Spec,
    RopeSpec,
    SwigluSpec,
    WindowSpec,
)

BATCH = 2
D_MODEL = 256
D_FFN = 768
N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 64
ROPE = RopeSpec(theta=10_000.0, scaling=None)

Layer = Callable[[Tensor], Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: our spec, and theirs as named forms of the same layer, with the module that holds their weights."""

    name: str
    shape: str
    seq_len: int
    ours: MixerSpec | FfnSpec
    theirs: dict[str, tuple[nn.Module, Layer]] = field(default_factory=dict)


def attention_config(kind: type[Any], **fields: Any) -> Any:
    config = kind(
        hidden_size=D_MODEL,
        head_dim=fields.pop("head_dim", HEAD_DIM),
        num_hidden_layers=1,
        num_attention_heads=fields.pop("n_heads", N_HEADS),
        num_key_value_heads=fields.pop("n_kv_heads", N_KV_HEADS),
        rope_parameters={"rope_type": "default", "rope_theta": ROPE.theta},
        **fields,
    )
    config._attn_implementation = "sdpa"
    return config


def rotary_tables(config: Any, seq_len: int) -> Any:
    return LlamaRotaryEmbedding(config)(torch.empty(1, seq_len, D_MODEL), torch.arange(seq_len).unsqueeze(0))


def attention_spec(window: WindowSpec | None = None) -> AttentionSpec:
    return AttentionSpec(n_heads=N_HEADS, n_kv_heads=N_KV_HEADS, head_dim=HEAD_DIM, rope=ROPE, window=window)


def mamba2_spec(*, d_ssm: int, gate_norm: Any = "rms") -> Mamba2Spec:
    return Mamba2Spec(
        d_ssm=d_ssm,
        head_dim=64,
        d_state=64,
        n_groups=1,
        d_conv=4,
        a_init_min=0.01,
        a_init_max=2.0,
        dt_init_min=0.001,
        dt_init_max=0.1,
        gate_norm=gate_norm,
    )


def attention(seq_len: int) -> Case:
    config = attention_config(transformers.LlamaConfig)
    module, tables = LlamaAttention(config, 0), rotary_tables(config, seq_len)
    return Case(
        name="attention",
        shape=f"{N_HEADS}/{N_KV_HEADS} heads, L {seq_len}",
        seq_len=seq_len,
        ours=attention_spec(),
        theirs={"Llama": (module, lambda x: module(x, position_embeddings=tables, attention_mask=None)[0])},
    )


def window(seq_len: int, size: int) -> Case:
    config = attention_config(transformers.MistralConfig, sliding_window=size)
    module, tables = MistralAttention(config, 0), rotary_tables(config, seq_len)
    mask = create_sliding_window_causal_mask(
        config=config,
        inputs_embeds=torch.empty(BATCH, seq_len, D_MODEL),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(seq_len).unsqueeze(0),
    )
    assert mask is not None
    return Case(
        name="window",
        shape=f"{N_HEADS}/{N_KV_HEADS} heads, W {size}, L {seq_len} = {seq_len / size:g} W",
        seq_len=seq_len,
        ours=attention_spec(WindowSpec(size=size, sink=0)),
        theirs={"Mistral": (module, lambda x: module(x, position_embeddings=tables, attention_mask=mask)[0])},
    )


def diff_attention(seq_len: int, n_kv_heads: int) -> Case:
    config = attention_config(transformers.DiffLlamaConfig, n_heads=8, n_kv_heads=n_kv_heads, head_dim=32)
    module, tables = DiffLlamaAttention(config, 0), rotary_tables(config, seq_len)
    spec = DiffAttentionSpec(
        n_heads=4, n_kv_heads=n_kv_heads // 2, head_dim=32, rope=ROPE, depth=1, norm="head", fusion="diff"
    )
    return Case(
        name="diff_attention",
        shape=f"4/{n_kv_heads // 2} pairs, L {seq_len}",
        seq_len=seq_len,
        ours=spec,
        theirs={"DiffLlama": (module, lambda x: module(x, position_embeddings=tables, attention_mask=None)[0])},
    )


def mamba2(seq_len: int) -> Case:
    config = transformers.Mamba2Config(
        hidden_size=D_MODEL, num_hidden_layers=1, num_heads=8, head_dim=64, state_size=64, n_groups=1
    )
    module = Mamba2Mixer(config, 0)

    def form(chunk: int) -> Layer:
        def run(x_BLD: Tensor) -> Any:
            module.chunk_size = chunk
            return module(x_BLD)

        return run

    return Case(
        name="mamba2",
        shape=f"d_ssm 512, d_state 64, L {seq_len}",
        seq_len=seq_len,
        ours=mamba2_spec(d_ssm=2 * D_MODEL),
        theirs={f"Mamba2, chunk {chunk}": (module, form(chunk)) for chunk in (256, 64)},
    )


def intra(seq_len: int) -> Case:
    """Falcon-H1's two modules and their sum, without its ffn."""
    config = transformers.FalconH1Config(
        vocab_size=8,
        pad_token_id=None,
        hidden_size=D_MODEL,
        intermediate_size=D_FFN,
        num_hidden_layers=1,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        mamba_d_ssm=D_MODEL,
        mamba_n_heads=4,
        mamba_d_state=64,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE.theta},
    )
    layer: Any = FalconH1ForCausalLM(config).model.layers[0]
    modules, tables = nn.ModuleList((layer.mamba, layer.self_attn)), rotary_tables(config, seq_len)

    def form(chunk: int) -> Layer:
        def run(x_BLD: Tensor) -> Any:
            layer.mamba.chunk_size = chunk
            mamba_BLD = layer.mamba(x_BLD) * layer.ssm_out_multiplier
            attention_BLD, _ = layer.self_attn(
                x_BLD * layer.attention_in_multiplier, position_embeddings=tables, attention_mask=None
            )
            return mamba_BLD + attention_BLD * layer.attn_out_multiplier

        return run

    spec = IntraSpec(
        attention=attention_spec(),
        mamba=mamba2_spec(d_ssm=D_MODEL, gate_norm="none"),
        norm="none",
        scalar="none",
        fusion="add",
        value="separate",
        output="separate",
        lambda_depth=None,
        attention_multiplier=1.0,
        mamba_multiplier=1.0,
    )
    return Case(
        name="intra",
        shape=f"{N_HEADS}/{N_KV_HEADS} heads, d_ssm 256, d_state 64, L {seq_len}",
        seq_len=seq_len,
        ours=spec,
        theirs={f"Falcon-H1, chunk {chunk}": (modules, form(chunk)) for chunk in (256, 64)},
    )


def moe(seq_len: int, n_experts: int, top_k: int) -> Case:
    config = transformers.DeepseekV3Config(
        hidden_size=D_MODEL,
        moe_intermediate_size=D_FFN // 2,
        n_routed_experts=n_experts,
        n_shared_experts=1,
        num_experts_per_tok=top_k,
        norm_topk_prob=top_k > 1,
        routed_scaling_factor=1.0,
        n_group=1,
        topk_group=1,
    )
    module = DeepseekV3MoE(config)
    for parameter in (module.gate.weight, module.experts.gate_up_proj, module.experts.down_proj):
        nn.init.normal_(parameter, std=0.02)

    def form(implementation: str) -> Layer:
        def run(x_BLD: Tensor) -> Any:
            config._experts_implementation_internal = implementation
            return module(x_BLD)

        return run

    return Case(
        name="moe",
        shape=f"{top_k} of {n_experts} + 1 shared, d_ffn {D_FFN // 2}, L {seq_len}",
        seq_len=seq_len,
        ours=MoeSpec(d_ffn=D_FFN // 2, n_experts=n_experts, top_k=top_k, n_shared=1, bias_step=1e-3),
        theirs={f"DeepSeek-V3, {name}": (module, form(name)) for name in ("eager", "grouped_mm")},
    )


def swiglu(seq_len: int) -> Case:
    module = LlamaMLP(transformers.LlamaConfig(hidden_size=D_MODEL, intermediate_size=D_FFN))
    return Case(
        name="swiglu",
        shape=f"d_ffn {D_FFN}, L {seq_len}",
        seq_len=seq_len,
        ours=SwigluSpec(d_ffn=D_FFN),
        theirs={"Llama": (module, module)},
    )


def relu2(seq_len: int) -> Case:
    module = NemotronHMLP(transformers.NemotronHConfig(hidden_size=D_MODEL, intermediate_size=D_FFN))
    return Case(
        name="relu2",
        shape=f"d_ffn {D_FFN}, L {seq_len}",
        seq_len=seq_len,
        ours=Relu2Spec(d_ffn=D_FFN),
        theirs={"Nemotron-H": (module, module)},
    )


CASES: dict[str, list[Callable[[], Case]]] = {
    "attention": [lambda: attention(512), lambda: attention(2048)],
    "window": [
        lambda: window(512, 128),
        lambda: window(2048, 512),
        lambda: window(2048, 128),
    ],
    "diff_attention": [
        lambda: diff_attention(512, 8),
        lambda: diff_attention(2048, 8),
        lambda: diff_attention(2048, 4),
    ],
    "mamba2": [lambda: mamba2(512), lambda: mamba2(2048)],
    "intra": [lambda: intra(512), lambda: intra(2048)],
    "moe": [lambda: moe(512, 8, 1), lambda: moe(2048, 8, 1), lambda: moe(2048, 32, 4)],
    "swiglu": [lambda: swiglu(512), lambda: swiglu(2048)],
    "relu2": [lambda: relu2(512), lambda: relu2(2048)],
}


def our_layer(spec: MixerSpec | FfnSpec) -> tuple[nn.Module, Layer]:
    module: Any
    if isinstance(spec, FfnSpec):
        module = build_ffn(spec, D_MODEL)
    else:
        module = build_mixer(spec, D_MODEL, norm_eps=1e-5, ssd_chunk=64)
    module.init_weights(Initializer(module, seed=1, std=0.02, residual_std=0.02))
    return module, (lambda x_BLD: module(x_BLD)[0]) if isinstance(spec, MoeSpec) else module


def tasks(case: Case) -> Iterator[tuple[str, Callable[[], None]]]:
    x_BLD = torch.randn(BATCH, case.seq_len, D_MODEL, requires_grad=True)
    dy_BLD = torch.randn(BATCH, case.seq_len, D_MODEL)
    for name, (module, layer) in {"ours": our_layer(case.ours), **case.theirs}.items():
        wanted = (x_BLD, *module.parameters())

        def run(layer: Layer = layer, wanted: tuple[Tensor, ...] = wanted) -> None:
            torch.autograd.grad(layer(x_BLD), wanted, dy_BLD)

        yield name, run


def interleaved_ms(tasks: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """CPU milliseconds of each task in every round, until the time is up; one round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    end = time.perf_counter() + seconds
    for n_rounds in range(sys.maxsize):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            times[name].append(1e3 * (time.process_time() - start))
        if n_rounds >= 5 and time.perf_counter() > end:
            break
    return {name: values[1:] for name, values in times.items()}


def row(case: Case, seconds: float) -> tuple[str, bool]:
    """The row, and whether ours is slower in three rounds of four."""
    n_ours = sum(parameter.numel() for parameter in our_layer(case.ours)[0].parameters())
    for module, _ in case.theirs.values():
        # Ours has a weight in one norm where DiffLlama has none.
        n_theirs = sum(parameter.numel() for parameter in module.parameters())
        assert abs(n_ours - n_theirs) < D_MODEL, f"{case.name}: {n_ours} parameters, theirs {n_theirs}"
    times = interleaved_ms(dict(tasks(case)), seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    theirs = min(case.theirs, key=medians.__getitem__)
    rounds = [a / b for a, b in zip(times[theirs], times["ours"], strict=True)]
    low, _, high = statistics.quantiles(rounds, n=4)
    cells = (case.name, case.shape, theirs, f"{medians[theirs]:.1f}", f"{medians['ours']:.1f}")
    ratio = medians[theirs] / medians["ours"]
    return f"| {' | '.join(cells)} | {ratio:.2f} | {low:.2f} to {high:.2f} |", high < 1.0


def profile(case: Case) -> None:
    for name, task in tasks(case):
        task()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as result:
            for _ in range(10):
                task()
        print(f"\n{case.name}, {case.shape}: {name}, ten times")
        print(result.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=48))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each row of the table")
    parser.add_argument("--only", choices=list(CASES), action="append", help="rows of one name")
    parser.add_argument("--profile", action="store_true", help="show where the time of each goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    slower: list[str] = []
    print("| layer | shape | theirs | theirs, ms | ours, ms | ratio | quartiles |\n|---|---|---|---|---|---|---|")
    for name in arguments.only or CASES:
        for build in CASES[name]:
            case = build()
            line, is_slower = row(case, arguments.seconds)
            print(line, flush=True)
            if is_slower:
                slower.append(f"{case.name}, {case.shape}")
            if arguments.profile:
                profile(case)
    if slower:
        print(f"slower than transformers: {'; '.join(slower)}")
    return bool(slower)


if __name__ == "__main__":
    sys.exit(main())

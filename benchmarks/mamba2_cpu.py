"""Time of one Mamba-2 mixer, forward and backward, and of a step of the demo's toy model, on one CPU thread.

    python benchmarks/mamba2_cpu.py [--seconds 20] [--profile]

The comparison is the same mixer with the scan of Dao & Gu 2024, Listing 1 (einsums, a decay matrix per head,
a matrix of decays between chunks), `conv1d` and autograd. The two take turns in one process, so that a slow moment
of the machine meets both.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.init import Initializer
from hybrid.mixers.mamba2 import Mamba2
from hybrid.model import LanguageModel, scored_loss
from hybrid.ops.conv import causal_conv_silu_naive
from hybrid.spec import AttentionSpec, BlockSpec, Mamba2Spec, ModelSpec, RopeSpec

BATCH = 2
LAYER_SHAPES = ((256, 64, 512), (256, 64, 2048), (512, 128, 2048))
"""(d_model, d_state, seq_len)."""


def mamba2_spec(*, d_ssm: int, head_dim: int, d_state: int) -> Mamba2Spec:
    return Mamba2Spec(
        d_ssm=d_ssm,
        head_dim=head_dim,
        d_state=d_state,
        n_groups=1,
        d_conv=4,
        a_init_min=0.01,
        a_init_max=2.0,
        dt_init_min=0.001,
        dt_init_max=0.1,
    )


def segment_sums(a: Tensor) -> Tensor:
    """(..., L) to (..., L, L): sums of a over (j, i], -inf for j > i."""
    length = a.shape[-1]
    expanded = a.unsqueeze(-1).expand(*a.shape, length)
    below = torch.ones(length, length, dtype=torch.bool).tril(-1)
    keep = torch.ones(length, length, dtype=torch.bool).tril()
    return expanded.masked_fill(~below, 0).cumsum(-2).masked_fill(~keep, -torch.inf)


def einsum_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """The textbook form; x (b, l, h, p), B and C (b, l, n)."""
    batch, _, n_heads, head_dim = x.shape
    U = (x * dt.unsqueeze(-1)).view(batch, -1, chunk, n_heads, head_dim)
    a = (dt * A).view(batch, -1, chunk, n_heads).permute(0, 3, 1, 2)
    B, C = (t.reshape(batch, -1, chunk, t.shape[-1]) for t in (B, C))
    cum = a.cumsum(-1)
    diagonal = torch.einsum("bcln,bcsn,bhcls,bcshp->bclhp", C, B, segment_sums(a).exp(), U)
    states = torch.einsum("bcln,bhcl,bclhp->bchpn", B, (cum[..., -1:] - cum).exp(), U)
    states = torch.cat((torch.zeros_like(states[:, :1]), states), dim=1)
    between = segment_sums(F.pad(cum[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    return (diagonal + torch.einsum("bcln,bchpn,bhcl->bclhp", C, states, cum.exp())).reshape(x.shape)


def einsum_forward(mixer: Mamba2, x_BLD: Tensor) -> Tensor:
    spec = mixer.spec
    z, xBC, dt = mixer.in_proj(x_BLD).split((spec.d_ssm, mixer.d_conv_channels, spec.n_heads), dim=-1)
    xBC = causal_conv_silu_naive(xBC, mixer.conv_weight, mixer.conv_bias)
    x, B, C = xBC.split((spec.d_ssm, spec.d_state, spec.d_state), dim=-1)
    x = x.unflatten(-1, (spec.n_heads, spec.head_dim))
    y = einsum_scan(x, F.softplus(dt + mixer.dt_bias), -mixer.A_log.exp(), B, C, mixer.ssd_chunk)
    y = (y + x * mixer.D.unsqueeze(-1)).flatten(2) * F.silu(z)
    out: Tensor = mixer.out_proj(F.rms_norm(y, (spec.d_ssm,), mixer.norm.weight, mixer.norm.eps))
    return out


def interleaved_medians(tasks: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each task, all of them in turn until the time is up; one round is not counted."""
    for task in tasks.values():
        task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(tasks))]) < 3:
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def layer_row(d_model: int, d_state: int, seq_len: int, seconds: float) -> str:
    mixer = Mamba2(mamba2_spec(d_ssm=2 * d_model, head_dim=64, d_state=d_state), d_model, norm_eps=1e-5, ssd_chunk=64)
    mixer.init_weights(Initializer(mixer, seed=1, std=0.02, residual_std=0.02))
    x_BLD = torch.randn(BATCH, seq_len, d_model, requires_grad=True)
    dy_BLD = torch.randn(BATCH, seq_len, d_model)
    wanted = (x_BLD, *mixer.parameters())

    def ours() -> None:
        torch.autograd.grad(mixer(x_BLD), wanted, dy_BLD)

    def einsum() -> None:
        torch.autograd.grad(einsum_forward(mixer, x_BLD), wanted, dy_BLD)

    torch.testing.assert_close(mixer(x_BLD), einsum_forward(mixer, x_BLD), rtol=1e-3, atol=1e-4)
    medians = interleaved_medians({"ours": ours, "einsum": einsum}, seconds)
    ratio = medians["einsum"] / medians["ours"]
    shape = f"{d_model}, {d_state}, {seq_len}"
    return f"| {shape} | {medians['einsum']:.1f} | {medians['ours']:.1f} | {ratio:.2f} |"


def toy_step(head_dim: int) -> Callable[[], None]:
    """One training step of Mamba, attention, Mamba at d_model 64, vocabulary 64, 32 sequences of 32."""
    rope = RopeSpec(theta=10_000.0, scaling=None)
    mamba = BlockSpec(mixer=mamba2_spec(d_ssm=128, head_dim=head_dim, d_state=8), ffn=None)
    attention = BlockSpec(mixer=AttentionSpec(n_heads=4, n_kv_heads=4, head_dim=16, rope=rope), ffn=None)
    spec = ModelSpec(
        d_model=64,
        vocab_size=64,
        tie_embeddings=True,
        norm_eps=1e-5,
        init_std=0.02,
        blocks=(mamba, attention, mamba),
    )
    model = LanguageModel(spec)
    model.init_weights(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    tokens_BL = torch.randint(64, (32, 32))
    scored_BL = torch.zeros(32, 32, dtype=torch.bool)
    scored_BL[:, -4:] = True
    targets_S = torch.randint(64, (32 * 4,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss, n_scored, _ = scored_loss(model(tokens_BL, scored_BL), targets_S)
        (loss / n_scored).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each row of the table")
    parser.add_argument("--profile", action="store_true", help="show where the toy step's time goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.seconds > 0:
        print("| d_model, d_state, L | einsum form, ms | ours, ms | ratio |\n|---|---|---|---|")
        for shape in LAYER_SHAPES:
            print(layer_row(*shape, arguments.seconds), flush=True)
    steps = {"head_dim 16": toy_step(16), "head_dim 32": toy_step(32)}
    medians_ms = interleaved_medians(steps, max(arguments.seconds, 3.0))
    print("toy training step:", ", ".join(f"{name} {ms:.1f} ms" for name, ms in medians_ms.items()))
    if arguments.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(20):
                steps["head_dim 16"]()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=40))


if __name__ == "__main__":
    main()

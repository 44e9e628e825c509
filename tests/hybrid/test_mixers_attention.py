"""Attention, differential attention and the short convolution against their formulas, one position after the other."""

import cmath
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.init import Initializer
from hybrid.mixers import Attention, DiffAttention, Mixer, ShortConv, build_mixer
from hybrid.ops.conv import causal_conv_naive
from hybrid.ops.rope import rope_frequencies
from hybrid.spec import AttentionSpec, DiffAttentionSpec, RopeSpec, ShortConvSpec, WindowSpec

CPU = torch.device("cpu")
D_MODEL = 10
LENGTH = 7
EPS = 1e-3
ROPE = RopeSpec(theta=100.0, scaling=None)
PLAIN = AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=4, rope=ROPE)
DIFF = DiffAttentionSpec(n_heads=4, n_kv_heads=2, head_dim=4, rope=ROPE, depth=3, norm="head", fusion="diff")
ATTENTIONS = {
    "plain": PLAIN,
    "nope": replace(PLAIN, rope=None),
    "scale": replace(PLAIN, softmax_scale=0.2),
    "wide_values": replace(PLAIN, value_head_dim=6),
    "more_values": replace(PLAIN, n_kv_heads=1, n_value_heads=2),
    "window": replace(PLAIN, window=WindowSpec(size=2, sink=1)),
    "convolution": replace(PLAIN, qkv_conv=3),
    "all": AttentionSpec(
        n_heads=6,
        n_kv_heads=1,
        head_dim=4,
        rope=ROPE,
        window=WindowSpec(size=3, sink=1),
        value_head_dim=5,
        n_value_heads=3,
        qkv_conv=2,
        softmax_scale=0.3,
    ),
}


def moved(mixer: Mixer, seed: int = 1) -> Mixer:
    """In float64, every parameter at random."""
    mixer.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return mixer


def inputs(length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, length, D_MODEL, dtype=torch.float64, generator=generator).requires_grad_()


def assert_same(mixer: Mixer, got: Tensor, expected: Tensor, x: Tensor) -> None:
    """Equal outputs, and equal gradients of the input and of every parameter."""
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    dy = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(4))
    leaves = (x, *parameters)
    grads = torch.autograd.grad(got, leaves, dy), torch.autograd.grad(expected, leaves, dy)
    for name, one, other in zip(("x", *names), *grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def turned(vector: Tensor, position: int) -> Tensor:
    """The rotary embedding of one head at one position, as a product of complex numbers. Tables are float32."""
    half = vector.shape[-1] // 2
    turns = [cmath.exp(1j * position * float(f)) for f in rope_frequencies(ROPE, vector.shape[-1])]
    turn = torch.tensor(turns, dtype=torch.complex64).to(torch.complex128)
    rotated = torch.complex(vector[..., :half], vector[..., half:]) * turn
    return torch.cat((rotated.real, rotated.imag), dim=-1)


def softmax_rows(q: Tensor, k: Tensor, *, scale: float, window: WindowSpec | None, rope: RopeSpec | None) -> Tensor:
    """The softmax map of one head, (B, L, L), one row after the other: q and k (B, L, P) are not yet turned."""
    rows: list[Tensor] = []
    length = q.shape[1]
    for i in range(length):
        seen = [j for j in range(i + 1) if window is None or j > i - window.size or j < window.sink]
        query = q[:, i] if rope is None else turned(q[:, i], i)
        keys = torch.stack([k[:, j] if rope is None else turned(k[:, j], j) for j in seen], dim=1)
        weights = (scale * torch.einsum("bp,bjp->bj", query, keys)).softmax(-1)
        rows.append(torch.zeros(q.shape[0], length, dtype=q.dtype).index_copy(1, torch.tensor(seen), weights))
    return torch.stack(rows, dim=1)


def attention_by_formula(mixer: Attention, x: Tensor) -> Tensor:
    spec = mixer.spec
    weights = dict(mixer.named_parameters())
    qkv = x @ weights["qkv_proj.weight"].T
    if spec.qkv_conv is not None:
        qkv = causal_conv_naive(qkv, weights["conv_weight"], weights["conv_bias"])
    q, k, v = qkv.split((spec.d_qk, spec.n_kv_heads * spec.head_dim, spec.n_v_heads * spec.v_head_dim), dim=-1)
    scale = 1 / math.sqrt(spec.head_dim) if spec.softmax_scale is None else spec.softmax_scale
    heads: list[Tensor] = []
    for h in range(spec.n_heads):
        key_head, value_head = h // (spec.n_heads // spec.n_kv_heads), h // (spec.n_heads // spec.n_v_heads)
        q_h = q[..., h * spec.head_dim : (h + 1) * spec.head_dim]
        k_h = k[..., key_head * spec.head_dim : (key_head + 1) * spec.head_dim]
        v_h = v[..., value_head * spec.v_head_dim : (value_head + 1) * spec.v_head_dim]
        heads.append(softmax_rows(q_h, k_h, scale=scale, window=spec.window, rope=spec.rope) @ v_h)
    return torch.cat(heads, dim=-1) @ weights["out_proj.weight"].T


def diff_attention_by_formula(mixer: DiffAttention, x: Tensor) -> Tensor:
    spec, width = mixer.spec, mixer.spec.head_dim
    weights = dict(mixer.named_parameters())
    d_k = 2 * spec.n_kv_heads * width
    q, k, v = (x @ weights["qkv_proj.weight"].T).split((2 * spec.n_heads * width, d_k, d_k), dim=-1)
    lambda_init = 0.8 - 0.6 * math.exp(-0.3 * (spec.depth - 1))
    first, second = ((weights[f"diff_lambda.q{i}"] * weights[f"diff_lambda.k{i}"]).sum().exp() for i in (1, 2))
    weight = (first - second + lambda_init) * (-1 if spec.fusion == "diff" else 1)
    heads: list[Tensor] = []
    for h in range(spec.n_heads):
        pair = h // (spec.n_heads // spec.n_kv_heads)
        maps = [
            softmax_rows(
                q[..., (2 * h + m) * width : (2 * h + m + 1) * width],
                k[..., (2 * pair + m) * width : (2 * pair + m + 1) * width],
                scale=1 / math.sqrt(width),
                window=None,
                rope=spec.rope,
            )
            for m in range(2)
        ]
        head = (maps[0] + weight * maps[1]) @ v[..., 2 * pair * width : 2 * (pair + 1) * width]
        if spec.norm == "head":
            head = (
                head / (head.square().mean(-1, keepdim=True) + EPS).sqrt() * weights["norm.weight"] * (1 - lambda_init)
            )
        heads.append(head)
    return torch.cat(heads, dim=-1) @ weights["out_proj.weight"].T


@pytest.mark.parametrize("spec", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_attention_equals_its_formula(spec: AttentionSpec) -> None:
    mixer, x = moved(Attention(spec, D_MODEL)), inputs()
    assert isinstance(mixer, Attention)
    assert_same(mixer, mixer(x), attention_by_formula(mixer, x), x)


@pytest.mark.parametrize("norm", ["head", "none"])
@pytest.mark.parametrize("fusion", ["diff", "add"])
@pytest.mark.parametrize("change", [{}, {"rope": None}, {"n_kv_heads": 4}])
def test_diff_attention_equals_its_formula(norm: str, fusion: str, change: dict[str, RopeSpec | int | None]) -> None:
    mixer, x = moved(DiffAttention(replace(DIFF, norm=norm, fusion=fusion, **change), D_MODEL, norm_eps=EPS)), inputs()
    assert isinstance(mixer, DiffAttention)
    assert_same(mixer, mixer(x), diff_attention_by_formula(mixer, x), x)


def test_short_conv_equals_its_formula() -> None:
    mixer, x = moved(ShortConv(ShortConvSpec(d_conv=3), D_MODEL)), inputs()
    weight, bias = (dict(mixer.named_parameters())[name] for name in ("conv_weight", "conv_bias"))
    past = F.pad(x, (0, 0, 2, 0))
    expected = bias + sum(weight[:, tap] * past[:, tap : tap + LENGTH] for tap in range(3))
    assert_same(mixer, mixer(x), expected, x)


def test_a_borrower_attends_with_its_own_queries_to_what_was_lent() -> None:
    spec = ATTENTIONS["all"]
    lender, borrower = moved(Attention(spec, D_MODEL)), moved(Attention(replace(spec, borrows_kv=True), D_MODEL), 2)
    assert isinstance(lender, Attention)
    assert isinstance(borrower, Attention)
    # A lender whose queries and output are the borrower's: fed the lender's keys and values, it is the borrower.
    whole = Attention(spec, D_MODEL).double()
    theirs, ours = dict(borrower.named_parameters()), dict(lender.named_parameters())
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            rows = spec.d_qk if name != "out_proj.weight" else parameter.shape[0]
            parameter.copy_(torch.cat((theirs[name][:rows], ours[name][rows:])))
    x = inputs()
    _, lent = lender.forward_kv(x, None)
    y, used = borrower.forward_kv(x, lent)
    assert used is lent
    torch.testing.assert_close(y, whole(x), rtol=1e-12, atol=1e-12)


def test_a_borrower_without_a_lender_says_so() -> None:
    borrower = moved(Attention(replace(PLAIN, borrows_kv=True), D_MODEL))
    with pytest.raises(ValueError, match="borrows keys and values, and none were lent"):
        borrower(inputs())
    with pytest.raises(ValueError, match="borrows keys and values, and none were lent"):
        borrower.step(inputs(), borrower.init_state(2, 9, CPU, torch.float64))


def test_what_is_lent_to_a_block_with_keys_of_its_own_is_left_alone() -> None:
    mixer = moved(Attention(PLAIN, D_MODEL))
    assert isinstance(mixer, Attention)
    x = inputs()
    _, lent = mixer.forward_kv(x.flip(1), None)
    y, used = mixer.forward_kv(x, lent)
    assert used is not lent
    assert torch.equal(y, mixer(x))


@pytest.mark.parametrize("spec", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_mix_returns_the_heads_and_the_projected_values(spec: AttentionSpec) -> None:
    whole = moved(Attention(spec, D_MODEL))
    heads = Attention(spec, D_MODEL, output=False).double()
    assert isinstance(whole, Attention)
    weights = whole.state_dict()
    out = weights.pop("out_proj.weight")
    heads.load_state_dict(weights)
    x = inputs()
    y, used, values = heads.mix(x)
    assert y.shape == (2, LENGTH, spec.d_v)
    torch.testing.assert_close(y @ out.T, whole(x), rtol=1e-12, atol=1e-12)
    value_rows = weights["qkv_proj.weight"][-spec.n_v_heads * spec.v_head_dim :]
    torch.testing.assert_close(values, x @ value_rows.T, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        stepped, _, seen, values_of_step = heads.step_mix(x, heads.init_state(2, LENGTH, CPU, torch.float64))
    torch.testing.assert_close(stepped, y, rtol=1e-11, atol=1e-11)
    assert torch.equal(values_of_step, values)
    torch.testing.assert_close(seen.k_BJSP, used.k_BJSP, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen.v_BGSV, used.v_BGSV, rtol=1e-12, atol=1e-12)


def test_parameter_names_and_shapes() -> None:
    def shapes(mixer: Mixer) -> dict[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in mixer.named_parameters()}

    assert shapes(Attention(PLAIN, D_MODEL)) == {"qkv_proj.weight": (32, 10), "out_proj.weight": (10, 16)}
    assert shapes(Attention(ATTENTIONS["all"], D_MODEL, output=False)) == {
        "qkv_proj.weight": (24 + 4 + 15, 10),
        "conv_weight": (24 + 4 + 15, 2),
        "conv_bias": (24 + 4 + 15,),
    }
    assert shapes(Attention(replace(ATTENTIONS["all"], borrows_kv=True), D_MODEL)) == {
        "qkv_proj.weight": (24, 10),
        "conv_weight": (24, 2),
        "conv_bias": (24,),
        "out_proj.weight": (10, 30),
    }
    vectors = {f"diff_lambda.{name}": (4,) for name in ("q1", "k1", "q2", "k2")}
    matrices = {"qkv_proj.weight": (64, 10), "out_proj.weight": (10, 32)}
    assert shapes(DiffAttention(DIFF, D_MODEL, norm_eps=EPS)) == {**vectors, **matrices, "norm.weight": (8,)}
    assert shapes(DiffAttention(replace(DIFF, norm="none"), D_MODEL, norm_eps=EPS)) == {**vectors, **matrices}
    assert shapes(ShortConv(ShortConvSpec(d_conv=4), D_MODEL)) == {"conv_weight": (10, 4), "conv_bias": (10,)}


@pytest.mark.parametrize("spec", [replace(PLAIN, qkv_conv=4), ShortConvSpec(d_conv=4)], ids=["attention", "short_conv"])
def test_short_convolutions_start_like_mambas(spec: AttentionSpec | ShortConvSpec) -> None:
    mixer = build_mixer(spec, 400, norm_eps=EPS, ssd_chunk=4)
    mixer.init_weights(Initializer(mixer, 1, std=0.02, residual_std=0.01))
    weights = {name: parameter.detach() for name, parameter in mixer.named_parameters()}
    assert weights["conv_bias"].count_nonzero() == 0
    assert 0.48 < weights["conv_weight"].abs().max() <= 0.5
    assert abs(float(weights["conv_weight"].mean())) < 0.05


@pytest.mark.parametrize(("depth", "lambda_init"), [(1, 0.2), (2, 0.8 - 0.6 * math.exp(-0.3)), (1000, 0.8)])
def test_diff_attention_starts_near_the_lambda_of_its_depth(depth: int, lambda_init: float) -> None:
    mixer = DiffAttention(replace(DIFF, head_dim=64, depth=depth), 400, norm_eps=EPS)
    mixer.init_weights(Initializer(mixer, 1, std=0.02, residual_std=0.01))
    vectors = torch.stack([p.detach() for name, p in mixer.named_parameters() if name.startswith("diff_lambda")])
    assert float(vectors.std()) == pytest.approx(0.1, rel=0.15)
    assert mixer.diff_lambda.init == pytest.approx(lambda_init)
    # exp of a sum of 64 products of normal(0, 0.1) is within a few tenths of one.
    assert float(mixer.diff_lambda().detach()) == pytest.approx(lambda_init, abs=0.4)
    assert mixer.norm is not None
    assert bool((mixer.norm.weight == 1).all())


def test_lambda_is_float32_under_autocast() -> None:
    mixer = moved(DiffAttention(DIFF, D_MODEL, norm_eps=EPS)).float()
    assert isinstance(mixer, DiffAttention)
    plain = mixer.diff_lambda()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixer.diff_lambda(), plain)


@pytest.mark.parametrize(
    "mixer",
    [
        Attention(replace(PLAIN, value_head_dim=8), D_MODEL),
        Attention(replace(PLAIN, window=WindowSpec(size=32, sink=4)), D_MODEL),
        DiffAttention(DIFF, D_MODEL, norm_eps=EPS),
    ],
    ids=["wide_values", "window", "diff"],
)
def test_nothing_of_the_size_of_the_map_is_kept_for_the_backward(mixer: Mixer) -> None:
    moved(mixer)
    length, kept = 256, [0]

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mixer(inputs(length)).sum().backward()
    assert 0 < max(kept) < length * length

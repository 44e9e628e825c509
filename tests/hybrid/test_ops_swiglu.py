"""SwiGLU and the squared ReLU with their own backwards, beside their formulas under autograd."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from hybrid.ops.swiglu import experts_swiglu, experts_swiglu_naive, relu2, relu2_naive, swiglu, swiglu_naive

Form = Callable[[Tensor, Tensor, Tensor], Tensor]

D_MODEL, D_FFN, TOKENS = 12, 32, (2, 9)
COUNTS = [7, 0, 1, 10]


def of_experts(form: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]) -> Form:
    """At 18 tokens, of which one expert has none and one a single one."""
    return lambda x_BLD, gate_up_EGD, down_EDF: form(x_BLD.flatten(0, 1), gate_up_EGD, down_EDF, COUNTS)


FORMS: dict[str, tuple[Form, Form, tuple[int, ...], int]] = {  # ours, the formula, leading dimensions, products
    "swiglu": (swiglu, swiglu_naive, (), 2),
    "experts": (of_experts(experts_swiglu), of_experts(experts_swiglu_naive), (len(COUNTS),), 2),
    "relu2": (relu2, relu2_naive, (), 1),
}
every_form = pytest.mark.parametrize("name", FORMS)


def operands(
    name: str, dtype: torch.dtype = torch.float64, *, tokens: tuple[int, ...] = TOKENS, d_ffn: int = D_FFN
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d_ffn)
    _, _, experts, products = FORMS[name]
    shapes = ((*tokens, D_MODEL), (*experts, products * d_ffn, D_MODEL), (*experts, D_MODEL, d_ffn))
    x, into, down = (torch.randn(s, dtype=torch.float64, generator=generator).to(dtype) for s in shapes)
    return x.requires_grad_(), into.requires_grad_(), down.requires_grad_()


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise_like(y: Tensor) -> Tensor:
    return torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)


def gradients(form: Form, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    y = form(*leaves)
    return torch.autograd.grad(y, leaves, noise_like(y))


def test_the_formulas_are_those_of_their_papers() -> None:
    x, gate_up, down = operands("swiglu")
    gate, up = x @ gate_up[:D_FFN].T, x @ gate_up[D_FFN:].T
    torch.testing.assert_close(swiglu_naive(x, gate_up, down), (gate * torch.sigmoid(gate) * up) @ down.T)
    x, into, down = operands("relu2")
    torch.testing.assert_close(relu2_naive(x, into, down), (x @ into.T).clamp(min=0) ** 2 @ down.T)
    x, gate_up, down = operands("experts")
    each = [
        swiglu_naive(part, gate_up[e], down[e]) for e, part in enumerate(x.flatten(0, 1).split(COUNTS)) if COUNTS[e]
    ]
    assert torch.equal(of_experts(experts_swiglu_naive)(x, gate_up, down), torch.cat(each))


@every_form
@pytest.mark.parametrize("d_ffn", [10, 32, 96])
def test_values_and_gradients_are_those_of_the_formula(name: str, d_ffn: int) -> None:
    ours, formula, _, _ = FORMS[name]
    leaves = operands(name, d_ffn=d_ffn)
    torch.testing.assert_close(ours(*leaves), formula(*leaves), rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(ours, leaves), gradients(formula, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("one_thread")
@every_form
@pytest.mark.parametrize("d_ffn", [10, 16, 32, 48, 96, 256])
def test_values_are_those_of_the_formula_to_the_last_bit_in_float32(name: str, d_ffn: int) -> None:
    ours, formula, _, _ = FORMS[name]
    for tokens in [TOKENS] if name == "experts" else [(1, 1), (1, 5), TOKENS, (3, 65), (2, 513)]:
        leaves = operands(name, torch.float32, tokens=tokens, d_ffn=d_ffn)
        y = ours(*leaves)
        assert torch.equal(y, formula(*leaves))
        with torch.no_grad():
            assert torch.equal(y, ours(*leaves))


@pytest.mark.parametrize("name", ["swiglu", "experts"])
@pytest.mark.parametrize(("d_ffn", "is_own"), [(64, True), (48, False)])
def test_the_own_backward_is_for_widths_of_whole_steps(name: str, d_ffn: int, is_own: bool) -> None:
    """At others the gate's exponential would have other bits in rows of its own."""
    function = FORMS[name][0](*operands(name, d_ffn=d_ffn)).grad_fn
    while function is not None and "View" in function.name():
        function = function.next_functions[0][0]
    assert function is not None
    assert (function.name() == "_SwigluBackward") == is_own


def test_an_expert_without_tokens_has_gradients_of_zero() -> None:
    _, dgate_up, ddown = gradients(FORMS["experts"][0], operands("experts"))
    for gradient in (dgate_up, ddown):
        assert [bool(of_one.any()) for of_one in gradient] == [count > 0 for count in COUNTS]
        assert bool(gradient.isfinite().all())


@every_form
def test_strided_inputs_and_gradients_are_read_as_they_are(name: str) -> None:
    ours, formula, _, _ = FORMS[name]
    x, into, down = operands(name)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert torch.equal(ours(strided, into, down), ours(x, into, down))
    assert ours(strided, into, down).is_contiguous()
    for one, other in zip(
        torch.autograd.grad(ours(strided, into, down).sum(), (strided, into, down)),
        torch.autograd.grad(formula(x, into, down).sum(), (x, into, down)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@every_form
def test_backward_is_the_same_twice_and_deterministic(name: str) -> None:
    ours = FORMS[name][0]
    leaves = operands(name, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        y = ours(*leaves)
        first, again = (torch.autograd.grad(y, leaves, noise_like(y), retain_graph=True) for _ in range(2))
        afresh = gradients(ours, leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    for others in (again, afresh, gradients(ours, leaves)):
        assert all(torch.equal(one, other) for one, other in zip(first, others, strict=True))


@every_form
def test_a_recomputed_forward_gives_the_same_gradients(name: str) -> None:
    ours = FORMS[name][0]
    leaves = operands(name)

    def recomputed(*of: Tensor) -> Tensor:
        y = checkpoint(ours, *of, use_reentrant=False)
        assert isinstance(y, Tensor)
        return y

    assert all(
        torch.equal(one, other)
        for one, other in zip(gradients(recomputed, leaves), gradients(ours, leaves), strict=True)
    )


@every_form
def test_no_more_is_kept_for_backward_than_by_autograd(name: str) -> None:
    def kept_bytes(form: Form) -> int:
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            form(*leaves)
        return sum(storages.values())

    leaves = operands(name, d_ffn=256)
    ours, formula, _, _ = FORMS[name]
    assert kept_bytes(ours) <= kept_bytes(formula)


@every_form
def test_under_autocast_it_is_the_formula(name: str) -> None:
    ours, formula, _, _ = FORMS[name]
    leaves = operands(name, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(*leaves).dtype == torch.bfloat16
        assert torch.equal(ours(*leaves), formula(*leaves))


@every_form
def test_backward_under_autocast_is_that_of_float32(name: str) -> None:
    ours = FORMS[name][0]
    leaves = operands(name, torch.float32)
    y = ours(*leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = torch.autograd.grad(y, leaves, noise_like(y))
    assert all(torch.equal(one, other) for one, other in zip(cast, gradients(ours, leaves), strict=True))


@every_form
def test_bfloat16_is_near_the_float32_result(name: str) -> None:
    ours = FORMS[name][0]
    leaves = operands(name, torch.bfloat16)
    wide = tuple(leaf.detach().float().requires_grad_() for leaf in leaves)
    results = ((ours(*leaves), *gradients(ours, leaves)), (ours(*wide), *gradients(ours, wide)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == torch.bfloat16
        one, other = one.detach().float(), other.detach()
        assert float((one - other).norm() / other.norm()) < 0.02


@every_form
def test_it_has_a_shape_on_the_meta_device(name: str) -> None:
    y = FORMS[name][0](*(leaf.detach().to("meta").requires_grad_() for leaf in operands(name)))
    assert y.is_meta
    assert y.shape[-1] == D_MODEL


def test_no_tokens_are_no_output_and_gradients_of_zero() -> None:
    leaves = operands("swiglu", tokens=(2, 0))
    assert swiglu(*leaves).shape == (2, 0, D_MODEL)
    assert not any(bool(gradient.any()) for gradient in gradients(swiglu, leaves))


def test_silu_is_that_of_pytorch_for_gates_of_any_size() -> None:
    """Far out the gate is 0 or itself, and so are its gradients: nothing overflows."""
    x = torch.tensor([[-1e4], [-90.0], [0.0], [90.0], [1e4]]).requires_grad_()
    gate_up, down = torch.ones(64, 1).requires_grad_(), torch.ones(1, 32).requires_grad_()
    (dx,) = torch.autograd.grad(swiglu(x, gate_up, down).sum(), x)
    wanted = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad((32 * F.silu(wanted) * wanted).sum(), wanted)
    torch.testing.assert_close(dx, expected)

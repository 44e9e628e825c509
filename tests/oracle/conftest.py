"""What the tests against other people's code share: random weights, their copying, the comparison, a table of errors.

Shapes: B batch, L length.
"""

import math
import os
from collections.abc import Callable
from typing import Any, final

# Everything is built from settings in code: a test that asks the network for anything must fail. Read at import.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import Tensor, nn

from hybrid.model import LanguageModel, scored_loss
from hybrid.spec import AdamWSpec
from hybrid.train.optim import build_optimizer, clip_gradients, global_norm, gradients

OUTPUT_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 2e-5
"""Largest difference of two tensors over the largest number of theirs: float32, which they insist on in places."""

TRAJECTORY_TOLERANCE_NATS = 1e-3
TRAJECTORY_STEPS = 200

COLUMNS = ("compared", "parameters", "largest number", "error of outputs", "error of gradients")
TRAJECTORY_COLUMNS = ("trained", "steps", "first loss", "last loss", "largest difference of losses")


@final
class Copy:
    """The weights of another module, or their gradients, turned into ours by name.

    Every parameter of theirs must be taken, or left on purpose, and every one of ours given.
    """

    def __init__(self, theirs: nn.Module, *, gradients: bool) -> None:
        self._gradients = gradients
        self._theirs = {
            name: parameter.grad if gradients else parameter.detach() for name, parameter in theirs.named_parameters()
        }
        self._buffers = dict(theirs.named_buffers())
        self._untaken = set(self._theirs)
        self._fixed: set[str] = set()
        self.ours: dict[str, Tensor] = {}

    @property
    def untaken(self) -> list[str]:
        return sorted(self._untaken)

    def learned(self, ours: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of ours that are parameters of theirs."""
        return {name: parameter for name, parameter in ours.named_parameters() if name not in self._fixed}

    def take(self, name: str) -> Tensor:
        self._untaken.remove(name)
        tensor = self._theirs[name]
        assert tensor is not None, f"{name} has no gradient"
        return tensor

    def leave(self, prefix: str) -> None:
        """Parameters that ours has no place for, on purpose."""
        left = {name for name in self._untaken if name.startswith(prefix)}
        assert left, prefix
        self._untaken -= left

    def give(self, ours: str, *parts: Tensor, times: tuple[float, ...] | None = None) -> None:
        """One of ours: theirs, or several of theirs below each other, each times what it is multiplied by in theirs."""
        if times is not None:
            parts = tuple(p / c if self._gradients else p * c for p, c in zip(parts, times, strict=True))
        self.ours[ours] = torch.cat(parts)

    def same(self, ours: str, theirs: str) -> None:
        self.give(ours, self.take(theirs))

    def fixed(self, ours: str, value: Tensor) -> None:
        """One of ours that is no parameter of theirs, but a constant."""
        self._fixed.add(ours)
        if not self._gradients:
            self.ours[ours] = value

    def buffer(self, ours: str, theirs: str) -> None:
        self.fixed(ours, self._buffers[theirs])

    def attention(self, ours: str, theirs: str) -> None:
        self.give(f"{ours}.qkv_proj.weight", *(self.take(f"{theirs}.{part}_proj.weight") for part in "qkv"))
        self.same(f"{ours}.out_proj.weight", f"{theirs}.o_proj.weight")

    def mamba2(self, ours: str, theirs: str) -> None:
        for name in ("in_proj.weight", "conv_bias", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight"):
            self.same(f"{ours}.{name}", f"{theirs}.{name.replace('conv_', 'conv1d.')}")
        self.give(f"{ours}.conv_weight", self.take(f"{theirs}.conv1d.weight").squeeze(1))

    def swiglu(self, ours: str, theirs: str) -> None:
        gate_up = (self.take(f"{theirs}.{part}_proj.weight") for part in ("gate", "up"))
        self.give(f"{ours}.gate_up_proj.weight", *gate_up)
        self.same(f"{ours}.down_proj.weight", f"{theirs}.down_proj.weight")


Convert = Callable[[Copy], None]


def randomize(module: nn.Module) -> None:
    """Draw every parameter anew, so that no two could be exchanged, and none left out, without being noticed.

    Norms and biases too: at ones and zeros they would hide an error. Mamba's decays and step sizes stay where the state
    remembers tens of positions.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(math.log(0.05), math.log(2.0), generator=generator)
            elif name.endswith("dt_bias"):
                parameter.uniform_(math.log(math.expm1(0.01)), math.log(math.expm1(0.3)), generator=generator)
            elif parameter.ndim >= 2:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.2, generator=generator))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Modules of others are built from the global random state, and `randomize` adds to some of it."""
    torch.manual_seed(0)


@pytest.fixture
def with_equal_weights() -> Callable[[nn.Module, nn.Module, Convert], None]:
    """Draw the weights of theirs, and copy them into ours."""

    def draw_and_copy(theirs: nn.Module, ours: nn.Module, convert: Convert) -> None:
        randomize(theirs)
        copy_weights(theirs, ours, convert)

    return draw_and_copy


def copy_weights(theirs: nn.Module, ours: nn.Module, convert: Convert) -> None:
    copy = Copy(theirs, gradients=False)
    convert(copy)
    assert not copy.untaken
    ours.load_state_dict(copy.ours)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs.detach()).abs().max() / theirs.detach().abs().max())


@pytest.fixture
def same_function(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Their module and ours, with random weights copied: the same outputs, and the same gradients of all weights.

    Unless there are functions that run them, they are language models, and called with the same random tokens, of a
    length that is no multiple of any chunk or window. `prepare` changes the weights of theirs once they are drawn.
    """

    def check(
        label: str,
        theirs: nn.Module,
        ours: nn.Module,
        convert: Convert,
        *,
        run_theirs: Callable[[], Tensor] | None = None,
        run_ours: Callable[[], Tensor] | None = None,
        prepare: Callable[[nn.Module], object] = lambda _: None,
    ) -> None:
        randomize(theirs)
        prepare(theirs)
        copy_weights(theirs, ours, convert)
        if run_theirs is None or run_ours is None:
            vocab_size = theirs.get_input_embeddings().num_embeddings
            tokens_BL = torch.randint(vocab_size, (2, 45), generator=torch.Generator().manual_seed(1))
            run_theirs, run_ours = (lambda: theirs(tokens_BL, use_cache=False).logits), (lambda: ours(tokens_BL))
        their_y, our_y = run_theirs(), run_ours()
        dy = torch.randn(their_y.shape, generator=torch.Generator().manual_seed(2))
        for module, y in ((theirs, their_y), (ours, our_y)):
            module.zero_grad()
            (y * dy).sum().backward()

        wanted = Copy(theirs, gradients=True)
        convert(wanted)
        learned = wanted.learned(ours)
        assert learned.keys() == wanted.ours.keys()
        output_error = relative_error(our_y, their_y)
        errors = {name: relative_error(learned[name].grad, theirs) for name, theirs in wanted.ours.items()}
        worst = max(errors, key=errors.__getitem__)
        n_parameters = sum(parameter.numel() for parameter in ours.parameters())
        numbers = (f"{n_parameters:,}", f"{their_y.abs().max():.2f}", f"{output_error:.1e}", f"{errors[worst]:.1e}")
        record_property("parity", (label, *numbers))
        assert output_error < OUTPUT_TOLERANCE
        assert errors[worst] < GRADIENT_TOLERANCE, worst

    return check


@pytest.fixture
def same_training(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Their model and ours, from the same weights, by 200 steps of AdamW on the same batches: the same losses."""

    def check(label: str, theirs: nn.Module, ours: LanguageModel, convert: Convert) -> None:
        randomize(theirs)
        copy_weights(theirs, ours, convert)
        adamw = AdamWSpec(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0)
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
        for name, parameter in theirs.named_parameters():
            groups[parameter.ndim < 2 or ".conv1d." in name].append(parameter)
        their_optimizer = torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": adamw.weight_decay}, {"params": groups[1], "weight_decay": 0.0}],
            lr=adamw.lr,
            betas=(adamw.beta1, adamw.beta2),
            eps=adamw.eps,
        )
        our_optimizer = build_optimizer(adamw, ours)
        theirs.train(), ours.train()

        generator = torch.Generator().manual_seed(3)
        vocab_size = theirs.get_input_embeddings().num_embeddings
        losses: list[tuple[float, float]] = []
        for _ in range(TRAJECTORY_STEPS):
            tokens_BL = three_ways_on(8, 33, vocab_size, generator)
            their_loss = theirs(tokens_BL, labels=tokens_BL, use_cache=False).loss
            their_loss.backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), adamw.grad_clip)
            their_optimizer.step()
            their_optimizer.zero_grad()

            loss, n_scored, _ = scored_loss(ours(tokens_BL[:, :-1]), tokens_BL[:, 1:])
            our_loss = loss / n_scored
            our_loss.backward()
            grads = gradients(list(ours.parameters()))
            clip_gradients(grads, float(global_norm(grads)), adamw.grad_clip)
            our_optimizer.step()
            our_optimizer.zero_grad()
            losses.append((their_loss.item(), our_loss.item()))

        difference = max(abs(a - b) for a, b in losses)
        numbers = (str(TRAJECTORY_STEPS), f"{losses[0][0]:.4f}", f"{losses[-1][0]:.4f}", f"{difference:.1e}")
        record_property("trajectory", (label, *numbers))
        assert losses[-1][0] < losses[0][0] - 1.0
        assert difference < TRAJECTORY_TOLERANCE_NATS

    return check


def three_ways_on(batch: int, length: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Sequences in which a token has three successors, equally likely."""
    tokens_BL = torch.randint(vocab_size, (batch, length), generator=generator)
    for i in range(1, length):
        step_B = torch.randint(3, (batch,), generator=generator)
        tokens_BL[:, i] = (5 * tokens_BL[:, i - 1] + step_B) % vocab_size
    return tokens_BL


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What all these tests measured, as tables."""
    reports = [report for status in ("passed", "failed") for report in terminalreporter.stats.get(status, [])]
    properties = [item for report in reports for item in report.user_properties]
    for key, columns, title in (
        ("parity", COLUMNS, "largest differences from other people's code, over the largest number"),
        ("trajectory", TRAJECTORY_COLUMNS, "training beside other people's code, losses in nats"),
    ):
        rows = [value for name, value in properties if name == key]
        if rows:
            terminalreporter.section(title)
            for row in (columns, ["---"] * len(columns), *rows):
                terminalreporter.write_line("| " + " | ".join(row) + " |")

"""The language model: embedding, pre-norm residual blocks, final norm, head.

Initial weights: matrices and the embedding normal(0, init_std); the projections that write into the residual
stream normal(0, init_std / sqrt(number of such projections)), so that the stream's variance does not grow with depth
(Radford et al. 2019); norms and D one; convolution weights uniform in +-1/sqrt(d_conv), their biases zero;
A uniform in [a_init_min, a_init_max]; softplus(dt_bias) log-uniform in [dt_init_min, dt_init_max].

Shapes: B batch, L length, D d_model, V vocabulary, S scored positions; "..." any leading shape.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybrid.data.base import NOT_SCORED
from hybrid.ffn import Swiglu
from hybrid.init import Initializer
from hybrid.mixers import build_mixer
from hybrid.norm import RMSNorm
from hybrid.spec import BlockSpec, ModelSpec


@final
@dataclass(frozen=True, kw_only=True)
class ModelState:
    """The mixers' states, in the order of the blocks."""

    mixers: tuple[Any, ...]


@final
class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)) if there is an ffn."""

    def __init__(self, spec: BlockSpec, d_model: int, *, norm_eps: float, ssd_chunk: int) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(d_model, norm_eps)
        self.mixer = build_mixer(spec.mixer, d_model, norm_eps=norm_eps, ssd_chunk=ssd_chunk)
        self.ffn_norm = None if spec.ffn is None else RMSNorm(d_model, norm_eps)
        self.ffn = None if spec.ffn is None else Swiglu(spec.ffn, d_model)

    def init_weights(self, init: Initializer) -> None:
        init.constant(self.mixer_norm.weight, 1.0)
        self.mixer.init_weights(init)
        if self.ffn is not None and self.ffn_norm is not None:
            init.constant(self.ffn_norm.weight, 1.0)
            self.ffn.init_weights(init)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._feed_forward(x_BLD + self.mixer(self.mixer_norm(x_BLD)))

    def step(self, x_BLD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """`forward` on the next positions after `state`."""
        y_BLD, state = self.mixer.step(self.mixer_norm(x_BLD), state)
        return self._feed_forward(x_BLD + y_BLD), state

    def _feed_forward(self, x_BLD: Tensor) -> Tensor:
        if self.ffn is None or self.ffn_norm is None:
            return x_BLD
        y_BLD: Tensor = x_BLD + self.ffn(self.ffn_norm(x_BLD))
        return y_BLD


@final
class LanguageModel(nn.Module):
    """The module of a `ModelSpec`; its parameters are set by `init_weights` or `load_state_dict`, not before.

    There are no buffers, so that a model built on the meta device needs `to_empty` and its parameters, nothing
    else.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        ssd_chunk: int = 64,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Parameter(torch.empty(spec.vocab_size, spec.d_model))
        self.blocks = nn.ModuleList(
            Block(block, spec.d_model, norm_eps=spec.norm_eps, ssd_chunk=ssd_chunk) for block in spec.blocks
        )
        self.final_norm = RMSNorm(spec.d_model, spec.norm_eps)
        self.head = None if spec.tie_embeddings else nn.Parameter(torch.empty(spec.vocab_size, spec.d_model))

    def init_weights(self, seed: int) -> None:
        """Set every parameter as a function of the seed and its name; the global random state stays as it is."""
        residual_writes = sum(1 if block.ffn is None else 2 for block in self.spec.blocks)
        std = self.spec.init_std
        init = Initializer(self, seed, std=std, residual_std=std / math.sqrt(max(residual_writes, 1)))
        init.matrix(self.embedding)
        if self.head is not None:
            init.matrix(self.head)
        init.constant(self.final_norm.weight, 1.0)
        for block in self._blocks():
            block.init_weights(init)

    def forward(self, tokens_BL: Tensor, scored_BL: Tensor | None = None) -> Tensor:
        """Logits at all positions (B, L, V), or (S, V) at those where the mask `scored_BL` is true.

        Where few positions are scored, the mask saves the final norm, the head and the softmax of the others.
        """
        x_BLD = F.embedding(tokens_BL, self.embedding)
        for block in self._blocks():
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, use_reentrant=False)
            else:
                x_BLD = block(x_BLD)
        return self._logits(x_BLD if scored_BL is None else x_BLD[scored_BL])

    def init_state(self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None) -> ModelState:
        """The state before the first position, on the parameters' device, in `dtype` (theirs unless given)."""
        device = self.embedding.device
        dtype = self.embedding.dtype if dtype is None else dtype
        return ModelState(
            mixers=tuple(block.mixer.init_state(batch_size, max_seq_len, device, dtype) for block in self._blocks())
        )

    def step(self, tokens_BL: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Logits (B, L, V) at the next L >= 1 positions, and the state after them; the given state is used up."""
        x_BLD = F.embedding(tokens_BL, self.embedding)
        mixers: list[Any] = []
        for block, before in zip(self._blocks(), state.mixers, strict=True):
            x_BLD, after = block.step(x_BLD, before)
            mixers.append(after)
        return self._logits(x_BLD), ModelState(mixers=tuple(mixers))

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.final_norm(x), self.embedding if self.head is None else self.head)


def scored_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of cross-entropies in nats (float32 at least), scored positions, and how many of those are argmax-correct.

    `logits` (..., V), `targets` (...); targets of `NOT_SCORED` do not count. Scalars, as tensors: nothing waits.
    """
    logits_SV, targets_S = logits.flatten(0, -2), targets.flatten()
    if logits_SV.dtype in (torch.float16, torch.bfloat16):
        logits_SV = logits_SV.float()
    loss = F.cross_entropy(logits_SV, targets_S, ignore_index=NOT_SCORED, reduction="sum")
    with torch.no_grad():
        n_scored = (targets_S != NOT_SCORED).sum()
        # A prediction is a token, so that it never equals NOT_SCORED.
        n_correct = (logits_SV.argmax(-1) == targets_S).sum()
    return loss, n_scored, n_correct

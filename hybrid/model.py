"""The language model: embedding, pre-norm residual blocks, final norm, head.

Initial weights: matrices, the embedding and the meta tokens normal(0, init_std); the projections that write into the
residual stream normal(0, init_std / sqrt(number of mixers and ffns)), so that the stream's variance does not grow with
depth (Radford et al. 2019); norms, scales and D one; convolution weights uniform in +-1/sqrt(d_conv), their biases
zero; the vectors that lambdas are made of normal(0, 0.1); A uniform in [a_init_min, a_init_max]; softplus(dt_bias)
log-uniform in [dt_init_min, dt_init_max].

Shapes: B batch, L length, D d_model, V vocabulary, S scored positions, M meta tokens, N blocks with experts, E routed
experts; "..." any leading shape.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybrid.data.base import NOT_SCORED
from hybrid.ffn import Moe, build_ffn
from hybrid.init import Initializer
from hybrid.linear import product
from hybrid.mixers import KvMixer, build_mixer
from hybrid.mixers.base import KeysValues
from hybrid.norm import RMSNorm
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.spec import AttentionSpec, BlockSpec, IntraSpec, MixerSpec, ModelSpec


@final
@dataclass(frozen=True, kw_only=True)
class ModelState:
    """The mixers' states, in the order of the blocks."""

    mixers: tuple[Any, ...]


@final
class Block(nn.Module):
    """x + r mixer(norm(x)), then x + r ffn(norm(x)) if there is an ffn; r is the model's residual multiplier."""

    def __init__(self, spec: BlockSpec, model: ModelSpec, *, ssd_chunk: int, kernels: Kernels) -> None:
        super().__init__()
        self.residual_multiplier = model.residual_multiplier
        self.mixer_norm = RMSNorm(model.d_model, model.norm_eps)
        self.mixer = build_mixer(
            spec.mixer, model.d_model, norm_eps=model.norm_eps, ssd_chunk=ssd_chunk, kernels=kernels
        )
        self.ffn_norm = None if spec.ffn is None else RMSNorm(model.d_model, model.norm_eps)
        self.ffn = None if spec.ffn is None else build_ffn(spec.ffn, model.d_model)

    def init_weights(self, init: Initializer) -> None:
        init.constant(self.mixer_norm.weight, 1.0)
        self.mixer.init_weights(init)
        if self.ffn is not None and self.ffn_norm is not None:
            init.constant(self.ffn_norm.weight, 1.0)
            self.ffn.init_weights(init)

    def forward(
        self, x_BLD: Tensor, lent: KeysValues | None = None, lends: bool = False
    ) -> tuple[Tensor, KeysValues | None, Tensor | None]:
        """The stream after the block; its keys and values, if it lends them; its experts' loads (E), if it has any.

        All that a caller may want is returned and nothing is counted here: activation checkpointing runs this twice.
        """
        used: KeysValues | None = None
        if isinstance(self.mixer, KvMixer) and (lends or lent is not None):
            y_BLD, used = self.mixer.forward_kv(self.mixer_norm(x_BLD), lent)
        else:
            y_BLD = self.mixer(self.mixer_norm(x_BLD))
        x_BLD, load_E = self._feed_forward(self._add(x_BLD, y_BLD))
        return x_BLD, used if lends else None, load_E

    def step(
        self, x_BLD: Tensor, state: Any, lent: KeysValues | None = None, lends: bool = False
    ) -> tuple[Tensor, Any, KeysValues | None]:
        """`forward` on the next positions after `state`, without loads."""
        used: KeysValues | None = None
        if isinstance(self.mixer, KvMixer) and (lends or lent is not None):
            y_BLD, state, used = self.mixer.step_kv(self.mixer_norm(x_BLD), state, lent)
        else:
            y_BLD, state = self.mixer.step(self.mixer_norm(x_BLD), state)
        x_BLD, _ = self._feed_forward(self._add(x_BLD, y_BLD))
        return x_BLD, state, used if lends else None

    def _feed_forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.ffn is None or self.ffn_norm is None:
            return x_BLD, None
        if isinstance(self.ffn, Moe):
            y_BLD, load_E = self.ffn(self.ffn_norm(x_BLD))
            return self._add(x_BLD, y_BLD), load_E
        return self._add(x_BLD, self.ffn(self.ffn_norm(x_BLD))), None

    def _add(self, x_BLD: Tensor, y_BLD: Tensor) -> Tensor:
        if self.residual_multiplier == 1.0:
            return x_BLD + y_BLD
        return torch.add(x_BLD, y_BLD, alpha=self.residual_multiplier)


@final
class LanguageModel(nn.Module):
    """The module of a `ModelSpec`; its parameters are set by `init_weights` or `load_state_dict`, not before.

    A block is called by the position of its first use, "blocks.3"; tied blocks are one module. A model built on the
    meta device needs `to_empty` and one of those two, nothing else.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        ssd_chunk: int = 64,
        kernels: Kernels = TORCH,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Parameter(torch.empty(spec.vocab_size, spec.d_model))
        self.meta_tokens = nn.Parameter(torch.empty(spec.meta_tokens, spec.d_model)) if spec.meta_tokens else None
        self._names = _block_names(spec.blocks)
        self._lenders = _lenders(spec.blocks)
        self.blocks = nn.ModuleDict(
            {
                name: Block(spec.blocks[int(name)], spec, ssd_chunk=ssd_chunk, kernels=kernels)
                for name in dict.fromkeys(self._names)
            }
        )
        self.final_norm = RMSNorm(spec.d_model, spec.norm_eps)
        self.head = None if spec.tie_embeddings else nn.Parameter(torch.empty(spec.vocab_size, spec.d_model))
        self._loads: dict[str, Tensor] = {}

    def init_weights(self, seed: int) -> None:
        """Set every parameter as a function of the seed and its name; the global random state stays as it is."""
        residual_writes = sum(1 if block.ffn is None else 2 for block in self.spec.blocks)
        std = self.spec.init_std
        init = Initializer(self, seed, std=std, residual_std=std / math.sqrt(max(residual_writes, 1)))
        init.matrix(self.embedding)
        if self.meta_tokens is not None:
            init.matrix(self.meta_tokens)
        if self.head is not None:
            init.matrix(self.head)
        init.constant(self.final_norm.weight, 1.0)
        for name in self.blocks:
            self._block(name).init_weights(init)
        self._loads = {}

    def forward(self, tokens_BL: Tensor, scored_BL: Tensor | None = None) -> Tensor:
        """Logits at all positions (B, L, V), or (S, V) at those where the mask `scored_BL` is true.

        Where few positions are scored, the mask saves the final norm, the head and the softmax of the others. In
        training mode the experts' loads are counted.
        """
        x_BLD = self._embed(tokens_BL)
        if self.meta_tokens is not None:
            x_BLD = torch.cat((self.meta_tokens.expand(len(x_BLD), -1, -1), x_BLD), dim=1)
        lent: KeysValues | None = None
        for i, name in enumerate(self._names):
            arguments = (x_BLD, lent if self._borrows(i) else None, i in self._lenders)
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BLD, used, load_E = checkpoint(self._block(name), *arguments, use_reentrant=False)
            else:
                x_BLD, used, load_E = self._block(name)(*arguments)
            lent = used if i in self._lenders else lent
            if load_E is not None and self.training:
                self._loads[name] = self._loads[name] + load_E if name in self._loads else load_E
        if self.meta_tokens is not None:
            x_BLD = x_BLD[:, self.spec.meta_tokens :]
        return self._logits(x_BLD if scored_BL is None else x_BLD[scored_BL])

    def init_state(self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None) -> ModelState:
        """The state before the first position, on the parameters' device, in `dtype` (theirs unless given).

        With meta tokens it is the state after them: they have gone through the blocks.
        """
        device = self.embedding.device
        dtype = self.embedding.dtype if dtype is None else dtype
        length = self.spec.meta_tokens + max_seq_len
        state = ModelState(
            mixers=tuple(block.mixer.init_state(batch_size, length, device, dtype) for block in self.applied_blocks())
        )
        if self.meta_tokens is not None:
            _, state = self._advance(self.meta_tokens.expand(batch_size, -1, -1), state)
        return state

    def step(self, tokens_BL: Tensor, state: ModelState, *, last_only: bool = False) -> tuple[Tensor, ModelState]:
        """Logits (B, L, V) at the next L >= 1 positions, and the state after them; the given state is used up.

        With `last_only` the logits are those of the last position, (B, 1, V): those of the others are never made.
        """
        x_BLD, state = self._advance(self._embed(tokens_BL), state)
        return self._logits(x_BLD[:, -1:] if last_only else x_BLD), state

    def applied_blocks(self) -> list[Block]:
        """The blocks in the order in which they are applied, tied ones as often as they are."""
        return [self._block(name) for name in self._names]

    def expert_loads(self) -> Tensor:
        """Tokens sent to each routed expert in training mode since the last `balance_experts`: (N, E).

        A row for each set of experts, in the order of their first use; tied blocks have one set, and one row.
        """
        rows = [
            self._loads.get(name, torch.zeros_like(moe.expert_bias)).to(torch.float32)
            for name, moe in self._moes().items()
        ]
        return torch.stack(rows) if rows else self.embedding.new_zeros(0, 0)

    def counted_loads(self) -> list[Tensor]:
        """What `balance_experts` will go by, in the order of `expert_loads`: to be added to, in place, whole numbers.

        Of several ranks that train one batch, each has counted its part.
        """
        return [self._loads[name] for name in self._moes() if name in self._loads]

    def balance_experts(self) -> None:
        """Move the bias of every expert once, by its load, and begin to count anew: after each optimiser step."""
        for name, moe in self._moes().items():
            if name in self._loads:
                moe.balance(self._loads[name])
        self._loads = {}

    def _moes(self) -> dict[str, Moe]:
        ffns = {name: self._block(name).ffn for name in self.blocks}
        return {name: ffn for name, ffn in ffns.items() if isinstance(ffn, Moe)}

    def _block(self, name: str) -> Block:
        block = self.blocks[name]
        assert isinstance(block, Block)
        return block

    def _borrows(self, i: int) -> bool:
        return _borrows_kv(self.spec.blocks[i].mixer)

    def _embed(self, tokens_BL: Tensor) -> Tensor:
        x_BLD = F.embedding(tokens_BL, self.embedding)
        multiplier = self.spec.embedding_multiplier
        return x_BLD if multiplier == 1.0 else x_BLD * multiplier

    def _advance(self, x_BLD: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """The stream after all blocks at the next positions, and the state after them."""
        mixers: list[Any] = []
        lent: KeysValues | None = None
        for i, (block, before) in enumerate(zip(self.applied_blocks(), state.mixers, strict=True)):
            x_BLD, after, used = block.step(x_BLD, before, lent if self._borrows(i) else None, i in self._lenders)
            lent = used if i in self._lenders else lent
            mixers.append(after)
        return x_BLD, ModelState(mixers=tuple(mixers))

    def _logits(self, x: Tensor) -> Tensor:
        x, multiplier = self.final_norm(x), self.spec.logit_multiplier
        # The logits times the multiplier, at the price of d_model products instead of vocab_size.
        x = x if multiplier == 1.0 else x * multiplier
        return product(x, self.embedding if self.head is None else self.head)


def _block_names(blocks: tuple[BlockSpec, ...]) -> tuple[str, ...]:
    """For every position the name of its module: the first position of its tie, or its own."""
    first: dict[str, str] = {}
    return tuple(str(i) if b.tie is None else first.setdefault(b.tie, str(i)) for i, b in enumerate(blocks))


def _lenders(blocks: tuple[BlockSpec, ...]) -> frozenset[int]:
    """The positions whose keys and values a later block borrows."""
    lenders: set[int] = set()
    nearest: int | None = None
    for i, block in enumerate(blocks):
        if _borrows_kv(block.mixer):
            assert nearest is not None, f"blocks.{i} borrows keys and values, and no block before it has any"
            lenders.add(nearest)
        elif isinstance(block.mixer, AttentionSpec | IntraSpec):
            nearest = i
    return frozenset(lenders)


def _borrows_kv(mixer: MixerSpec) -> bool:
    match mixer:
        case AttentionSpec():
            return mixer.borrows_kv
        case IntraSpec():
            return mixer.attention.borrows_kv
        case _:
            return False


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

"""How gated intra-hybrid blocks divide their tokens between attention and Mamba (arXiv 2510.04800, App. Q).

Shapes: B batch, L length, K gated blocks.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from hybrid.data.base import DataSource
from hybrid.evals.nll import autocast
from hybrid.mixers import Intra
from hybrid.model import LanguageModel


@final
@dataclass(frozen=True, kw_only=True)
class ModuleWeights:
    """The gate g of every token in every gated block: attention's weight, Mamba's being 1 - g.

    `blocks` are the positions of the gated blocks, counted from 1: what K counts. Meta tokens are left out.
    """

    blocks: tuple[int, ...]
    weight_KBL: Tensor

    @property
    def mean_KL(self) -> Tensor:
        """The mean over the batch, by block and position."""
        return self.weight_KBL.mean(1)


def module_weights(model: LanguageModel, tokens_BL: Tensor) -> ModuleWeights:
    """Record the gates while the model reads `tokens_BL`, in evaluation mode; its own mode is afterwards as before.

    Float32 at least, on the model's device, under the caller's autocast. Raises ValueError if no block has a gate.
    """
    mixers = [block.mixer for block in model.applied_blocks()]
    gates = {i: m.gate_proj for i, m in enumerate(mixers, 1) if isinstance(m, Intra) and m.gate_proj is not None}
    if not gates:
        raise ValueError("module weights: this model has no intra-hybrid block with scalar = gate")
    recorded: list[Tensor] = []  # a tied block's gate speaks once for each of its positions, in their order

    def record(gate: nn.Module, inputs: Any, weight_BL1: Tensor) -> None:
        del gate, inputs
        recorded.append(weight_BL1.squeeze(-1))

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as hooks:
            for gate in dict.fromkeys(gates.values()):
                hooks.callback(gate.register_forward_hook(record).remove)
            model(tokens_BL, torch.zeros_like(tokens_BL, dtype=torch.bool))  # no logits are wanted
    finally:
        model.train(was_training)
    weight_KBL = torch.stack(recorded)
    return ModuleWeights(blocks=tuple(gates), weight_KBL=weight_KBL[..., model.spec.meta_tokens :])


def mean_module_weights(
    model: LanguageModel, data: DataSource, *, max_examples: int, batch_size: int, dtype: Literal["float32", "bfloat16"]
) -> tuple[tuple[int, ...], Tensor]:
    """The gated blocks, and attention's weight in each (K, L), a mean over the first held-out sequences in float64."""
    device = model.embedding.device
    blocks: tuple[int, ...] = ()
    sum_KL, n_sequences = torch.zeros((), dtype=torch.float64), 0
    for batch in data.validation_batches(batch_size, max_examples):
        with autocast(dtype, device):
            found = module_weights(model, torch.from_numpy(batch.inputs_BL).to(device))
        blocks = found.blocks
        sum_KL = sum_KL + found.weight_KBL.double().sum(1).cpu()
        n_sequences += len(batch.inputs_BL)
    return blocks, sum_KL / n_sequences

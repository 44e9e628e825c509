"""The frozen descriptions of evaluations; torch-free."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from hybrid.decode import canonical_json, digest, encode


@final
@dataclass(frozen=True, kw_only=True)
class NllEvalSpec:
    """Validation loss and accuracy over the first `max_examples` held-out sequences (null: the whole split)."""

    kind: ClassVar[str] = "nll"
    revision: ClassVar[int] = 1

    max_examples: int | None = None


@final
@dataclass(frozen=True, kw_only=True)
class ModuleWeightsEvalSpec:
    """Attention's weight in every gated intra-hybrid block, by position, a mean over held-out sequences."""

    kind: ClassVar[str] = "module_weights"
    revision: ClassVar[int] = 1

    max_examples: int = 64


EvalSpec = NllEvalSpec | ModuleWeightsEvalSpec


def canonical(spec: EvalSpec) -> dict[str, Any]:
    """Plain data: what the canonical JSON says."""
    data: dict[str, Any] = encode(spec)
    return data


def eval_id(spec: EvalSpec) -> str:
    """12 hex digits of the SHA-256 of the canonical JSON."""
    return digest(canonical_json(spec))

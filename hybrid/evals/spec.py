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

    def canonical(self) -> dict[str, Any]:
        """Plain data: what the canonical JSON says."""
        data: dict[str, Any] = encode(self)
        return data

    def eval_id(self) -> str:
        """12 hex digits of the SHA-256 of the canonical JSON."""
        return digest(canonical_json(self))

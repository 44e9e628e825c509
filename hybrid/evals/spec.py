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
        """Plain data: what `eval_id` is the hash of. The revision is written too, from the first on."""
        return {**encode(self), "revision": self.revision}

    def eval_id(self) -> str:
        """12 hex digits of the SHA-256 of the canonical JSON, sorted keys."""
        return digest(canonical_json(self))


EvalSpec = NllEvalSpec

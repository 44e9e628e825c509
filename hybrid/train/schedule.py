"""The learning rate as a function of whole tokens; torch-free."""

from hybrid.spec import TrapezoidSpec


def learning_rate(step: int, *, peak: float, schedule: TrapezoidSpec, train_tokens: int, batch_tokens: int) -> float:
    """The learning rate of update `step`, counted from 0.

    Both ramps count the tokens of the update's own batch: the warmup tokens seen, the cooldown tokens left.

        peak * min(1, seen / warmup_tokens, left / cooldown_tokens)
        seen = (step + 1) * batch_tokens, left = train_tokens - step * batch_tokens

    So with ramps of whole batches the first update has peak * batch_tokens / warmup_tokens and the last of the warmup
    has the peak; the first of the cooldown still has the peak and the last update has
    peak * batch_tokens / cooldown_tokens: zero is what the next one would have, and no batch is trained on in vain.
    Before the cooldown the value does not depend on `train_tokens`, to the last bit: runs that differ only in their
    length share it. A rest of `train_tokens` that does not fill a batch is not trained on and not counted.
    """
    seen = (step + 1) * batch_tokens
    left = (train_tokens // batch_tokens - step) * batch_tokens
    factor = 1.0
    if seen < schedule.warmup_tokens:
        factor = seen / schedule.warmup_tokens
    if left < schedule.cooldown_tokens:
        factor = min(factor, left / schedule.cooldown_tokens)
    return peak * factor

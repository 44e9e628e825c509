"""Whole numbers from budgets: tokens from FLOPs, in whole batches; depth, width and d_ffn from a parameter count."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from hybrid.cost import block_params
from hybrid.layout import Ratio, first_blocks
from hybrid.spec import BlockSpec, ConfigError

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_MOST = 10**30
_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([kmbt]?)", re.IGNORECASE)


def parse_count(value: object, where: str) -> int:
    """Read a count such as 2048, 6e10, "60B", "0.5 M" (K, M, B, T are powers of 1000).

    Raises ConfigError where it is not a positive whole number.
    """
    expected = "a positive whole number such as 2048, 2_097_152, 6e10, 60B or 0.5M"
    number: int | None = None
    match value:
        case bool():
            pass
        case int():
            number = value
        case float() if value.is_integer():
            number = int(Decimal(repr(value)))  # as written: int(1e23) is 99999999999999991611392
        case str():
            found = _NUMBER.fullmatch(value.strip())
            if found:
                exact = Decimal(found[1].replace("_", "")) * _SUFFIX[found[2].lower()]
                if exact < _MOST and exact == exact.to_integral_value():
                    number = int(exact)
        case _:
            pass
    if number is None or not 1 <= number < _MOST:
        raise ConfigError(f"{where} = {shown_count(value)}: expected {expected}")
    return number


def shown_count(value: object) -> str:
    """A count as it may have been typed: 2e+11 and not 200000000000.0; text in quotes."""
    return f"{value:g}" if isinstance(value, float) else repr(value)


def whole_batches(tokens: int, batch_tokens: int) -> int:
    """The nearest whole number of batches, in tokens."""
    return (2 * tokens + batch_tokens) // (2 * batch_tokens) * batch_tokens


def tokens_of_flops(target_flops: Fraction, flops_per_sample: int, seq_len: int, batch_tokens: int) -> int:
    """The whole number of batches, in tokens, whose training FLOPs come nearest to the target; may be 0."""
    return whole_batches(round(target_flops * seq_len / flops_per_sample), batch_tokens)


_COARSE_FROM, _COARSE = 512, 8


def nearest_size(size: int, params_at: Callable[[int], int], target_params: int) -> int:
    """The width, of the scale's `size` and those from half to twice of it, at which `params_at` comes nearest.

    `params_at` must not fall with the width. From 512 on widths are multiples of 8, as tensor cores want them.
    """
    step = _COARSE if size >= _COARSE_FROM else 1
    low, high = max(1, -(-size // (2 * step))), 2 * size // step
    while low < high:
        middle = (low + high) // 2
        if params_at(middle * step) < target_params:
            low = middle + 1
        else:
            high = middle
    below = max(low - 1, max(1, -(-size // (2 * step))))
    return min((below * step, low * step), key=lambda width: abs(params_at(width) - target_params))


def matched_depth(ratio: Ratio, first: BlockSpec, second: BlockSpec, d_model: int, target_params: int) -> int:
    """The depth whose blocks' parameters come nearest to `target_params`.

    With the parameters of the scale's attention blocks as target, this one rule gives every depth of the paper's Tables
    4 and 6 (16, 13, 7+7, 3+10, 2+11 and 1+12 blocks at 1B; 14, 11, 6+6, 3+8, 2+9 and 1+10 at 350M) and of v3's Table
    18 (16, 15, 14 and 13). Of two equally near depths the smaller one is taken. Embeddings do not count.
    """
    per_first, per_second = block_params(first, d_model), block_params(second, d_model)

    def mismatch(depth: int) -> int:
        n_first = first_blocks(ratio, depth)
        return abs(n_first * per_first + (depth - n_first) * per_second - target_params)

    shallowest = 2 if ratio.first and ratio.second else 1
    deepest = max(shallowest, target_params // min(per_first, per_second) + 1)
    return min(range(shallowest, deepest + 1), key=mismatch)


def matched_repeats(pattern: Sequence[BlockSpec], d_model: int, target_params: int) -> int:
    """The depth at which a pattern of blocks, repeated and cut, comes nearest to `target_params`; the smaller of two
    equally near ones. Tied blocks count once; a pattern of nothing else is not repeated."""
    depth, total, best, best_mismatch = 0, 0, 1, -1
    seen: set[str] = set()
    adds = any(block.tie is None for block in pattern)
    while depth == 0 or (total <= target_params and (adds or depth < len(pattern))):
        block = pattern[depth % len(pattern)]
        if block.tie is None or block.tie not in seen:
            total += block_params(block, d_model)
        if block.tie is not None:
            seen.add(block.tie)
        depth += 1
        mismatch = abs(total - target_params)
        if best_mismatch < 0 or mismatch < best_mismatch:
            best, best_mismatch = depth, mismatch
    return best

"""Which questions were answered rightly, as records keep it: a bit for each, in hex."""

from collections.abc import Sequence


def packed(right: Sequence[bool]) -> str:
    """The answers in order, four to a digit, the first in the highest bit; the last digit is filled up with zeros."""
    padded = [*right, *([False] * (-len(right) % 4))]
    return "".join(f"{int(''.join('01'[bit] for bit in padded[i : i + 4]), 2):x}" for i in range(0, len(padded), 4))


def unpacked(text: str, n: int) -> tuple[bool, ...]:
    """The answers to `n` questions. Raises ValueError where the text is not theirs."""
    bits = "".join(f"{int(digit, 16):04b}" for digit in text)
    if len(text) != -(-n // 4) or "1" in bits[n:]:
        raise ValueError(f"answers = {text[:16]!r}: expected those to {n} questions, four to a hex digit")
    return tuple(bit == "1" for bit in bits[:n])

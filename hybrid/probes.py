"""What planning must know of the synthetic probes of MAD (Poli et al. 2024, arXiv 2403.17844): whether one can be laid
out, and how many positions are scored. Loads neither torch nor numpy; the sequences are made in `hybrid.data`.
"""

from dataclasses import replace
from typing import Final, assert_never

from hybrid.corpus import check_needle, check_recall
from hybrid.spec import (
    CompressionSpec,
    ConfigError,
    DataSpec,
    FuzzyRecallSpec,
    InContextRecallSpec,
    MemorisationSpec,
    NeedleSpec,
    ProbeSpec,
    RecallSpec,
    SelectiveCopyingSpec,
)

_MOST_SYMBOLS_OF_A_MOTIF: Final = 8
_MAX_SEED: Final = 2**32 - 1


def check_probe(spec: ProbeSpec, seq_len: int) -> None:
    """Raises ConfigError with every reason why `spec` cannot be laid out in `seq_len` positions."""
    match spec:
        case RecallSpec():
            check_recall(spec, seq_len)
        case NeedleSpec():
            check_needle(spec, seq_len)
        case InContextRecallSpec():
            check_in_context_recall(spec, seq_len)
        case FuzzyRecallSpec():
            check_fuzzy_recall(spec, seq_len)
        case SelectiveCopyingSpec():
            check_selective_copying(spec, seq_len)
        case CompressionSpec():
            check_compression(spec, seq_len)
        case MemorisationSpec():
            check_memorisation(spec, seq_len)
        case _ as never:
            assert_never(never)


def check_in_context_recall(spec: InContextRecallSpec, seq_len: int) -> None:
    """Raises ConfigError for a fraction that is none, too few symbols, and positions that are not two of each pair."""
    problems = _whole_pairs(seq_len, 4, "a pair and one that asks for it")
    if spec.n_noise_symbols < 0:
        problems.append(f"data.n_noise_symbols = {spec.n_noise_symbols}: expected 0 or more")
    elif spec.n_symbols - spec.n_noise_symbols < 2:
        problems.append(
            f"data.n_symbols = {spec.n_symbols}: expected at least {spec.n_noise_symbols + 2}: a key, a value and "
            f"data.n_noise_symbols = {spec.n_noise_symbols}"
        )
    if not 0 <= spec.noise_fraction < 1:
        problems.append(f"data.noise_fraction = {spec.noise_fraction}: expected a number from 0 to below 1")
    elif (spec.noise_fraction > 0) != (spec.n_noise_symbols > 0) and spec.n_noise_symbols >= 0:
        problems.append(
            f"data.noise_fraction, n_noise_symbols = {spec.noise_fraction}, {spec.n_noise_symbols}: expected both "
            "above 0, or both 0"
        )
    _raise(problems)


def check_fuzzy_recall(spec: FuzzyRecallSpec, seq_len: int) -> None:
    """Raises ConfigError for sizes that are none, and too few symbols or positions for the longest pair."""
    problems = [
        f"data.{name} = {size}: expected 1 to {_MOST_SYMBOLS_OF_A_MOTIF}"
        for name, size in (("key_size", spec.key_size), ("value_size", spec.value_size))
        if not 1 <= size <= _MOST_SYMBOLS_OF_A_MOTIF
    ]
    least = 1 + max(2 * spec.key_size, 2 * spec.value_size - 1)
    if not problems and spec.n_symbols < least:
        problems.append(
            f"data.n_symbols = {spec.n_symbols}: expected at least {least}: padding, and halves of "
            f"{spec.key_size} different symbols for a key and {spec.value_size} for a value"
        )
    longest = spec.key_size + spec.value_size
    if not problems and seq_len < 2 * longest:
        problems.append(
            f"seq_len = {seq_len}: expected at least {2 * longest}: {longest} for the longest pair of data.key_size, "
            f"value_size = {spec.key_size}, {spec.value_size}, and as many where it is asked for"
        )
    _raise(problems)


def check_selective_copying(spec: SelectiveCopyingSpec, seq_len: int) -> None:
    """Raises ConfigError for too few symbols, and where not even one blank has a place."""
    problems = []
    if spec.n_symbols < 4:
        problems.append(
            f"data.n_symbols = {spec.n_symbols}: expected at least 4, of which one is blank and one asks for the others"
        )
    if spec.n_copied < 1:
        problems.append(f"data.n_copied = {spec.n_copied}: expected at least 1")
    elif seq_len < 2 * spec.n_copied + 2:
        problems.append(
            f"seq_len = {seq_len}: expected at least {2 * spec.n_copied + 2}, two positions for each of "
            f"data.n_copied = {spec.n_copied} symbols, a blank and what asks for them"
        )
    _raise(problems)


def check_compression(spec: CompressionSpec, seq_len: int) -> None:
    """Raises ConfigError for too few symbols, and where no compression token has a place."""
    problems = []
    if spec.n_symbols < 2:
        problems.append(f"data.n_symbols = {spec.n_symbols}: expected at least 2")
    if spec.n_compressed < 1:
        problems.append(f"data.n_compressed = {spec.n_compressed}: expected at least 1")
    elif seq_len < 2 * spec.n_compressed + 1:
        problems.append(
            f"seq_len = {seq_len}: expected at least {2 * spec.n_compressed + 1}, two positions for each of "
            f"data.n_compressed = {spec.n_compressed} tokens, and the compression token"
        )
    _raise(problems)


def check_memorisation(spec: MemorisationSpec, seq_len: int) -> None:
    """Raises ConfigError for too few symbols, positions that are not two of each fact, and a seed that is none."""
    problems = _whole_pairs(seq_len, 2, "a key and what asks for its value")
    if spec.n_symbols < 5:
        problems.append(
            f"data.n_symbols = {spec.n_symbols}: expected at least 5: two keys, two values and what asks for them"
        )
    if not 0 <= spec.map_seed <= _MAX_SEED:
        problems.append(f"data.map_seed = {spec.map_seed}: expected a whole number from 0 to 2**32 - 1")
    _raise(problems)


def scored_positions(data: DataSpec, seq_len: int) -> int | None:
    """Positions of a training sequence that are scored, at most; None where all are."""
    match data:
        case RecallSpec(n_pairs=n_pairs):
            return n_pairs
        case NeedleSpec(n_needles=n_needles, n_digits=n_digits):
            return n_needles * n_digits
        case InContextRecallSpec(train_on="answers"):
            return seq_len // 2 - 1
        case FuzzyRecallSpec(train_on="answers", value_size=size):
            return seq_len * size // (1 + size)
        case SelectiveCopyingSpec(n_copied=n_copied):
            return n_copied
        case CompressionSpec(n_compressed=n_compressed):
            return n_compressed
        case MemorisationSpec():
            return seq_len // 2
        case _:
            return None


def items_of(spec: ProbeSpec) -> int | None:
    """How many things a sequence has to be remembered for: pairs, needles, symbols; None where its length says it."""
    match spec:
        case RecallSpec():
            return spec.n_pairs
        case NeedleSpec():
            return spec.n_needles
        case SelectiveCopyingSpec():
            return spec.n_copied
        case CompressionSpec():
            return spec.n_compressed
        case InContextRecallSpec() | FuzzyRecallSpec() | MemorisationSpec():
            return None
        case _ as never:
            assert_never(never)


def with_items(spec: ProbeSpec, items: int) -> ProbeSpec:
    """The same task with so many things to remember, among no more symbols.

    Raises ConfigError where `items_of` is None, and where there are no symbols for more.
    """
    match spec:
        case RecallSpec():
            return replace(spec, n_pairs=items)
        case NeedleSpec():
            return replace(spec, n_needles=items)
        case SelectiveCopyingSpec():
            return replace(spec, n_copied=items)
        case CompressionSpec():
            if items > spec.n_compressed:
                raise ConfigError(
                    f"data.n_compressed = {items}: expected at most {spec.n_compressed}, the places that there are "
                    "symbols to ask for"
                )
            return replace(spec, n_compressed=items)
        case InContextRecallSpec() | FuzzyRecallSpec() | MemorisationSpec():
            raise ConfigError(f"data.kind = {spec.kind}: how much there is to remember follows from the length alone")
        case _ as never:
            assert_never(never)


def _whole_pairs(seq_len: int, least: int, what: str) -> list[str]:
    if seq_len >= least and seq_len % 2 == 0:
        return []
    return [f"seq_len = {seq_len}: expected an even number, at least {least}: {what}"]


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)

"""Needles in a haystack over bytes, at toy scale: what is hidden in random letters is asked for at the end.

    input   q w e K41; r t y u A07; i o p ... A07; K41;        without the blanks
    target                                     07   41         scored: the digits of the questions alone

Different capital letters stand for as many needles of `n_digits` random digits, at random places of a haystack of
random small letters; the questions, in random order, are the needles' own words. It is the task of arXiv 2510.04800,
Figure 4, with a prompt that asks for all of several needles: a model that keeps a state of bounded size must keep all
of them, one with a window of bounded length forgets the first. Letter and digits touch, as at this scale a sign between
them keeps attention from being learned (LOG).

Shapes: B sequences, L positions, T = L + 1, N needles, W bytes of each, H bytes of the haystack, C candidates.
"""

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.corpus import check_needle
from hybrid.data.base import NOT_SCORED, Batch
from hybrid.data.synthetic import SyntheticData, parts_of
from hybrid.spec import ConfigError, NeedleSpec

_LETTERS: Final = 26


@final
class NeedleData(SyntheticData):
    """The sequences of a `NeedleSpec`, and prompts that are like them."""

    def __init__(self, spec: NeedleSpec, seq_len: int) -> None:
        """Raises ConfigError if needles and questions do not fit."""
        check_needle(spec, seq_len)
        self._spec = spec
        self._n, self._digits, self._width = spec.n_needles, spec.n_digits, spec.n_digits + 2
        self._seq_len = seq_len
        self._n_filler = seq_len + 1 - 2 * self._n * self._width
        self._parts = (_LETTERS, self._n * self._digits, self._n, self._n, self._n_filler)
        super().__init__(sum(self._parts))

    @property
    def vocab_size(self) -> int:
        return self._spec.vocab_size

    def prompt(self, seed: int, number: int, length: int, depth_percent: int) -> NDArray[np.int64]:
        """A haystack with all needles in it, and one question at its end: (L,), of any length that they fit into.

        The needle that is asked for has so many percent of the letters and other needles before it. What is hidden is
        a function of the seed and the number alone. Raises ConfigError where it does not fit.
        """
        generator, needles = self._hidden(seed, number)
        n_letters = length - 1 - self._n * self._width
        if n_letters < 0:
            raise ConfigError(
                f"eval.needle.lengths = {length}: expected at least {length - n_letters}, what {self._n} needles and a "
                "question take"
            )
        letters = generator.integers(ord("a"), ord("z") + 1, size=n_letters)
        units = [bytes([letter]) for letter in letters.tolist()]
        for needle in needles[1:]:
            units.insert(int(generator.integers(len(units) + 1)), needle)
        units.insert(round(len(units) * depth_percent / 100), needles[0])
        return np.frombuffer(b"".join([*units, needles[0][:1]]), dtype=np.uint8).astype(np.int64)

    def answer(self, seed: int, number: int) -> bytes:
        """The digits that the prompt of this number asks for."""
        return self._hidden(seed, number)[1][0][1:-1]

    def _hidden(self, seed: int, number: int) -> tuple[np.random.Generator, list[bytes]]:
        """The needles of a prompt, the one that is asked for first, and what its haystack is drawn with."""
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
        keys = generator.permutation(_LETTERS)[: self._n]
        digits = generator.integers(10, size=(self._n, self._digits))
        return generator, [
            f"{chr(ord('A') + key)}{''.join(map(str, row))};".encode()
            for key, row in zip(keys.tolist(), digits.tolist(), strict=True)
        ]

    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        n, width, count = self._n, self._width, len(u_BW)
        key_u, digit_u, place_u, order_u, filler_u = parts_of(u_BW, self._parts)

        needle_BNW = np.empty((count, n, width), dtype=np.int64)
        needle_BNW[:, :, 0] = ord("A") + np.argsort(key_u, axis=1)[:, :n]
        needle_BNW[:, :, 1:-1] = ord("0") + (10 * digit_u).astype(np.int64).reshape(count, n, self._digits)
        needle_BNW[:, :, -1] = ord(";")

        # Before which of the letters a needle stands; of several before one, the first drawn is the first.
        place_BN = np.sort((place_u * (self._n_filler + 1)).astype(np.int64), axis=1) + np.arange(n) * width
        haystack = self._n_filler + n * width
        tokens_BT = np.empty((count, self._seq_len + 1), dtype=np.int64)
        is_filler_BH = np.ones((count, haystack), dtype=bool)
        at_BNW = place_BN[:, :, None] + np.arange(width)
        np.put_along_axis(is_filler_BH, at_BNW.reshape(count, -1), False, axis=1)
        tokens_BT[:, :haystack][is_filler_BH] = (ord("a") + (_LETTERS * filler_u).astype(np.int64)).ravel()
        np.put_along_axis(tokens_BT, at_BNW.reshape(count, -1), needle_BNW.reshape(count, -1), axis=1)
        order_BN = np.argsort(order_u, axis=1)
        asked_BNW = np.take_along_axis(needle_BNW, order_BN[:, :, None], axis=1)
        tokens_BT[:, haystack:] = asked_BNW.reshape(count, -1)

        targets_BL = np.full((count, self._seq_len), NOT_SCORED, dtype=np.int64)
        scored_L = np.zeros(self._seq_len, dtype=bool)
        scored_L[haystack - 1 :] = np.tile([False, *[True] * self._digits, False], n)
        targets_BL[:, scored_L] = tokens_BT[:, 1:][:, scored_L]
        return Batch(inputs_BL=tokens_BT[:, :-1], targets_BL=targets_BL)

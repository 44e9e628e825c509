"""A needle in a haystack: a sentence with a number, hidden in a long text and asked for at its end.

    bos  text ... \\nThe special magic Oslo number is: 4071926.\\n ... text  \\nThe special magic Oslo number is:

So in arXiv 2510.04800 (Figure 4): the city is one of many, the number has seven digits, the prompt ends with the
needle's own words, twenty tokens are generated greedily, and the answer is right if the digits are among them. A
prompt's length counts all of its tokens. At a depth of 0% the needle comes before all of the text, at 100% after it.

A trial's city, number and piece of the text are the same at all lengths (which begin at the same place) and depths, so
that what differs between cells is not chance. All prompts of a length are equally long, and are answered in batches.

Shapes: B prompts, L tokens of each.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.data.base import DocumentSource
from hybrid.data.needle import NeedleData
from hybrid.evals.intervals import binomial_interval
from hybrid.evals.nll import autocast
from hybrid.evals.progress import progress
from hybrid.generate import generate
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError

CITIES: Final = (
    *("Accra", "Algiers", "Amman", "Ankara", "Athens", "Baku", "Bangkok", "Beirut", "Belgrade", "Berlin", "Bogota"),
    *(
        "Brussels",
        "Bucharest",
        "Budapest",
        "Cairo",
        "Canberra",
        "Caracas",
        "Chicago",
        "Copenhagen",
        "Dakar",
        "Damascus",
    ),
    *("Delhi", "Dhaka", "Doha", "Dublin", "Geneva", "Hanoi", "Havana", "Helsinki", "Istanbul", "Jakarta", "Kabul"),
    *("Kampala", "Karachi", "Khartoum", "Kyiv", "Lagos", "Lima", "Lisbon", "London", "Luanda", "Madrid", "Manila"),
    *("Melbourne", "Mexico City", "Mumbai", "Nairobi", "Oslo", "Ottawa", "Paris", "Prague", "Quito", "Reykjavik"),
    *("Riga", "Rome", "Santiago", "Seoul", "Shanghai", "Singapore", "Sofia", "Stockholm", "Sydney", "Tehran", "Tokyo"),
    *("Toronto", "Tunis", "Vienna", "Vilnius", "Warsaw", "Washington", "Yerevan", "Zagreb", "Zurich"),
)
_DIGITS: Final = 7


class Needles(ABC):
    """Prompts with something hidden in them, in trials numbered from 0, and what is right to say."""

    @abstractmethod
    def prompt(self, trial: int, length: int, depth_percent: int) -> NDArray[np.int64]:
        """The prompt, (L,). Raises ConfigError where the needle does not fit, or there is too little to hide it in."""

    @abstractmethod
    def is_right(self, trial: int, tokens: NDArray[np.int64]) -> bool:
        """Whether these generated tokens answer the trial's question."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens that the data have; a model may have room for more."""


@final
@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial hides, as tokens, and where in the text its haystacks begin, as a fraction of what there is."""

    needle: NDArray[np.int64]
    question: NDArray[np.int64]
    digits: bytes
    begins: float


@final
class TextNeedles(Needles):
    """The paper's, in any text."""

    def __init__(self, data: DocumentSource, text: NDArray[np.integer], seed: int) -> None:
        self._data, self._text, self._seed = data, text, seed
        self._trials: dict[int, Trial] = {}

    def trial(self, number: int) -> Trial:
        """A function of the seed and the number alone."""
        if number not in self._trials:
            generator = np.random.Generator(np.random.Philox(key=np.array([self._seed, number], dtype=np.uint64)))
            city = CITIES[int(generator.integers(len(CITIES)))]
            digits = str(int(generator.integers(10 ** (_DIGITS - 1), 10**_DIGITS)))
            question = f"\nThe special magic {city} number is:"
            self._trials[number] = Trial(
                needle=self._data.encode(f"{question} {digits}.\n".encode()),
                question=self._data.encode(question.encode()),
                digits=digits.encode(),
                begins=float(generator.random()),
            )
        return self._trials[number]

    def prompt(self, trial: int, length: int, depth_percent: int) -> NDArray[np.int64]:
        hidden, text = self.trial(trial), self._text
        n_hay = length - 1 - len(hidden.needle) - len(hidden.question)
        if n_hay < 1 or n_hay > len(text):
            expected = f"at least {length - n_hay + 1}" if n_hay < 1 else f"at most {len(text) + length - n_hay}"
            why = "the needle and its question take the rest" if n_hay < 1 else f"the haystack has {len(text)} tokens"
            raise ConfigError(f"eval.needle.lengths = {length}: expected {expected}, as {why}")
        # A place that is the same for all lengths, so long as the text goes on behind it.
        first = min(int(hidden.begins * len(text)), len(text) - n_hay)
        hay, cut = text[first : first + n_hay], round(n_hay * depth_percent / 100)
        parts = ([self._data.bos], hay[:cut], hidden.needle, hay[cut:], hidden.question)
        return np.concatenate(parts).astype(np.int64)

    def is_right(self, trial: int, tokens: NDArray[np.int64]) -> bool:
        return self.trial(trial).digits in self._data.decode(tokens)

    @property
    def vocab_size(self) -> int:
        return len(self._data.token_bytes_V)


@final
class LetterNeedles(Needles):
    """The toy's: one of several needles in random letters is asked for, and its digits have to come at once."""

    def __init__(self, data: NeedleData, seed: int) -> None:
        self._data, self._seed = data, seed

    def prompt(self, trial: int, length: int, depth_percent: int) -> NDArray[np.int64]:
        return self._data.prompt(self._seed, trial, length, depth_percent)

    def is_right(self, trial: int, tokens: NDArray[np.int64]) -> bool:
        return tokens.astype(np.uint8).tobytes().startswith(self._data.answer(self._seed, trial))

    @property
    def vocab_size(self) -> int:
        return self._data.vocab_size


@final
@dataclass(frozen=True, kw_only=True)
class NeedleGrid:
    """How many of `trials` needles were found at each depth (rows) and length (columns)."""

    lengths: tuple[int, ...]
    depths_percent: tuple[int, ...]
    trials: int
    found: tuple[tuple[int, ...], ...]

    def metrics(self) -> dict[str, Any]:
        """As a record has it: percentages, with exact binomial 95% intervals."""
        n_found, n = sum(map(sum, self.found)), self.trials * len(self.lengths) * len(self.depths_percent)
        intervals = [[binomial_interval(k, self.trials) for k in row] for row in self.found]
        return {
            "lengths": list(self.lengths),
            "depths_percent": list(self.depths_percent),
            "trials": self.trials,
            "found": [list(row) for row in self.found],
            "accuracy_percent": [[100 * k / self.trials for k in row] for row in self.found],
            "accuracy_percent_low": [[100 * low for low, _ in row] for row in intervals],
            "accuracy_percent_high": [[100 * high for _, high in row] for row in intervals],
            "needle_accuracy_percent": 100 * n_found / n,
        }


def evaluate_needle(
    model: LanguageModel,
    needles: Needles,
    *,
    lengths: Sequence[int],
    depths_percent: Sequence[int],
    trials: int,
    new_tokens: int,
    batch_tokens: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> NeedleGrid:
    """The grid, in batches of prompts of one length with about `batch_tokens` tokens.

    The model's mode is afterwards as it was. Raises ConfigError where a length has too little room, or too much.
    """
    for length in (min(lengths), max(lengths)):
        for trial in range(trials):
            needles.prompt(trial, length, 0)
    found = np.zeros((len(depths_percent), len(lengths)), dtype=np.int64)
    cells = [(i, trial) for i in range(len(depths_percent)) for trial in range(trials)]
    with progress("needle", len(cells) * len(lengths), "prompts") as told:
        for j, length in enumerate(lengths):
            size = max(1, batch_tokens // length)
            for first in range(0, len(cells), size):
                part = cells[first : first + size]
                prompt_BL = np.stack([needles.prompt(trial, length, depths_percent[i]) for i, trial in part])
                answers = _answers(model, prompt_BL, new_tokens, needles.vocab_size, dtype)
                for (i, trial), tokens in zip(part, answers, strict=True):
                    found[i, j] += needles.is_right(trial, tokens)
                told(len(part))
    return NeedleGrid(
        lengths=tuple(lengths),
        depths_percent=tuple(depths_percent),
        trials=trials,
        found=tuple(tuple(row) for row in found.tolist()),
    )


def _answers(
    model: LanguageModel,
    prompt_BL: NDArray[np.int64],
    new_tokens: int,
    vocab_size: int,
    dtype: Literal["float32", "bfloat16"],
) -> NDArray[np.int64]:
    """What the model says to each prompt, greedily: (B, N) tokens."""
    device = model.embedding.device
    with autocast(dtype, device):
        new_BN = generate(
            model,
            torch.from_numpy(prompt_BL).to(device),
            new_tokens,
            temperature=0.0,
            vocab_size=vocab_size,
            state_dtype=torch.bfloat16 if dtype == "bfloat16" else None,
        )
    return new_BN.cpu().numpy()

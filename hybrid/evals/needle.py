"""A needle in a haystack: a sentence with a number, hidden in a long text and asked for at its end.

    bos  text ... \\nThe special magic Oslo number is: 4071926.\\n ... text  \\nThe special magic Oslo number is:

So in arXiv 2510.04800 (Figure 4): the city is one of many, the number has seven digits, the prompt ends with the
needle's own words, twenty tokens are generated greedily, and the answer is right if the digits are among them. A
prompt's length counts all of its tokens. At a depth of 0% the needle comes before all of the text, at 100% after it.

A trial's city, number and piece of the text are the same at all lengths (which begin at the same place) and depths, so
that what differs between cells is not chance. All prompts of a length are equally long, and are answered in batches.

Shapes: B prompts, L tokens of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.data.base import DocumentSource
from hybrid.evals.intervals import binomial_interval
from hybrid.evals.nll import autocast
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


@final
@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial hides, as tokens, and where in the text its haystacks begin, as a fraction of what there is."""

    needle: NDArray[np.int64]
    question: NDArray[np.int64]
    digits: bytes
    begins: float


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


def trials_of(data: DocumentSource, n_trials: int, seed: int) -> list[Trial]:
    """Trial i is a function of (seed, i) alone."""
    made = []
    for i in range(n_trials):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, i], dtype=np.uint64)))
        city = CITIES[int(generator.integers(len(CITIES)))]
        digits = str(int(generator.integers(10 ** (_DIGITS - 1), 10**_DIGITS)))
        question = f"\nThe special magic {city} number is:"
        made.append(
            Trial(
                needle=data.encode(f"{question} {digits}.\n".encode()),
                question=data.encode(question.encode()),
                digits=digits.encode(),
                begins=float(generator.random()),
            )
        )
    return made


def prompt_of(trial: Trial, text: NDArray[np.integer], bos: int, length: int, depth_percent: int) -> NDArray[np.int64]:
    """The prompt, (L,). Raises ConfigError where the needle does not fit, or the text is too short."""
    n_hay = length - 1 - len(trial.needle) - len(trial.question)
    if n_hay < 1 or n_hay > len(text):
        expected = f"at least {length - n_hay + 1}" if n_hay < 1 else f"at most {len(text) + length - n_hay}"
        why = "the needle and its question take the rest" if n_hay < 1 else f"the haystack has {len(text)} tokens"
        raise ConfigError(f"eval.needle.lengths = {length}: expected {expected}, as {why}")
    # A place that is the same for all lengths, so long as the text goes on behind it.
    first = min(int(trial.begins * len(text)), len(text) - n_hay)
    hay, cut = text[first : first + n_hay], round(n_hay * depth_percent / 100)
    return np.concatenate(([bos], hay[:cut], trial.needle, hay[cut:], trial.question)).astype(np.int64)


def evaluate_needle(
    model: LanguageModel,
    data: DocumentSource,
    text: NDArray[np.integer],
    *,
    lengths: Sequence[int],
    depths_percent: Sequence[int],
    trials: int,
    new_tokens: int,
    seed: int,
    batch_tokens: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> NeedleGrid:
    """The grid over a haystack, in batches of prompts of one length with about `batch_tokens` tokens.

    The model's mode is afterwards as it was. Raises ConfigError where a length has too little room, or too much.
    """
    hidden = trials_of(data, trials, seed)
    for length in (min(lengths), max(lengths)):
        for trial in hidden:
            prompt_of(trial, text, data.bos, length, 0)
    found = np.zeros((len(depths_percent), len(lengths)), dtype=np.int64)
    cells = [(i, trial) for i in range(len(depths_percent)) for trial in hidden]
    for j, length in enumerate(lengths):
        for part in _parts(cells, max(1, batch_tokens // length)):
            prompts = [prompt_of(trial, text, data.bos, length, depths_percent[i]) for i, trial in part]
            answers = _answers(model, data, np.stack(prompts), new_tokens, dtype)
            for (i, trial), answer in zip(part, answers, strict=True):
                found[i, j] += trial.digits in answer
    return NeedleGrid(
        lengths=tuple(lengths),
        depths_percent=tuple(depths_percent),
        trials=trials,
        found=tuple(tuple(row) for row in found.tolist()),
    )


def _parts(cells: Sequence[tuple[int, Trial]], size: int) -> Iterator[Sequence[tuple[int, Trial]]]:
    for first in range(0, len(cells), size):
        yield cells[first : first + size]


def _answers(
    model: LanguageModel,
    data: DocumentSource,
    prompt_BL: NDArray[np.int64],
    new_tokens: int,
    dtype: Literal["float32", "bfloat16"],
) -> list[bytes]:
    device = model.embedding.device
    with autocast(dtype, device):
        new_BN = generate(
            model,
            torch.from_numpy(prompt_BL).to(device),
            new_tokens,
            temperature=0.0,
            vocab_size=len(data.token_bytes_V),  # the model may have room for more
            state_dtype=torch.bfloat16 if dtype == "bfloat16" else None,
        )
    return [data.decode(row) for row in new_BN.cpu().numpy()]

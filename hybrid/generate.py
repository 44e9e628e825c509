"""Generating tokens with a trained model, one after the other, from static states.

Shapes: B sequences, L positions of the prompt, V vocabulary, N new tokens.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from hybrid.model import LanguageModel

PREFILL_POSITIONS: Final = 1024
"""A prompt is read in pieces of at most so many positions, so that its activations need not all be held."""

_PREFILL_TOKENS: Final = 8192
_FEWEST_POSITIONS: Final = 64


def generate(
    model: LanguageModel,
    prompt_BL: Tensor,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 1,
    stop_tokens: tuple[int, ...] = (),
    vocab_size: int | None = None,
    state_dtype: torch.dtype | None = None,
) -> Tensor:
    """The tokens of `stream`, (B, N)."""
    tokens = stream(
        model,
        prompt_BL,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=stop_tokens,
        vocab_size=vocab_size,
        state_dtype=state_dtype,
    )
    return torch.stack(list(tokens), dim=1)


def stream(
    model: LanguageModel,
    prompt_BL: Tensor,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 1,
    stop_tokens: tuple[int, ...] = (),
    vocab_size: int | None = None,
    state_dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """The next token of every sequence, (B,), as soon as it is there; at most `max_new_tokens` >= 1 times.

    The prompt has at least one position. A sequence ends with the first of `stop_tokens` that it has; where others go
    on, it has that token again and again. `temperature` 0 is greedy; else `choose` says what is drawn, and what comes
    is a function of `seed`, the prompt and the settings. Tokens from `vocab_size` on (of the model's vocabulary, those
    that its data do not have) are never chosen. States are held in `state_dtype`, the parameters' unless given; where
    the model runs under autocast, give its dtype: wider states would be converted at every step, and hold no more.
    The model is in evaluation mode while this lasts.
    """
    generator = torch.Generator().manual_seed(seed)
    stops = torch.tensor(stop_tokens, dtype=prompt_BL.dtype, device=prompt_BL.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            # The last token is never read.
            state = model.init_state(prompt_BL.shape[0], prompt_BL.shape[1] + max_new_tokens - 1, state_dtype)
            for piece_BL in pieces(prompt_BL):
                logits_B1V, state = model.step(piece_BL, state, last_only=True)
            token_B = choose(
                logits_B1V[:, 0, :vocab_size], generator, temperature=temperature, top_k=top_k, top_p=top_p
            )
        yield token_B
        for _ in range(max_new_tokens - 1):
            stopped_B = torch.isin(token_B, stops)
            if stop_tokens and bool(stopped_B.all()):
                return
            with torch.no_grad():
                logits_B1V, state = model.step(token_B.unsqueeze(1), state)
                next_B = choose(
                    logits_B1V[:, 0, :vocab_size], generator, temperature=temperature, top_k=top_k, top_p=top_p
                )
            token_B = torch.where(stopped_B, token_B, next_B)
            yield token_B
    finally:
        model.train(was_training)


def pieces(prompt_BL: Tensor) -> tuple[Tensor, ...]:
    """A prompt in the pieces in which it is read; those of many sequences are short enough for a cache to hold."""
    fitting = _PREFILL_TOKENS // (prompt_BL.shape[0] * _FEWEST_POSITIONS) * _FEWEST_POSITIONS
    positions = min(PREFILL_POSITIONS, max(_FEWEST_POSITIONS, fitting))
    return tuple(torch.split(prompt_BL, positions, dim=1))


def choose(
    logits_BV: Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """A token for each row, (B,): the best at temperature 0, else drawn from softmax(logits / temperature).

    Drawn from the `top_k` best, and of these from the fewest that together have a probability of `top_p`, the best
    ones; of equals the lower number is better. `generator` is one of the CPU, of which every draw takes one number a
    row: so a draw is the same on every device, but for rounding.
    """
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.double()
    # Above 0 at the best and falling from it: a small temperature may not overflow.
    scaled_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature
    sorted_BV, tokens_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        sorted_BV, tokens_BV = sorted_BV[:, :top_k], tokens_BV[:, :top_k]
    cumulative_BV = sorted_BV.softmax(-1).cumsum(-1)
    if top_p is not None:
        # What is before it has less than top_p: the first is always kept.
        kept_B = 1 + (cumulative_BV[:, :-1] < top_p).sum(-1)
    else:
        kept_B = torch.full_like(tokens_BV[:, 0], cumulative_BV.shape[1])
    total_B1 = cumulative_BV.gather(1, (kept_B - 1).unsqueeze(1))
    uniform_B1 = torch.rand(len(logits_BV), 1, dtype=torch.float64, generator=generator).to(logits_BV.device)
    drawn_B = (cumulative_BV <= uniform_B1 * total_B1).sum(-1)
    # Rounding may carry the product to the total itself.
    return tokens_BV.gather(1, torch.minimum(drawn_B, kept_B - 1).unsqueeze(1)).squeeze(1)

"""Log likelihoods of continuations, and greedy answers, of many contexts at once.

What continuations of one context share is computed once: contexts of nearly one length go through the model together
up to the end of the shortest, with states; then each continuation goes on by itself from its context's state, with
what of the context was left. Where no context has two continuations, whole sequences go through the model instead.

Shapes: B contexts, R continuations, L positions, V vocabulary, S scored positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from torch import Tensor

from hybrid.evals.nll import autocast
from hybrid.evals.progress import Progress
from hybrid.generate import pieces
from hybrid.mixers import rows_of_state
from hybrid.model import LanguageModel, ModelState

_LOGITS_AT_ONCE: Final = 1 << 26
_LEAST_PREAMBLE: Final = 32
"""A beginning that all contexts have in common is computed once, if it is as long as this."""


@final
@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Tokens to be scored after a context; at least one of each."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a continuation is, and whether greedy decoding gives it."""

    log_likelihood_nats: float
    is_greedy: bool


@final
@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A context of at least one token to go on after, for at most `max_new_tokens`, or until a text of `stops`."""

    context: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[bytes, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model, and how much of it is used at once: about `batch_tokens` positions in a pass.

    A context is cut off on its left where it would go beyond `max_length` positions with what follows it; of a
    continuation that is longer by itself all is scored, after one token of context. Greedy are the likeliest tokens
    among the first `vocab_size`, those that the data have.
    """

    model: LanguageModel
    vocab_size: int
    max_length: int
    batch_tokens: int
    dtype: Literal["float32", "bfloat16"] = "float32"

    def scores(self, continuations: Sequence[Continuation], progress: Progress = lambda _: None) -> list[Score]:
        """In the order given; equal ones are computed once. The model is in evaluation mode while this lasts."""
        cut = [self._cut(one) for one in continuations]
        found: dict[Continuation, Score] = {}
        with _evaluating(self.model, self.dtype):
            for batch in self._batches(cut):
                found |= self._scored(batch)
                progress(sum(len(rows) for rows in batch.values()))
        return [found[one] for one in cut]

    def room(self, one: Continuation | Prompt) -> int:
        """Tokens that are read of its context, the last ones."""
        if isinstance(one, Prompt):
            return max(self.max_length - one.max_new_tokens, 1)
        # The last token is predicted, never read.
        return max(self.max_length + 1 - len(one.tokens), 1)

    def _cut(self, one: Continuation) -> Continuation:
        room = self.room(one)
        return one if len(one.context) <= room else Continuation(context=one.context[-room:], tokens=one.tokens)

    def _batches(self, all_: Sequence[Continuation]) -> Iterator[dict[tuple[int, ...], list[Continuation]]]:
        """Continuations by context, the longest contexts first: what may need too much memory needs it at once."""
        groups: dict[tuple[int, ...], list[Continuation]] = {}
        for one in dict.fromkeys(all_):
            groups.setdefault(one.context, []).append(one)
        batch: dict[tuple[int, ...], list[Continuation]] = {}
        n_rows = longest = first = 0
        for context, rows in sorted(groups.items(), key=lambda item: (-len(item[0]), item[0])):
            length = len(context) + max(len(row.tokens) for row in rows)
            too_many = (n_rows + len(rows)) * max(longest, length) > self.batch_tokens
            if batch and (too_many or first - len(context) > max(16, first // 8)):
                yield batch
                batch, n_rows, longest = {}, 0, 0
            first = first if batch else len(context)
            batch[context] = rows
            n_rows, longest = n_rows + len(rows), max(longest, length)
        if batch:
            yield batch

    def _scored(self, batch: dict[tuple[int, ...], list[Continuation]]) -> dict[Continuation, Score]:
        contexts = list(batch)
        # Each continuation reads its context's last token itself, as that predicts its first.
        shared = min(map(len, contexts)) - 1
        rows = [(i, one) for i, context in enumerate(contexts) for one in batch[context]]
        if len(rows) == len(contexts):
            shared = 0
        longest = max(len(one.context) + len(one.tokens) for _, one in rows) - 1
        state = _read(self, [context[:shared] for context in contexts], longest) if shared else None
        rows.sort(key=lambda row: len(row[1].context) + len(row[1].tokens))
        found: dict[Continuation, Score] = {}
        while rows:
            # Logits are of all positions after a state, and else only of those that are scored.
            n_read = len(rows[-1][1].context) + len(rows[-1][1].tokens) - 1 - shared
            size = max(1, min(self.batch_tokens // longest, _LOGITS_AT_ONCE // (n_read * self.model.spec.vocab_size)))
            part, rows = rows[-size:], rows[:-size]
            found |= self._scored_rows(part, shared, state)
        return found

    def _scored_rows(
        self, rows: Sequence[tuple[int, Continuation]], shared: int, state: ModelState | None
    ) -> dict[Continuation, Score]:
        device = self.model.embedding.device
        sequences = [one.context[shared:] + one.tokens for _, one in rows]
        inputs_RL = _padded([sequence[:-1] for sequence in sequences])
        scored_RL = torch.zeros_like(inputs_RL, dtype=torch.bool)
        for i, (_, one) in enumerate(rows):
            scored_RL[i, len(sequences[i]) - 1 - len(one.tokens) : len(sequences[i]) - 1] = True
        targets_S = torch.tensor([token for _, one in rows for token in one.tokens], device=device)
        if state is None:
            logits_SV = self.model(inputs_RL.to(device), scored_RL.to(device))
        else:
            own = rows_of_state(state, torch.tensor([i for i, _ in rows], device=device))
            logits_RLV, _ = self.model.step(inputs_RL.to(device), own)
            logits_SV = logits_RLV[scored_RL.to(device)]
        logits_SV = logits_SV.float() if logits_SV.dtype in (torch.float16, torch.bfloat16) else logits_SV
        target_logits_S = logits_SV.gather(1, targets_S.unsqueeze(1)).squeeze(1)
        log_likelihood_S = (target_logits_S - logits_SV.logsumexp(1)).double().cpu()
        is_best_S = (logits_SV[:, : self.vocab_size].argmax(1) == targets_S).cpu()
        lengths = [len(one.tokens) for _, one in rows]
        return {
            one: Score(log_likelihood_nats=float(log_likelihood.sum()), is_greedy=bool(is_best.all()))
            for (_, one), log_likelihood, is_best in zip(
                rows, log_likelihood_S.split(lengths), is_best_S.split(lengths), strict=True
            )
        }

    def answers(
        self,
        prompts: Sequence[Prompt],
        decode: Callable[[list[int]], bytes],
        *,
        eos: int,
        progress: Progress = lambda _: None,
    ) -> list[bytes]:
        """What greedy decoding says to each prompt, in the order given: up to eos, or the first of its stops.

        `decode` gives the text of tokens, each by itself. The model is in evaluation mode while this lasts.
        """
        found: dict[int, bytes] = {}
        order = sorted(range(len(prompts)), key=lambda i: -self._n_read(prompts[i]))
        with _evaluating(self.model, self.dtype):
            while order:
                longest = self._n_read(prompts[order[0]]) + max(prompts[i].max_new_tokens for i in order)
                size = max(1, self.batch_tokens // longest)
                first = self._n_read(prompts[order[0]])
                near = [i for i in order[:size] if first - self._n_read(prompts[i]) <= max(16, first // 8)]
                order = order[len(near) :]
                found |= zip(near, self._answered([prompts[i] for i in near], decode, eos), strict=True)
                progress(len(near))
        return [found[i] for i in range(len(prompts))]

    def _n_read(self, prompt: Prompt) -> int:
        """The positions of a context that are read."""
        return min(len(prompt.context), self.room(prompt))

    def _answered(self, prompts: Sequence[Prompt], decode: Callable[[list[int]], bytes], eos: int) -> list[bytes]:
        contexts = [prompt.context[-self._n_read(prompt) :] for prompt in prompts]
        shared, longest = min(map(len, contexts)), max(map(len, contexts))
        total = max(len(context) + prompt.max_new_tokens for context, prompt in zip(contexts, prompts, strict=True))
        answers = [_Answer(prompt) for prompt in prompts]
        device = self.model.embedding.device
        state = _read(self, [context[: shared - 1] for context in contexts], total)
        token_B = torch.tensor([context[shared - 1] for context in contexts], device=device)
        for position in range(shared, total):
            logits_B1V, state = self.model.step(token_B.unsqueeze(1), state)
            best_B = logits_B1V[:, 0, : self.vocab_size].argmax(1).tolist()
            for i, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
                if position < len(context):
                    best_B[i] = context[position]  # of a longer context, this is not yet new
                elif not answer.is_over:
                    answer.add(b"" if best_B[i] == eos else decode([best_B[i]]), ends=best_B[i] == eos)
            if position >= longest and all(answer.is_over for answer in answers):
                break
            token_B = torch.tensor(best_B, device=device)
        return [answer.text() for answer in answers]


@final
class _Answer:
    """What has been said so far to a prompt."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._said = bytearray()
        self._n_tokens = 0
        self.is_over = prompt.max_new_tokens == 0

    def add(self, piece: bytes, *, ends: bool) -> None:
        before = len(self._said)
        self._said += piece
        self._n_tokens += 1
        self.is_over = (
            ends
            or self._n_tokens == self._prompt.max_new_tokens
            or any(stop in self._said[max(0, before - len(stop)) :] for stop in self._prompt.stops if stop)
        )

    def text(self) -> bytes:
        """Up to the first of the stops."""
        said = bytes(self._said)
        ends = [at for stop in self._prompt.stops if stop and (at := said.find(stop)) >= 0]
        return said[: min(ends, default=len(said))]


@contextmanager
def _evaluating(model: LanguageModel, dtype: Literal["float32", "bfloat16"]) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(dtype, model.embedding.device):
            yield
    finally:
        model.train(was_training)


def _read(scorer: Scorer, contexts: Sequence[tuple[int, ...]], max_seq_len: int) -> ModelState:
    """The state after contexts of one length, which go on to `max_seq_len`; a long common beginning is read once."""
    model = scorer.model
    device = model.embedding.device
    # Wider states would be converted at every step, and hold no more.
    dtype = torch.bfloat16 if scorer.dtype == "bfloat16" else None
    preamble = _n_in_common(contexts) if len(contexts) > 1 else 0
    if preamble < _LEAST_PREAMBLE:
        preamble = 0
        state = model.init_state(len(contexts), max_seq_len, dtype)
    else:
        state = _stepped(model, model.init_state(1, max_seq_len, dtype), _padded([contexts[0][:preamble]]).to(device))
        state = rows_of_state(state, torch.zeros(len(contexts), dtype=torch.int64, device=device))
    return _stepped(model, state, _padded([context[preamble:] for context in contexts]).to(device))


def _n_in_common(contexts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all contexts, of one length, begin with."""
    # What lies between the least and the greatest in their order begins as these two do.
    pairs = zip(min(contexts), max(contexts), strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(contexts[0]))


def _stepped(model: LanguageModel, state: ModelState, tokens_BL: Tensor) -> ModelState:
    for piece_BL in pieces(tokens_BL):
        if piece_BL.shape[1]:
            _, state = model.step(piece_BL, state, last_only=True)
    return state


def _padded(sequences: Sequence[tuple[int, ...]]) -> Tensor:
    """(B, L), filled up on the right, where no earlier position looks."""
    longest = max(map(len, sequences))
    return torch.tensor([[*sequence, *([0] * (longest - len(sequence)))] for sequence in sequences], dtype=torch.int64)

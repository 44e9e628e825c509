"""Text that a finished run makes."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hybrid.eval_spec import is_text
from hybrid.spec import ConfigError, ExecSpec, RunSpec, StdlibSpec
from sweeps.identity import run_id as identify
from sweeps.store import Store
from sweeps.worker.evaluation import final_weights


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The `generate` settings. `temperature` 0 takes the likeliest token; `top_k` and `top_p` null keep all of them."""

    prompt: str
    tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int

    def check(self) -> None:
        """Raises ConfigError for values that mean nothing, all of them at once."""
        problems = []
        if self.tokens < 1:
            problems.append(f"generate.tokens = {self.tokens}: expected at least 1")
        if self.temperature < 0:
            problems.append(f"generate.temperature = {self.temperature}: expected 0 (always the likeliest) or more")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"generate.top_k = {self.top_k}: expected at least 1, or null for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"generate.top_p = {self.top_p}: expected above 0 and at most 1, or null for all tokens")
        if not 0 <= self.seed < 2**32:
            problems.append(f"generate.seed = {self.seed}: expected a whole number from 0 to 2**32 - 1")
        if problems:
            raise ConfigError(problems)


def generate_one(
    store: Store, run: RunSpec, execution: ExecSpec, settings: GenerateConfig, write: Callable[[str], object]
) -> None:
    """Have a finished run continue the prompt, and `write` the text in pieces as they come, the prompt first.

    It ends where a document does, or after `settings.tokens`; bytes that are no UTF-8 become U+FFFD. Raises
    ConfigError where the run's data are no text, or its corpus, which has the tokenizer, is not there; StoreError where
    it is not done or its weights are gone.
    """
    if not is_text(run.data):
        raise ConfigError(
            f"mode = generate: data.kind = {run.data.kind}: expected a run on text, such as data=stdlib or data=corpus"
        )
    run_id = identify(run)
    store.check_spec(run_id, run)
    weights = final_weights(store, run, "generate from")
    import torch

    from hybrid.evals.nll import autocast
    from hybrid.generate import stream
    from hybrid.train.checkpoint import load_final_weights
    from hybrid.train.loop import build_model, numerics

    words = _words_of(run, store.data_root)
    # What the command line could not decode is passed on as the bytes that it was.
    prompt = settings.prompt.encode("utf-8", "surrogateescape")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with numerics(execution, run.init_seed):
        model = build_model(run, execution)
        load_final_weights(weights, model)
        device = model.embedding.device
        tokens = stream(
            model,
            torch.tensor([[words.bos, *words.encode(prompt)]], device=device),
            settings.tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            stop_tokens=(words.bos, words.eos),
            vocab_size=words.n_tokens,  # the model may have room for more
            state_dtype=torch.bfloat16 if run.dtype == "bfloat16" else torch.float32,
        )
        write(decoder.decode(prompt))
        with autocast(run.dtype, device):
            for token in map(int, tokens):
                if token not in (words.bos, words.eos):
                    write(decoder.decode(words.decode(token)))
    write(decoder.decode(b"", final=True))


@final
@dataclass(frozen=True, kw_only=True)
class _Words:
    """What the tokens of a run stand for."""

    bos: int
    eos: int
    n_tokens: int
    encode: Callable[[bytes], list[int]]
    decode: Callable[[int], bytes]


def _words_of(run: RunSpec, data_root: Path) -> _Words:
    """Bytes need no file; a corpus has its tokenizer beside its shards."""
    import numpy as np

    from hybrid.data import DocumentSource, open_data
    from hybrid.data.shards import BOS, EOS

    if isinstance(run.data, StdlibSpec):
        return _Words(bos=BOS, eos=EOS, n_tokens=run.data.vocab_size, encode=list, decode=lambda token: bytes([token]))
    data = open_data(run.data, run.seq_len, data_root)
    assert isinstance(data, DocumentSource)
    return _Words(
        bos=data.bos,
        eos=data.eos,
        n_tokens=len(data.token_bytes_V),
        encode=lambda text: data.encode(text).tolist(),
        decode=lambda token: data.decode(np.array([token])),
    )

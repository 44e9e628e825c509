"""Text to tokens: bytes, or any JSON file of the `tokenizers` library. Special tokens are never recognised in text."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.corpora import token_dtype
from hybrid.data.packed import Tokens
from hybrid.data.prepare.sources import missing_extra, reason
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

BYTES: Final = "bytes"

_BOS_NAMES: Final = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "[BOS]", "<|startoftext|>", "<|endoftext|>")
_EOS_NAMES: Final = ("<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|endoftext|>")
_LARGEST_UINT16: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """A tokenizer as it was chosen: `path` of its JSON file, None for bytes; `sha256` of that file."""

    name: str
    path: str | None
    sha256: str
    vocab_size: int
    bos: int
    eos: int
    bos_token: str
    eos_token: str

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in a shard."""
        return 2 if self.vocab_size <= _LARGEST_UINT16 else 4

    @property
    def dtype(self) -> "np.dtype[np.unsignedinteger[Any]]":
        return token_dtype(self.token_bytes)


class TextTokenizer(ABC):
    """What makes tokens of texts."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text, without bos and eos."""


@final
class ByteTokenizer(TextTokenizer):
    """The bytes of UTF-8; bos is 256 and eos 257, as in the standard-library corpus."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]


@final
class JsonTokenizer(TextTokenizer):
    """A tokenizer of the `tokenizers` library, in one thread: processes are what runs in parallel here."""

    def __init__(self, path: str, dtype: "np.dtype[np.unsignedinteger[Any]]") -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._tokenizer = _load(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # What a web page says of "<|end_of_text|>" is text.
        self._tokenizer.encode_special_tokens = True
        self._dtype = dtype

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self._dtype) for encoding in found]


def open_tokenizer(spec: TokenizerSpec) -> TextTokenizer:
    return ByteTokenizer() if spec.path is None else JsonTokenizer(spec.path, spec.dtype)


def choose_tokenizer(chosen: str, *, name: str | None, bos: str | None, eos: str | None) -> TokenizerSpec:
    """Read what --tokenizer says: "bytes", a JSON file, its directory, or the name of a repository on the hub.

    Raises ConfigError for what is none of these, and for bos or eos that it does not have.
    """
    if chosen == BYTES:
        given = [f"--{key} {value}" for key, value in (("bos", bos), ("eos", eos)) if value is not None]
        if given:
            raise ConfigError(
                [f"{option}: expected none with --tokenizer bytes: bos is 256, eos 257" for option in given]
            )
        return TokenizerSpec(
            name=name or BYTES,
            path=None,
            sha256="",
            vocab_size=258,
            bos=256,
            eos=257,
            bos_token="<|bos|>",
            eos_token="<|eos|>",
        )
    path = Path(chosen) / "tokenizer.json" if Path(chosen).is_dir() else Path(chosen)
    if not path.is_file():
        path = _from_hub(chosen)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--tokenizer {chosen}: expected a file that can be read: {error.strerror}") from error
    vocab: dict[str, int] = _load(str(path)).get_vocab(with_added_tokens=True)
    if not vocab:
        raise ConfigError(f"--tokenizer {chosen}: expected a vocabulary, found none")
    specials = [
        _special(vocab, key, given, names) for key, given, names in (("bos", bos, _BOS_NAMES), ("eos", eos, _EOS_NAMES))
    ]
    return TokenizerSpec(
        name=name or chosen,
        path=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=max(vocab.values()) + 1,
        bos=vocab[specials[0]],
        eos=vocab[specials[1]],
        bos_token=specials[0],
        eos_token=specials[1],
    )


def _special(vocab: dict[str, int], key: str, given: str | None, names: tuple[str, ...]) -> str:
    for token in names if given is None else (given,):
        if token in vocab:
            return token
    marked = [token for token in vocab if token[:1] in "<[" and len(token) > 2 and token[-1:] in ">]"]
    wanted = f"--{key} {given}" if given is not None else f"--{key}: not given, and the tokenizer has none of the usual"
    raise ConfigError(f"{wanted}: expected a token of its vocabulary{did_you_mean(given or key, marked[:40])}")


def _load(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra("--tokenizer", error) from error
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises no narrower class
        raise ConfigError(f"--tokenizer {path} = {error}: expected a JSON file of the tokenizers library") from error


def _from_hub(chosen: str) -> Path:
    """The JSON file of a repository on the Hugging Face hub, from its cache or over the network."""
    if chosen.count("/") != 1 or chosen.endswith(".json") or chosen.startswith((".", "/")):
        raise ConfigError(
            f"--tokenizer {chosen}: expected bytes, a JSON file of the tokenizers library, a directory with a "
            "tokenizer.json, or the name of a repository on the hub (OWNER/NAME); there is no such file"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise missing_extra(f"--tokenizer {chosen}", error) from error
    try:
        return Path(hf_hub_download(chosen, "tokenizer.json"))
    except Exception as error:  # network, permission, absence: a dozen classes of three libraries
        raise ConfigError(
            f"--tokenizer {chosen}: no such file here, and not to be had from the hub ({type(error).__name__}, "
            f"{reason(error)}); "
            "give the path of its tokenizer.json, and --tokenizer-name for what it is called"
        ) from error


def as_document(tokens: Tokens, spec: TokenizerSpec) -> NDArray[Any]:
    """bos, the tokens, eos, as they stand in a shard."""
    document = np.empty(len(tokens) + 2, dtype=spec.dtype)
    document[0], document[1:-1], document[-1] = spec.bos, tokens, spec.eos
    return document

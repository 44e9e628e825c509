"""Prepared shards of a corpus (`hybrid.data.prepare`), memory-mapped and only read: a run may train on terabytes."""

import hashlib
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.packed import PackedData, Tokens, TokenStream
from hybrid.data.pieces import token_pieces
from hybrid.manifest import PREPARE, TOKENIZER, Manifest, ShardFile, ShardSplit, find_corpus
from hybrid.spec import ConfigError, CorpusSpec, HubSpec

if TYPE_CHECKING:
    from hybrid.data.prepare.tokenizer import JsonTokenizer

CHECKED_BYTES: Final = 1 << 30
"""Shards of up to so many bytes together are read and compared with their checksums when a run opens them, about a
second; of larger ones only the sizes are, and `python -m hybrid.data verify` reads them all."""

_BLOCK_BYTES: Final = 1 << 22

_log = logging.getLogger(__name__)


@final
class CorpusData(PackedData):
    """Windows of both splits of prepared shards."""

    def __init__(self, directory: Path, manifest: Manifest, seq_len: int) -> None:
        """Raises ConfigError for shards that are missing or are not what the manifest says, naming the file, and if a
        split is shorter than one window."""
        size = sum(file.size_bytes for split in (manifest.training, manifest.validation) for file in split.files)
        check_shards(directory, manifest, checksums=size <= CHECKED_BYTES)
        training, validation = (
            TokenStream([_map(directory / file.name, manifest) for file in split.files])
            for split in (manifest.training, manifest.validation)
        )
        super().__init__(training, validation, seq_len)
        self.directory = directory
        self.manifest = manifest

    @staticmethod
    def larger_validation() -> str:
        return f"a longer sample may do: --tokens, --val-tokens or --val-percent of {PREPARE}"

    @property
    def tokenizer(self) -> str:
        return self.manifest.tokenizer_sha256 or "bytes"

    @property
    def bos(self) -> int:
        return self.manifest.bos

    @property
    def eos(self) -> int:
        return self.manifest.eos

    @property
    def token_bytes_V(self) -> NDArray[np.int64]:
        """As `hybrid.data.pieces` counts them. Raises ConfigError if the tokenizer's file is gone or another."""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def encode(self, text: bytes) -> NDArray[np.int64]:
        """Raises ConfigError where the tokenizer's file, or its library, is missing."""
        if not self.manifest.tokenizer_sha256:
            return np.frombuffer(text, dtype=np.uint8).astype(np.int64)
        return self._text_tokenizer.encode([text.decode("utf-8", "replace")])[0].astype(np.int64)

    def decode(self, tokens: NDArray[np.int64]) -> bytes:
        return b"".join(self._pieces[token] for token in tokens.tolist())

    @cached_property
    def _text_tokenizer(self) -> "JsonTokenizer":
        """Read once: a large one takes as long as thousands of texts."""
        from hybrid.data.prepare.tokenizer import JsonTokenizer

        path = str(tokenizer_file(self.directory, self.manifest))
        return JsonTokenizer(path, token_dtype(self.manifest.token_bytes))

    @cached_property
    def _pieces(self) -> list[bytes]:
        if not self.manifest.tokenizer_sha256:
            return [bytes([byte]) for byte in range(256)] + [b"", b""]
        pieces = token_pieces(tokenizer_file(self.directory, self.manifest), self.manifest.vocab_size)
        pieces[self.bos] = pieces[self.eos] = b""
        return pieces


def tokenizer_file(directory: Path, manifest: Manifest) -> Path:
    """The JSON file that the shards were made with. Raises ConfigError if it is gone, or another, or there was none."""
    path = directory / TOKENIZER
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        found = "missing"
    if found != manifest.tokenizer_sha256:
        raise ConfigError(
            f"{path} = {found[:12]}: expected the tokenizer that the shards were made with, SHA-256 "
            f"{manifest.tokenizer_sha256[:12]}: {manifest.tokenizer_name}; copy it there"
        )
    return path


def open_corpus(spec: CorpusSpec | HubSpec, seq_len: int, data_root: Path) -> CorpusData:
    """The shards of `spec` below `data_root`, checked. Raises ConfigError if they are missing, or wrong."""
    directory, manifest = find_corpus(data_root, spec)
    _log.info("data: %s, fingerprint %s", directory, manifest.fingerprint)
    return CorpusData(directory, manifest, seq_len)


def check_shards(directory: Path, manifest: Manifest, *, checksums: bool) -> None:
    """Compare every file's size, and its SHA-256 if asked, with the manifest.

    Raises ConfigError naming each file that is missing or different.
    """
    problems = []
    for split in (manifest.training, manifest.validation):
        for file in split.files:
            problem = _problem(directory / file.name, file, checksums)
            if problem is not None:
                problems.append(f"{problem}; copy it again from where the shards came from, or {_again(directory)}")
    if problems:
        raise ConfigError(problems)


def _again(directory: Path) -> str:
    return f"remove {directory} and give its {PREPARE} command again"


def _problem(path: Path, file: ShardFile, checksums: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return f"{path} = {size} bytes: expected {file.size_bytes}"
        if not checksums:
            return None
        found = sha256_of(path)
    except FileNotFoundError:
        return f"{path}: missing; expected a shard of {file.size_bytes} bytes"
    return None if found == file.sha256 else f"{path} = SHA-256 {found[:12]}: expected {file.sha256[:12]}"


def sha256_of(path: Path) -> str:
    """The checksum of a file, read in blocks."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
    return sha256.hexdigest()


def _map(path: Path, manifest: Manifest) -> Tokens:
    tokens: Tokens = np.memmap(path, dtype=token_dtype(manifest.token_bytes), mode="r")
    return tokens


def token_dtype(token_bytes: int) -> "np.dtype[np.unsignedinteger]":
    """Little-endian, so that shards are the same file everywhere."""
    return np.dtype(f"<u{token_bytes}")


def split_summary(split: ShardSplit) -> str:
    """For people."""
    return (
        f"{split.documents:,} documents, {split.tokens:,} tokens, {split.text_bytes:,} bytes of text in "
        f"{len(split.files)} shards"
    )

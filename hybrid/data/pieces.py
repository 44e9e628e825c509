"""The text that each token of a tokenizer stands for, read off its JSON file: for counting bytes, and for decoding.

Exact for byte-level tokenizers, such as those of GPT-2 and Llama 3, in which every character of a token is a byte. For
SentencePiece's, such as Llama 2's, a blank that they put at the front of a text is counted as if it were in it.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from hybrid.spec import ConfigError

_BLANK: Final = "\u2581"
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (Radford et al. 2019): Latin-1's own where
    they can be seen, else the next from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


def token_pieces(path: Path, vocab_size: int) -> list[bytes]:
    """The text of every token by its number: none for special ones. Raises ConfigError for a file of another kind."""
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        vocab = data["model"]["vocab"]
        pairs = (
            enumerate(piece for piece, _ in vocab) if isinstance(vocab, list) else ((i, t) for t, i in vocab.items())
        )
        added = {int(token["id"]): token for token in data["added_tokens"]}
        is_byte_level = "ByteLevel" in json.dumps([data.get("decoder"), data.get("pre_tokenizer")])
        pieces = [b""] * vocab_size
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        for number, token in pairs:
            if is_byte_level and all(character in byte_of for character in token):
                pieces[number] = bytes(byte_of[character] for character in token)
            else:
                byte = _BYTE.fullmatch(token)
                pieces[number] = bytes.fromhex(byte[1]) if byte else token.replace(_BLANK, " ").encode("utf-8")
        for number, entry in added.items():
            pieces[number] = b"" if entry["special"] else entry["content"].encode("utf-8")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} = {error!r}: expected a JSON file of the tokenizers library") from error
    return pieces

"""`python -m hybrid.data`: prepare corpora for training, and look at what was prepared."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hybrid.budget import parse_count
from hybrid.data.corpora import check_shards, split_summary
from hybrid.data.prepare import PrepareSettings, prepare
from hybrid.data.prepare.parts import PartSettings
from hybrid.data.prepare.tokenizer import BYTES, choose_tokenizer
from hybrid.manifest import MANIFEST, Manifest, read_manifest
from hybrid.spec import ConfigError

_EXIT_FAILED: Final = 1
_EXIT_MISTAKE: Final = 2
_EXIT_INTERRUPTED: Final = 130

_NGRAM_TOKENS: Final = 13
_NGRAM_BYTES: Final = 64
_VAL_PERCENT: Final = 1.0
_SHARD_TOKENS: Final = 1 << 26

_PREPARE: Final = """Make memory-mapped shards of tokens: bos, document, eos, one after the other, in the order of the
documents' hashes. Stop it at any moment: the same command goes on where it stopped."""

_EPILOG: Final = """examples:
  python -m hybrid.data prepare books books/*.parquet --tokenizer bytes
  python -m hybrid.data prepare web crawl/ --tokenizer tokenizer.json --tokens 1B --processes 8
  python -m hybrid.data prepare dclm --tokens 60B \\
      'hf://datasets/mlfoundations/dclm-baseline-1.0@main/global-shard_01_of_10/**/*.jsonl.zst' \\
      --tokenizer meta-llama/Llama-3.2-1B
  python run.py data=corpus data.directory=store/data/books

A source is a file (.parquet, .jsonl, .jsonl.gz, .jsonl.zst), a directory, a glob, or a URL such as hf://datasets/....
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m hybrid.data`."""
    top = argparse.ArgumentParser(
        prog="python -m hybrid.data", description="Corpora for training: prepare them, and look at them."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser(
        "prepare",
        help="shards of tokens from parquet and JSONL files",
        description=_PREPARE,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = new.add_argument
    add("name", metavar="NAME", help="of the directory below STORE/data; with a slash in it, the directory itself")
    add("sources", nargs="+", metavar="SOURCE", help="what to train on, and to hold a part out of")
    add("--tokenizer", required=True, metavar="T", help="bytes, a tokenizers JSON file, or OWNER/NAME on the hub")
    add("--tokenizer-name", metavar="NAME", help="what the data setting calls it (default: as given)")
    add("--bos", metavar="TOKEN", help="before every document (default: the usual ones, such as <|begin_of_text|>)")
    add("--eos", metavar="TOKEN", help="after every document")
    add("--text-column", default="text", metavar="NAME", help="default: text")
    add("--tokens", default="all", metavar="N", help="of the training split, such as 60B (default: all)")
    add("--val-tokens", default="10M", metavar="N", help="of the validation split (default: 10M; all)")
    add("--val-percent", type=float, metavar="P", help=f"of all documents, held out (default: {_VAL_PERCENT:g})")
    add(
        "--validation",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="the validation split instead, all of it from here",
    )
    add(
        "--fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="tokenise only this part of the documents (default: 1): "
        "saves time where --tokens takes a small sample, and changes nothing else",
    )
    add("--seed", type=int, default=1, metavar="N", help="of the order, the sample and the split (default: 1)")
    add("--ngram", type=int, metavar="N", help=f"tokens (default: {_NGRAM_TOKENS}; of bytes {_NGRAM_BYTES})")
    add(
        "--max-overlap",
        type=float,
        default=0.5,
        metavar="X",
        help="a validation document goes if one training document contains this share of its n-grams (default: 0.5)",
    )
    add(
        "--bad", choices=("stop", "skip"), default="stop", help="documents that are no UTF-8 or no JSON (default: stop)"
    )
    add("--of", metavar="NAME@REVISION", help="the remote corpus that the files are copies from, as data.name says it")
    add("--shard-tokens", default=str(_SHARD_TOKENS), metavar="N", help="in a shard, about (default: %(default)s)")
    add("--processes", type=int, default=_cpus(), metavar="N", help="default: one a core")
    add(
        "--store",
        type=Path,
        default=Path(os.environ.get("HYBRID_STORE", "store")),
        metavar="DIR",
        help="the results store (default: $HYBRID_STORE, else ./store)",
    )
    for name, text in (("show", "what a manifest says"), ("verify", "compare every shard with its checksum")):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("directory", type=Path, metavar="DIR")
        if name == "show":
            command.add_argument("--json", action="store_true", help="the manifest itself")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one command; gives the exit code."""
    options = parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except ConfigError as error:
        _say("\n".join(f"error: {line}" for line in error.problems))
        return _EXIT_MISTAKE
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"error: {where}{error.strerror or error}")
        return _EXIT_FAILED
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on where this one stopped")
        return _EXIT_INTERRUPTED


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- prepare ------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace) -> int:
    settings = _settings(options)
    name: str = options.name
    directory = Path(name) if "/" in name else options.store / "data" / name
    started, progress = time.monotonic(), _Progress()
    prepared = prepare(settings, directory, processes=options.processes, report=progress)
    progress.end()
    if prepared.was_there:
        _say(f"{directory} is there already, with these settings")
    else:
        _say(f"{directory}: done in {time.monotonic() - started:.0f} s")
    print(_text(prepared.directory, prepared.manifest, prepared.data))
    _say(_how_to_train(prepared.directory, options.store / "data"))
    return 0


def _settings(options: argparse.Namespace) -> PrepareSettings:
    """Raises ConfigError with everything that is wrong."""
    problems: list[str] = []

    def keep(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    if "/" not in options.name and (
        not re.fullmatch(r"[\w.-]+", options.name) or options.name.startswith(("stdlib-", "."))
    ):
        problems.append(f"NAME {options.name!r}: expected letters, digits, _ and -, or a path with a slash")
    percent = options.val_percent
    for option, is_valid, value, expected in (
        ("--val-percent", percent is None or 0 < percent < 100, percent, "a number above 0 and below 100"),
        ("--fraction", 0 < options.fraction <= 1, options.fraction, "a number above 0 and up to 1"),
        ("--max-overlap", 0 < options.max_overlap <= 1, options.max_overlap, "a share above 0 and up to 1"),
        ("--ngram", options.ngram is None or options.ngram >= 2, options.ngram, "at least 2 tokens"),
        ("--processes", options.processes >= 1, options.processes, "at least 1"),
        ("--seed", options.seed >= 0, options.seed, "0 or more"),
    ):
        if not is_valid:
            problems.append(f"{option} {value}: expected {expected}")
    if options.validation and options.val_percent is not None:
        problems.append("--validation, --val-percent: expected one of them")
    tokens = keep(lambda: _count("--tokens", options.tokens))
    val_tokens = keep(lambda: _count("--val-tokens", options.val_tokens))
    shard_tokens = keep(lambda: parse_count(options.shard_tokens, "--shard-tokens"))
    declared = keep(lambda: _declared(options.sources, options.of))
    tokenizer = keep(
        lambda: choose_tokenizer(options.tokenizer, name=options.tokenizer_name, bos=options.bos, eos=options.eos)
    )
    if problems:
        raise ConfigError(problems)
    return PrepareSettings(
        sources=tuple(options.sources),
        validation=tuple(options.validation),
        part=PartSettings(
            tokenizer=tokenizer,
            text_column=options.text_column,
            seed=options.seed,
            fraction=options.fraction,
            bad=options.bad,
        ),
        tokens=tokens,
        val_tokens=val_tokens,
        val_percent=_VAL_PERCENT if options.val_percent is None else options.val_percent,
        ngram=options.ngram or (_NGRAM_BYTES if options.tokenizer == BYTES else _NGRAM_TOKENS),
        max_overlap=options.max_overlap,
        shard_tokens=shard_tokens,
        declared=declared,
    )


def _count(option: str, text: str) -> int | None:
    return None if text == "all" else parse_count(text, option)


_HUB: Final = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/.*)?")


def _declared(sources: Sequence[str], of: str | None) -> tuple[str, str] | None:
    """The remote corpus that the sources are. Raises ConfigError where these are several, or not what --of says."""
    matches = [_HUB.fullmatch(source) for source in sources]
    found = {(match[1], (match[2] or "main").replace("%2F", "/")) for match in matches if match}
    if of is not None:
        name, at, revision = of.rpartition("@")
        if not (at and name and revision):
            raise ConfigError(f"--of {of}: expected NAME@REVISION, such as mlfoundations/dclm-baseline-1.0@main")
        if found - {(name, revision)}:
            raise ConfigError(f"--of {of}: expected the corpus of the sources, {'@'.join(sorted(found)[0])}")
        return name, revision
    return found.pop() if len(found) == 1 and all(matches) else None


class _Progress:
    """One line on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._every_s = 0.2 if self._on_terminal else 15.0
        self._phase = ""
        self._started = self._last = 0.0
        self._first = self._first_tokens = 0

    def __call__(self, phase: str, done: int, total: int, tokens: int) -> None:
        now = time.monotonic()
        if phase != self._phase:
            self.end()
            self._phase, self._started, self._last = phase, now, 0.0
            self._first, self._first_tokens = done, tokens
        if now - self._last < self._every_s and done < total:
            return
        self._last = now
        elapsed = now - self._started
        line = f"{phase}: {100 * done / max(total, 1):.0f}%, {tokens:,} tokens"
        if elapsed > 0 and done > self._first:
            left = elapsed * (total - done) / (done - self._first)
            line += f", {(tokens - self._first_tokens) / elapsed / 1e6:.2f}M tokens/s, {_duration(left)} left"
        print(f"\r\x1b[K{line}" if self._on_terminal else line, end="" if self._on_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def end(self) -> None:
        if self._on_terminal and self._phase:
            print(file=sys.stderr)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _how_to_train(directory: Path, data_root: Path) -> str:
    run = f"python run.py data=corpus data.directory={directory}"
    if directory.resolve().parent == data_root.resolve():
        return f"train on it: {run}"
    return f"train on it: ln -s {directory.resolve()} {data_root}/, as runs look below their store's data; {run}"


# --- show, verify -------------------------------------------------------------------------------


def _text(directory: Path, manifest: Manifest, data: dict[str, Any]) -> str:
    read, near, tokenizer = data["read"], data["near_duplicates"], data["tokenizer"]
    left_out = "".join(f", {count:,} {reason}" for reason, count in sorted(read["left_out"].items()))
    lines = [
        f"{directory}  data.fingerprint={manifest.fingerprint} data.vocab_size={manifest.vocab_size}",
        f"  tokenizer    {tokenizer['name']}, {manifest.vocab_size:,} tokens, bos {manifest.bos}, eos {manifest.eos}, "
        f"{manifest.token_bytes} bytes each",
        f"  read         {read['documents']:,} documents{left_out}; tokens of those tokenised: {read['tokens']:,}",
        f"  training     {split_summary(manifest.training)}",
        f"  validation   {split_summary(manifest.validation)}",
        f"  dropped      {near['dropped']:,} validation documents ({near['dropped_tokens']:,} tokens), as one training "
        f"document contains {near['max_overlap']:.0%} or more of their {near['ngram']}-grams",
    ]
    if manifest.declared is not None:
        lines.insert(1, f"  declared     {manifest.declared[0]} at {manifest.declared[1]}")
    lines += [f"  left out     {line}" for line in read["bad"][:5]]
    return "\n".join(lines)


def _show(options: argparse.Namespace) -> int:
    manifest = read_manifest(options.directory)
    data = json.loads((options.directory / MANIFEST).read_bytes())
    print(json.dumps(data, indent=1) if options.json else _text(options.directory, manifest, data))
    return 0


def _verify(options: argparse.Namespace) -> int:
    manifest = read_manifest(options.directory)
    check_shards(options.directory, manifest, checksums=True)
    print(f"{options.directory}: every shard has its checksum")
    return 0


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "prepare": _prepare,
    "show": _show,
    "verify": _verify,
}

if __name__ == "__main__":
    sys.exit(main())

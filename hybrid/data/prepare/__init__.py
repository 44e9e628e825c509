"""Corpora to shards: what `python -m hybrid.data prepare` does.

    <directory>/train-00000.bin ... validation-00000.bin ... manifest.json     the manifest comes last
    <directory>/.work/                                                         parts and receipts, until then

What comes out is a function of the documents, the tokenizer and the settings: the order of the files, how they are cut,
and the number of processes cannot be seen in it.
"""

import fcntl
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.corpora import check_shards
from hybrid.data.prepare.pack import Choice, choose, cut_into_shards, is_better, validation_grams
from hybrid.data.prepare.parts import Part, PartSettings, finished_part, part_key, replacing
from hybrid.data.prepare.sources import DamagedError, SourceFile, Unit, cut, find_files, unit_bytes
from hybrid.data.prepare.tokenizer import TokenizerSpec
from hybrid.data.prepare.work import (
    OverlapTask,
    ShardTask,
    TokenizeTask,
    Workers,
    find_overlaps,
    tokenize,
    write,
)
from hybrid.durable import make_dir
from hybrid.manifest import (
    MANIFEST,
    MANIFEST_FORMAT,
    TOKENIZER,
    Manifest,
    ShardFile,
    manifest_fingerprint,
    read_manifest,
)
from hybrid.spec import ConfigError

WORK: Final = ".work"

_LISTED: Final = 100
_MEASURE: Final = "share of a validation document's distinct token n-grams that one training document contains"

Report = Callable[[str, int, int, int], None]
"""Told a phase, how many bytes of how many are through, and the tokens so far."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What is asked for. `tokens` and `val_tokens` None: all that there is.

    `declared` is the name and the revision of the remote corpus that the sources are, if they are one.
    """

    sources: tuple[str, ...]
    validation: tuple[str, ...]
    part: PartSettings
    tokens: int | None
    val_tokens: int | None
    val_percent: float
    ngram: int
    max_overlap: float
    shard_tokens: int
    declared: tuple[str, str] | None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What there is in the end; `was_there` if nothing had to be done."""

    directory: Path
    manifest: Manifest
    was_there: bool
    data: dict[str, Any]


def prepare(settings: PrepareSettings, directory: Path, *, processes: int, report: Report) -> Prepared:
    """Make the shards of a corpus in `directory`, or go on with it.

    Raises ConfigError for sources and settings that cannot be meant or read (all damaged files at once, after all
    others have been read), and where other shards are in the directory; OSError where they cannot be written.
    """
    files, validation_files = find_files(settings.sources), find_files(settings.validation)
    both = {file.path for file in files} & {file.path for file in validation_files}
    if both:
        raise ConfigError(f"--validation {sorted(both)[0]}: expected other files than those trained on")
    recipe = _recipe(settings, files, validation_files)
    there = _there(directory, recipe)
    if there is not None:
        return there
    work = directory / WORK
    make_dir(work / "parts")
    with _locked(work / "lock"), Workers(processes) as workers:
        parts, validation_parts = _parts(settings.part, [files, validation_files], work / "parts", workers, report)
        every = [*parts, *validation_parts]
        choice = choose(
            work / "parts",
            [part.key for part in parts],
            [part.key for part in validation_parts],
            tokens=settings.tokens,
            val_tokens=settings.val_tokens,
            val_percent=settings.val_percent,
        )
        choice, dropped = _decontaminated(choice, every, settings, work, workers, report)
        shards = _shards(choice, every, settings, directory, workers, report)
        if settings.part.tokenizer.path is not None:
            with replacing(directory / TOKENIZER) as file:
                file.write(Path(settings.part.tokenizer.path).read_bytes())
        data = _manifest(settings, recipe, every, choice, shards, dropped)
        with replacing(directory / MANIFEST) as file:
            file.write(json.dumps(data, indent=1).encode())
        _remove_leftovers(directory, {file.name for _, split in shards for file in split})
    return Prepared(directory=directory, manifest=read_manifest(directory), was_there=False, data=data)


# --- what was asked, and what is there ----------------------------------------------------------


def _recipe(
    settings: PrepareSettings, files: Sequence[SourceFile], validation_files: Sequence[SourceFile]
) -> dict[str, Any]:
    """All that the shards depend on, as plain data."""
    part, tokenizer = settings.part, settings.part.tokenizer
    return {
        "sources": [asdict(file) for file in files],
        "validation sources": [asdict(file) for file in validation_files],
        "tokenizer": {key: value for key, value in asdict(tokenizer).items() if key != "path"},
        "of": None if settings.declared is None else list(settings.declared),
        "text-column": part.text_column,
        "seed": part.seed,
        "fraction": part.fraction,
        "bad": part.bad,
        "tokens": settings.tokens,
        "val-tokens": settings.val_tokens,
        "val-percent": None if settings.validation else settings.val_percent,
        "ngram": settings.ngram,
        "max-overlap": settings.max_overlap,
        "shard-tokens": settings.shard_tokens,
    }


def _there(directory: Path, recipe: dict[str, Any]) -> Prepared | None:
    """The shards, if they are there already. Raises ConfigError for others, and for these if one is missing."""
    if not (directory / MANIFEST).exists():
        others = [path.name for path in directory.iterdir() if path.name != WORK] if directory.is_dir() else []
        strangers = [name for name in others if not _is_shard(name) and name != TOKENIZER and not name.endswith(".tmp")]
        if strangers:
            raise ConfigError(f"{directory}: expected a directory of its own for the shards; in it is {strangers[0]}")
        return None
    manifest = read_manifest(directory)
    data = json.loads((directory / MANIFEST).read_bytes())
    different = [key for key, value in recipe.items() if data.get("recipe", {}).get(key) != value]
    if different:
        raise ConfigError(
            f"{directory}: holds shards that were made with other {', '.join(different)}; give another NAME, or remove "
            "the directory"
        )
    check_shards(directory, manifest, checksums=False)
    return Prepared(directory=directory, manifest=manifest, was_there=True, data=data)


def _is_shard(name: str) -> bool:
    return name.endswith(".bin") and name.startswith(("train-", "validation-"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two preparations of one directory would remove each other's parts; the kernel ends the lock with the process."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{path.parent.parent}: another process is preparing it; wait for it") from None
        yield


# --- parts --------------------------------------------------------------------------------------


def _parts(
    settings: PartSettings, groups: Sequence[Sequence[SourceFile]], directory: Path, workers: Workers, report: Report
) -> tuple[list[Part], list[Part]]:
    """The parts of the sources and of the validation sources, in the order of their files.

    Raises ConfigError naming every file that cannot be read, when all else is done.
    """
    problems: list[str] = []
    units: list[list[Unit]] = []
    wanted_bytes = unit_bytes([file for files in groups for file in files])
    for files in groups:
        units.append([])
        for file in files:
            try:
                units[-1] += cut(file, settings.text_column, wanted_bytes)
            except DamagedError as error:
                problems.append(str(error))
    for torn in directory.glob(".*.tmp"):
        torn.unlink()
    keys = {unit: part_key(unit, settings) for group in units for unit in group}
    parts = {unit: part for unit, key in keys.items() if (part := finished_part(directory, key)) is not None}
    missing = [unit for unit in keys if unit not in parts]
    size = sum(unit.size_bytes for unit in keys)
    done, tokens = size - sum(unit.size_bytes for unit in missing), sum(part.tokens for part in parts.values())
    report("tokenising", done, size, tokens)
    # Larger ones first, so that the processes end together.
    tasks = [
        TokenizeTask(unit=unit, settings=settings, directory=directory)
        for unit in sorted(missing, key=lambda unit: unit.size_bytes, reverse=True)
    ]
    for task, found in workers.each(tokenize, tasks):
        if isinstance(found, ConfigError):
            problems += found.problems
        elif isinstance(found, DamagedError):
            problems.append(str(found))
        elif isinstance(found, Exception):
            raise found
        else:
            parts[task.unit] = found
            tokens += found.tokens
        done += task.unit.size_bytes
        report("tokenising", done, size, tokens)
    if problems:
        kept = f"{len(parts)} of {len(keys)} pieces of the sources are tokenised and kept"
        raise ConfigError(
            [*sorted(set(problems)), f"{kept}: mend or leave out what is named, and give the command again"]
        )
    first, second = ([parts[unit] for unit in group] for group in units)
    return first, second


# --- near-duplicates ----------------------------------------------------------------------------


def _decontaminated(
    choice: Choice,
    parts: Sequence[Part],
    settings: PrepareSettings,
    work: Path,
    workers: Workers,
    report: Report,
) -> tuple[Choice, list[dict[str, Any]]]:
    """The choice without the validation documents that are near-duplicates of training documents, and those."""
    spec, directory = settings.part.tokenizer, work / "parts"
    keys = [part.key for part in parts]
    grams, counts = validation_grams(directory, keys, choice.validation, spec, settings.ngram)
    # Named by what is in it: processes keep it in memory.
    path = work / f"grams-{hashlib.sha256(choice.validation.tobytes() + repr(keys).encode()).hexdigest()[:20]}.npz"
    with replacing(path) as file:
        grams.save(file)
    tasks = []
    for number in np.unique(choice.training["part"]):
        training = np.sort(choice.training[choice.training["part"] == number], order="begin")
        tasks.append(
            OverlapTask(
                key=keys[number], training=training, grams=path, counts=counts, tokenizer=spec, directory=directory
            )
        )
    best, whose = np.zeros(len(counts)), np.zeros(len(counts), dtype=np.uint64)
    size, done = int(choice.training["tokens"].sum()), 0
    for task, found in workers.each(find_overlaps, tasks):
        if isinstance(found, Exception):
            raise found
        better = is_better(*found, best, whose)
        best[better], whose[better] = found[0][better], found[1][better]
        done += int(task.training["tokens"].sum())
        report("looking for near-duplicates", done, size, done)
    is_duplicate = best >= settings.max_overlap
    kept = choice.validation[~is_duplicate]
    if not len(kept):
        raise ConfigError(
            f"validation: expected documents that are no near-duplicates of training documents; all of the "
            f"{len(counts)} held-out ones are, by --ngram {settings.ngram} and --max-overlap {settings.max_overlap:g}"
        )
    dropped = [
        {
            "document": f"{int(row['place']):016x}",
            "tokens": int(row["tokens"]),
            "overlap": round(float(share), 4),
            "with": f"{int(other):016x}",
        }
        for row, share, other in zip(
            choice.validation[is_duplicate], best[is_duplicate], whose[is_duplicate], strict=True
        )
    ]
    return replace(choice, validation=kept), dropped


# --- shards and their manifest ------------------------------------------------------------------


def _shards(
    choice: Choice, parts: Sequence[Part], settings: PrepareSettings, directory: Path, workers: Workers, report: Report
) -> list[tuple[NDArray[Any], list[ShardFile]]]:
    """For training and validation: its documents, and its shards in order."""
    keys = tuple(part.key for part in parts)
    tasks: list[ShardTask] = []
    counts: list[int] = []
    for prefix, documents in (("train", choice.training), ("validation", choice.validation)):
        runs = cut_into_shards(documents, settings.shard_tokens)
        counts.append(len(runs))
        tasks += [
            ShardTask(
                path=directory / f"{prefix}-{number:05d}.bin",
                receipt=directory / WORK / f"{prefix}-{number:05d}.json",
                directory=directory / WORK / "parts",
                parts=keys,
                documents=documents[first:last],
                tokenizer=settings.part.tokenizer,
            )
            for number, (first, last) in enumerate(runs)
        ]
    size, done = sum(int(task.documents["tokens"].sum()) for task in tasks), 0
    made: dict[str, ShardFile] = {}
    for task, found in workers.each(write, tasks):
        if isinstance(found, Exception):
            raise found
        made[task.path.name] = found
        done += found.tokens
        report("writing shards", done, size, done)
    files = [made[task.path.name] for task in tasks]
    return [(choice.training, files[: counts[0]]), (choice.validation, files[counts[0] :])]


def _manifest(
    settings: PrepareSettings,
    recipe: dict[str, Any],
    parts: Sequence[Part],
    choice: Choice,
    shards: Sequence[tuple[NDArray[Any], list[ShardFile]]],
    dropped: list[dict[str, Any]],
) -> dict[str, Any]:
    left_out: Counter[str] = Counter()
    for part in parts:
        left_out.update(part.left_out)
    declared = settings.declared
    tokenizer = settings.part.tokenizer
    data: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "fingerprint": "",
        "declared": None if declared is None else {"name": declared[0], "corpus_revision": declared[1]},
        "tokenizer": _tokenizer(tokenizer),
        "read": {
            "documents": sum(part.documents for part in parts) + sum(left_out.values()),
            "tokenised": sum(part.documents for part in parts),
            "tokens": sum(part.tokens for part in parts),
            "left_out": dict(left_out),
            "bad": [line for part in parts for line in part.shown][:_LISTED],
            "training_candidates_tokens": choice.candidates,
        },
        "near_duplicates": {
            "measure": _MEASURE,
            "ngram": settings.ngram,
            "max_overlap": settings.max_overlap,
            "dropped": len(dropped),
            "dropped_tokens": sum(row["tokens"] for row in dropped),
            "examples": dropped[:_LISTED],
        },
        **{
            name: {"text_bytes": int(documents["text_bytes"].sum()), "files": [asdict(file) for file in files]}
            for name, (documents, files) in zip(("training", "validation"), shards, strict=True)
        },
        "recipe": recipe,
    }
    data["fingerprint"] = manifest_fingerprint(data)
    return data


def _tokenizer(spec: TokenizerSpec) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if key != "path"} | {"token_bytes": spec.token_bytes}


def _remove_leftovers(directory: Path, wanted: set[str]) -> None:
    """Parts, and shards of an earlier attempt that was cut otherwise."""
    for path in directory.iterdir():
        if (_is_shard(path.name) and path.name not in wanted) or path.name.endswith(".tmp"):
            path.unlink()
    shutil.rmtree(directory / WORK, ignore_errors=True)

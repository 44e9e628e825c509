"""A store's final records and their metric lines in columns: a cache beside them, so that thousands are read at once.

    index.runs         the records of all final runs, with their evaluations, a row a run
    index.metrics/ab   the metric lines of final runs whose ids begin so, a row a line; of those that were asked for

An index may be deleted at any time, and is made again where it is missing, damaged, or of another schema. Nothing in it
is believed but what the tree still says: a refresh lists the shards, and goes by what listing them tells. It looks into
a run that has no record yet, and into one whose directory is another or has changed since, as it does when a record, or
the first evaluation, comes or goes. So that a file that is changed in place, which nothing of ours does, goes unseen.

Several may write at once: each replaces whole files, and what the last one leaves out is looked up again. Who may not
write to the store keeps an index in a cache directory of their own, or, where that is not possible, in memory.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from hybrid.checkpoint_files import RUN_RECORD, RUNS
from hybrid.decode import decode
from hybrid.durable import make_dir
from hybrid.spec import ConfigError, RunSpec
from sweeps.columns import (
    ABSENT,
    Coded,
    Key,
    Table,
    concatenate,
    from_rows,
    read_columns,
    write_columns,
)
from sweeps.progress import say
from sweeps.store import RECORD_SCHEMA, Status, Store, StoreError, describe_os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCHEMA: Final = f"2.{RECORD_SCHEMA}"  # 2: records are checked when they are read
_RUNS: Final = "index.runs"
_METRICS: Final = "index.metrics"
_EVALS: Final = "evals"
_SETTLED_S: Final = 10.0  # clocks of file systems tick in milliseconds, and those of hosts differ by little
_ROOT: Final = Path(__file__).resolve().parent.parent
FEWEST_RUNS: Final = 200
"""Fewer runs than this are read from the store itself."""
_LOOK_PER_READ: Final = 0.02  # how long a look at a run of the index takes, where reading a record takes 1
_SHARDS_COUNTED: Final = 8
_MANY_RUNS: Final = 1000  # read in a second or so
_MAX_PROCESSES: Final = 8
_ROWS_A_TABLE: Final = 4096  # a row is larger as a mapping than in columns
_SAY_EVERY_S: Final = 10.0
_ID: Final = re.compile(r"[0-9a-f]{12}")


class _Stamp(NamedTuple):
    """What was seen of a run before it was looked into: inode and time of its directory, the time of that of its
    evaluations (-1: there is none), and the record's inode, time and size.

    A time is 0, which none is, where more may come without changing it.
    """

    inode: int
    directory_ns: int
    evals_ns: int
    record_inode: int
    record_ns: int
    record_bytes: int

    @property
    def record(self) -> tuple[int, int, int]:
        return self[3:]


def records_for(store: Store, n_runs: int) -> "Store | Index":
    """What tells soonest of so many runs: the store, which opens every record, or its index, which looks at every run
    that the store has, whether it is asked for or not."""
    if n_runs < FEWEST_RUNS or n_runs < _LOOK_PER_READ * _roughly_all_runs(store):
        return store
    return Index(store)


def _roughly_all_runs(store: Store) -> float:
    """How many runs there are, judged by a few shards: hashes fill them evenly."""
    shards = _listed(store.root / RUNS)
    some = shards[:_SHARDS_COUNTED]
    return sum(len(_listed(shard.path)) for shard in some) * len(shards) / max(len(some), 1)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A final run: a value for each column that it has, and its stamp."""

    row: Mapping[Key, Any]
    stamp: _Stamp


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """Metric lines of runs: by run, its record's stamp, where its lines begin and how many they are."""

    runs: Mapping[str, tuple[tuple[int, int, int], int, int]]
    table: Table


@final
class Index:
    """A store as it stood when this was made, or last refreshed: reads as `Store` does, at once where a run is final.

    What it returns is shared, and not to be changed.
    """

    def __init__(self, store: Store) -> None:
        """Reads the store's index, if there is one, brings it up to date with the tree, and writes it back.

        Raises StoreError for a store of a newer format.
        """
        store.check_format()
        self.store = store
        self._stamps: dict[str, _Stamp] = {}
        self._table = Table(n_rows=0, columns={})
        self._unfinished: frozenset[str] = frozenset()
        self._load()
        self.refresh()

    # --- what there is ---

    @property
    def final(self) -> tuple[str, ...]:
        """The ids of the runs that are done or diverged, in order: the rows of `table`."""
        return tuple(self._stamps)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The ids of the others that the store knows, damaged ones among them, in order."""
        return tuple(sorted(self._unfinished))

    @property
    def table(self) -> Table:
        """The final records. A column is called by the way to its value: ("status",), ("metrics", "val_loss_nats").

        What is deeper than that is one value, as is ("spec", "model"). Those of evaluations begin with "evals" and the
        evaluation's id.
        """
        return self._table

    # --- reading as a store does ---

    def status(self, run_id: str) -> Status:
        """What became of the run, as `Store.status` says."""
        at = self._rows.get(run_id)
        if at is not None:
            return "done" if self._statuses[at] == "done" else "diverged"
        return self.store.status(run_id) if run_id in self._unfinished else "new"

    def record(self, run_id: str) -> Mapping[str, Any] | None:
        """The run's record; None unless it is done or diverged. Raises StoreError where it is damaged or of a newer
        schema."""
        at = self._rows.get(run_id)
        if at is not None:
            return _Record(self._sections, at)
        return self.store.record(run_id) if run_id in self._unfinished else None

    def eval_record(self, run_id: str, eval_id: str) -> Mapping[str, Any] | None:
        """An evaluation's record; None where it was not made."""
        return self.eval_records(run_id).get(eval_id)

    def eval_records(self, run_id: str) -> Mapping[str, Mapping[str, Any]]:
        """The records of a final run's evaluations by their ids, in order; those that cannot be read are left out."""
        at = self._rows.get(run_id)
        found = {} if at is None else {id_: _Record(sections, at) for id_, sections in self._eval_sections.items()}
        return {eval_id: record for eval_id, record in found.items() if record}

    def spec(self, run_id: str) -> Mapping[str, Any] | None:
        """The run's spec as plain data; None where the run is not known. Raises StoreError where it is damaged."""
        at = self._rows.get(run_id)
        if at is not None:
            plain: Mapping[str, Any] | None = _Record(self._sections, at).get("spec")
            if plain:
                return plain
        return self.store.spec(run_id)

    def run_spec(self, run_id: str) -> RunSpec | None:
        """The run's spec; None where the run is not known.

        Raises ConfigError where this code cannot read it, StoreError where it is damaged.
        """
        at = self._rows.get(run_id)
        parts = None if at is None else self._spec_parts[at]
        if parts is not None:
            return RunSpec(**dict(zip(_spec_types(), parts, strict=True)))
        plain = self.spec(run_id)
        return None if plain is None else decode(RunSpec, plain, "spec")

    def metrics(self, run_id: str) -> list[dict[str, Any]]:
        """The run's metric lines from its beginning, as `Store.metrics` gives them; of many runs, `metric_lines` has
        them sooner."""
        return self.store.metrics(run_id, self._attempt(run_id))

    def metric_lines(
        self, run_ids: Iterable[str], names: Iterable[str] | None = None
    ) -> "tuple[dict[str, int], Table, dict[str, str]]":
        """The metric lines of runs: how many each has, in the order asked for, all of them in this order, or these of
        their columns, and what is wrong with those that cannot be read, by run.

        Those of final runs that the index does not hold yet are read from the tree, and kept.
        """
        import numpy as np

        asked = list(dict.fromkeys(run_ids))
        only: set[Key] | None = None if names is None else {(name,) for name in names}
        shards: dict[str, list[str]] = {}
        for run_id in asked:
            shards.setdefault(run_id[:2], []).append(run_id)
        problems: dict[str, str] = {}
        places: dict[str, tuple[int, int]] = {}
        tables, at = [], 0
        progress = _Progress()
        with self._helped(shards) as ordered:
            for shard in ordered:
                progress(f"reading metric lines: {len(places):,} of {len(asked):,} runs")
                lines = self._lines(shard, shards[shard], only, problems)
                places |= {run_id: (at + begin, n) for run_id, (_, begin, n) in lines.runs.items()}
                tables.append(lines.table)
                at += lines.table.n_rows
        counts = {run_id: places[run_id][1] for run_id in asked if run_id in places}
        rows = [np.arange(places[run_id][0], places[run_id][0] + n) for run_id, n in counts.items()]
        table = concatenate(tables)
        return counts, table.take(np.concatenate(rows)) if rows else table, problems

    def metrics_of(
        self, run_ids: Iterable[str], names: Iterable[str] | None = None
    ) -> Callable[[str], list[dict[str, Any]]]:
        """`metrics` of these runs, or `names` of them, read at once; of one whose lines cannot be read, an empty list.

        What it gives of other runs is an empty list, too.
        """
        counts, lines, _ = self.metric_lines(run_ids, names)
        ends = dict(zip(counts, itertools.accumulate(counts.values()), strict=True))

        def metrics(run_id: str) -> list[dict[str, Any]]:
            end = ends.get(run_id, 0)
            own = lines.take(range(end - counts.get(run_id, 0), end))
            columns = [(key[0], column.values) for key, column in own.columns.items()]
            return [{name: values[i] for name, values in columns if values[i] is not ABSENT} for i in range(own.n_rows)]

        return metrics

    # --- keeping up ---

    def refresh(self) -> None:
        """Look at what has changed in the tree since."""
        known = self._stamps
        kept: dict[str, _Stamp] = {}
        found: dict[str, _Stamp] = {}
        rows: list[Mapping[Key, Any]] = []
        tables = [self._table]
        unfinished: set[str] = set()
        progress = _Progress()
        for entry in self._run_entries():
            run_id = entry.name
            stamp = known.get(run_id)
            try:
                if stamp is not None and _is_unchanged(entry, stamp):
                    kept[run_id] = stamp
                    continue
                progress(f"reading records: {len(found):,} so far")
                looked = _look(self.store, run_id, entry.path)
            except FileNotFoundError:
                continue  # moved away just now
            except OSError:
                looked = None  # not ours to read: the store says what is wrong
            if looked is None:
                unfinished.add(run_id)
            else:
                found[run_id] = looked.stamp
                rows.append(looked.row)
            if len(rows) == _ROWS_A_TABLE:
                tables.append(from_rows(rows))
                rows = []
        self._unfinished = frozenset(unfinished)
        if len(kept) == len(known) and not found:
            return
        at = {run_id: i for i, run_id in enumerate((*known, *found))}
        stamps = kept | found
        order = sorted(stamps)
        self._table = concatenate([*tables, from_rows(rows)]).take([at[run_id] for run_id in order])
        self._stamps = {run_id: stamps[run_id] for run_id in order}
        for name in ("_rows", "_statuses", "_attempts", "_sections", "_eval_sections", "_spec_parts"):
            self.__dict__.pop(name, None)  # derived from the rows before
        if self._stamps != known:
            facts = [[run_id, *stamp] for run_id, stamp in self._stamps.items()]
            _write(self.store, _RUNS, facts, self._table)

    def _run_entries(self) -> "Iterator[os.DirEntry[str]]":
        """The directories of all runs. Raises StoreError where they cannot be listed."""
        try:
            for shard in _listed(self.store.root / RUNS):
                if shard.is_dir():
                    yield from (entry for entry in _listed(shard.path) if _ID.fullmatch(entry.name) and entry.is_dir())
        except OSError as error:
            raise StoreError(f"{error.filename}: cannot be listed ({describe_os_error(error)})") from error

    def _load(self) -> None:
        """Whichever index of the store has the most runs in it."""
        for place in _places(self.store):
            with contextlib.suppress(OSError, ValueError, TypeError):
                facts, table = read_columns(place / _RUNS, _SCHEMA)
                stamps = {run_id: _Stamp(*stamp) for run_id, *stamp in facts}
                if len(stamps) == table.n_rows and len(stamps) > len(self._stamps):
                    self._stamps, self._table = stamps, table

    # --- metric lines ---

    @contextlib.contextmanager
    def _helped(self, shards: Mapping[str, list[str]]) -> Iterator[Iterator[str]]:
        """The shards, those last that other processes are reading meanwhile, where many runs are to be read.

        What such a process keeps is found there; what it does not, is read here.
        """
        places = _places(self.store)
        unread = [shard for shard in shards if not any((place / _METRICS / shard).exists() for place in places)]
        helpers: dict[subprocess.Popen[str], list[str]] = {}
        if sum(len(shards[shard]) for shard in unread) >= _MANY_RUNS:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            processes = min(cores, _MAX_PROCESSES, len(unread))
            for i in range(1, processes):
                theirs = unread[i::processes]
                helper = _start_helper(self.store, [run_id for shard in theirs for run_id in shards[shard]])
                if helper is not None:
                    helpers[helper] = theirs
        helped = {shard for theirs in helpers.values() for shard in theirs}

        def ordered() -> Iterator[str]:
            yield from (shard for shard in shards if shard not in helped)
            for helper, theirs in helpers.items():
                helper.wait()
                yield from theirs

        try:
            yield ordered()
        finally:
            for helper in helpers:
                if helper.poll() is None:
                    helper.kill()
                helper.wait()

    def _lines(self, shard: str, ids: Iterable[str], only: set[Key] | None, problems: dict[str, str]) -> _Lines:
        """The lines of these runs of one shard; other runs' may be among them."""
        there = self._kept_lines(shard, only)
        missing = [run_id for run_id in ids if run_id not in there.runs]
        if not missing:
            return there
        read: dict[str, list[dict[str, Any]]] = {}
        for run_id in missing:
            try:
                read[run_id] = self.metrics(run_id)
            except StoreError as error:
                problems[run_id] = str(error)
            except (LookupError, TypeError) as error:
                problems[run_id] = f"run {run_id}: its metric lines are damaged ({error!r})"
        keep = {run_id: lines for run_id, lines in read.items() if run_id in self._stamps}
        together = self._with(there, read)
        if keep:
            all_kept = together
            if only is not None or len(keep) < len(read):
                all_kept = self._with(self._kept_lines(shard, None), keep)
            facts = [[run_id, record, begin, n] for run_id, (record, begin, n) in all_kept.runs.items()]
            _write(self.store, f"{_METRICS}/{shard}", facts, all_kept.table)
        columns = {key: column for key, column in together.table.columns.items() if only is None or key in only}
        return _Lines(runs=together.runs, table=Table(n_rows=together.table.n_rows, columns=columns))

    def _with(self, lines: _Lines, more: Mapping[str, list[dict[str, Any]]]) -> _Lines:
        """The lines of all of them."""
        runs, at = dict(lines.runs), lines.table.n_rows
        for run_id, own in more.items():
            stamp = self._stamps.get(run_id)
            runs[run_id] = ((0, 0, 0) if stamp is None else stamp.record, at, len(own))
            at += len(own)
        return _Lines(runs=runs, table=concatenate([lines.table, from_rows([x for own in more.values() for x in own])]))

    def _kept_lines(self, shard: str, only: set[Key] | None) -> _Lines:
        """What an index has of a shard, of the runs whose records are those that it was made of."""
        import numpy as np

        best = _Lines(runs={}, table=Table(n_rows=0, columns={}))
        for place in _places(self.store):
            with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
                facts, table = read_columns(place / _METRICS / shard, _SCHEMA, only)
                runs: dict[str, tuple[tuple[int, int, int], int, int]] = {}
                rows: list[NDArray[np.intp]] = []
                at = 0
                for run_id, record, begin, n in facts:
                    stamp = self._stamps.get(run_id)
                    if stamp is not None and stamp.record == tuple(record):
                        runs[run_id] = stamp.record, at, n
                        rows.append(np.arange(begin, begin + n))
                        at += n
                if len(runs) > len(best.runs):
                    whole = len(runs) == len(facts) and at == table.n_rows
                    best = _Lines(runs=runs, table=table if whole else table.take(np.concatenate(rows)))
        return best

    # --- rows ---

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {run_id: i for i, run_id in enumerate(self._stamps)}

    @cached_property
    def _statuses(self) -> list[Any]:
        return self._table.values(("status",))

    @cached_property
    def _attempts(self) -> list[Any]:
        return self._table.values(("attempt",))

    def _attempt(self, run_id: str) -> int | None:
        at = self._rows.get(run_id)
        attempt = None if at is None else self._attempts[at]
        return attempt if isinstance(attempt, int) else None

    @cached_property
    def _sections(self) -> "_Sections":
        return _by_section({key: key for key in self._table.columns if key[0] != _EVALS}, self._table)

    @cached_property
    def _eval_sections(self) -> "dict[str, _Sections]":
        ids = sorted({key[1] for key in self._table.columns if key[0] == _EVALS})
        return {
            eval_id: _by_section(
                {key[2:]: key for key in self._table.columns if key[:2] == (_EVALS, eval_id)}, self._table
            )
            for eval_id in ids
        }

    @cached_property
    def _spec_parts(self) -> list[tuple[Any, ...] | None]:
        """Of each row the fields of its spec, whose distinct values are few; None where there is more to say of it."""
        types = _spec_types()
        columns = [self._decoded(name, kind) for name, kind in types.items()]
        strange = [
            self._table.values(key)
            for key in self._table.columns
            if key[0] == "spec" and key[1:] not in {(name,) for name in types}
        ]
        return [
            None
            if any(part is ABSENT for part in parts) or any(values[i] is not ABSENT for values in strange)
            else parts
            for i, parts in enumerate(zip(*columns, strict=True))
        ]

    def _decoded(self, name: str, kind: Any) -> list[Any]:
        """A field of all specs; ABSENT where it cannot be read, and where there is none although there should be."""

        def decoded(part: Any) -> Any:
            if part is ABSENT:
                return _birth_values().get(name, ABSENT)
            try:
                return decode(kind, part)
            except ConfigError:
                return ABSENT

        column = self._table.columns.get(("spec", name))
        if isinstance(column, Coded):
            parts = [*map(decoded, column.distinct), decoded(ABSENT)]
            return [parts[code] for code in column.codes.tolist()]
        values = self._table.values(("spec", name))
        of = {value: decoded(value) for value in set(values)}
        return [of[value] for value in values]


@final
class _Section:
    """A part of the records: columns of it under their names, or, where it was no mapping, in `alone`."""

    def __init__(self, keys: Mapping[str, Key], alone: Key | None, table: Table) -> None:
        self._keys = keys
        self._alone_key = alone
        self._table = table

    def has(self, row: int) -> bool:
        return self.is_whole or self.at(row) is not ABSENT

    def at(self, row: int) -> Any:
        """What it is in a row; ABSENT where that has none of it."""
        if self._alone and self._alone[row] is not ABSENT:
            return self._alone[row]
        if self.is_whole or any(values[row] is not ABSENT for values in self.columns.values()):
            return _Part(self, row)
        return ABSENT

    def row(self, row: int) -> dict[str, Any]:
        """A row's values under their names."""
        pairs = zip(self._keys, self._rows[row], strict=True)
        return dict(pairs) if self.is_whole else {name: value for name, value in pairs if value is not ABSENT}

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        return {name: self._table.values(key) for name, key in self._keys.items()}

    @cached_property
    def is_whole(self) -> bool:
        """Whether no row lacks a value."""
        return bool(self._keys) and not any(ABSENT in values for values in self.columns.values())

    @cached_property
    def _alone(self) -> list[Any]:
        return [] if self._alone_key is None else self._table.values(self._alone_key)

    @cached_property
    def _rows(self) -> list[tuple[Any, ...]]:
        return list(zip(*self.columns.values(), strict=True))


_Sections = dict[str, _Section]


@cache
def _spec_types() -> dict[str, Any]:
    hints = typing.get_type_hints(RunSpec)
    return {field.name: hints[field.name] for field in dataclasses.fields(RunSpec)}


@cache
def _birth_values() -> dict[str, Any]:
    """Of the fields that may be left out."""
    fields = dataclasses.fields(RunSpec)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _by_section(keys: Mapping[Key, Key], table: Table) -> _Sections:
    """`keys`: what the columns are called in a record, and in the table."""
    names: dict[str, dict[str, Key]] = {}
    alone: dict[str, Key] = {}
    for key, of_table in keys.items():
        inside = names.setdefault(key[0], {})
        if len(key) > 1:
            inside[key[1]] = of_table
        else:
            alone[key[0]] = of_table
    return {section: _Section(inside, alone.get(section), table) for section, inside in names.items()}


@final
class _Record(Mapping[str, Any]):
    """A row as the mapping that it was. Its metrics, most asked for, are made into one; its other parts are looked up
    in the columns."""

    def __init__(self, sections: _Sections, row: int) -> None:
        self._sections = sections
        self._row = row

    def __getitem__(self, name: str) -> Any:
        section = self._sections[name]
        value = section.at(self._row)
        if value is ABSENT:
            raise KeyError(name)
        return section.row(self._row) if name == "metrics" and isinstance(value, _Part) else value

    def __iter__(self) -> Iterator[str]:
        return (name for name, section in self._sections.items() if section.has(self._row))

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@final
class _Part(Mapping[str, Any]):
    """A mapping in a record."""

    def __init__(self, section: _Section, row: int) -> None:
        self._section = section
        self._row = row

    def __getitem__(self, name: str) -> Any:
        value = self._section.columns[name][self._row]
        if value is ABSENT:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._section.row(self._row))

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._section.row(self._row))


def row_of(record: Mapping[str, Any], prefix: Key = ()) -> dict[Key, Any]:
    """A record as a row of the index's table: its values, and those of the mappings in it."""
    row: dict[Key, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            row.update({(*prefix, key, name): inner for name, inner in value.items()})
        else:
            row[*prefix, key] = value
    return row


class _Progress:
    """A line now and then where it takes long."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, message: str) -> None:
        if time.monotonic() - self._said > _SAY_EVERY_S:
            self._said = time.monotonic()
            say(message)


# --- the tree -----------------------------------------------------------------------------------


def _listed(path: Path | str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_unchanged(entry: "os.DirEntry[str]", stamp: _Stamp) -> bool:
    status = entry.stat()
    if status.st_ino != stamp.inode or status.st_mtime_ns != stamp.directory_ns:
        return False
    return stamp.evals_ns < 0 or _evals_ns(entry.path) == stamp.evals_ns


def _evals_ns(run_path: str) -> int:
    """When the directory of a run's evaluations was last changed; -1 where there is none."""
    try:
        return os.stat(f"{run_path}/{_EVALS}").st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _look(store: Store, run_id: str, path: str) -> _Found | None:
    """A run's record and evaluations; None where it has no record, or one that this version cannot read.

    Times first: what comes after they were taken is then seen to. Raises FileNotFoundError where the run is gone.
    """
    directory, evals_ns = os.stat(path), _evals_ns(path)
    try:
        file = os.stat(f"{path}/{RUN_RECORD}")
        record = store.record(run_id)
    except (FileNotFoundError, StoreError):
        return None
    if record is None:
        return None
    row = row_of(record)
    all_there = True
    for entry in _listed(f"{path}/{_EVALS}") if evals_ns >= 0 else ():
        with contextlib.suppress(StoreError):
            made = store.eval_record(run_id, entry.name)
            if made is not None:
                row |= row_of(made, (_EVALS, entry.name))
                continue
        all_there = False  # yet
    latest_ns = time.time_ns() - round(_SETTLED_S * 1e9)
    return _Found(
        row=row,
        stamp=_Stamp(
            inode=directory.st_ino,
            directory_ns=directory.st_mtime_ns if directory.st_mtime_ns < latest_ns else 0,
            evals_ns=evals_ns if evals_ns < latest_ns and all_there else 0,
            record_inode=file.st_ino,
            record_ns=file.st_mtime_ns,
            record_bytes=file.st_size,
        ),
    )


# --- many runs ----------------------------------------------------------------------------------


def _start_helper(store: Store, run_ids: Iterable[str]) -> "subprocess.Popen[str] | None":
    """A process that reads these runs' metric lines into the index; None where there can be none.

    A new one, not a fork: threads may be running here, and where this is a script it must not begin again.
    """
    code_path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    try:
        helper = subprocess.Popen(
            [sys.executable, "-m", "sweeps.index", str(store.root.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": code_path},
        )
    except OSError:
        return None
    assert helper.stdin is not None
    with contextlib.suppress(BrokenPipeError), helper.stdin as told:
        told.write("\n".join(run_ids))
    return helper


def _help(root: Path, run_ids: Iterable[str]) -> None:
    index = Index(Store(root))
    shards: dict[str, list[str]] = {}
    for run_id in run_ids:
        shards.setdefault(run_id[:2], []).append(run_id)
    for ids in shards.values():
        index.metric_lines(ids)


# --- the files ----------------------------------------------------------------------------------


def _places(store: Store) -> list[Path]:
    """Where an index of the store may be: in it, else where this user's caches are."""
    places = [store.root]
    with contextlib.suppress(RuntimeError):  # a user without a home
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        key = hashlib.sha256(str(store.root.absolute()).encode()).hexdigest()[:16]
        places.append(base / "hybrid-ablations" / f"index-{key}")
    return places


def _write(store: Store, name: str, facts: Any, table: Table) -> None:
    """Write a file of the index where that is possible: best effort, as without it all is read again."""
    for place in _places(store):
        with contextlib.suppress(OSError):
            make_dir((place / name).parent)
            write_columns(place / name, _SCHEMA, facts, table)
            return


if __name__ == "__main__":
    _help(Path(sys.argv[1]), sys.stdin.read().split())

"""Runs and their metric lines as pandas DataFrames, for notebooks and other programs.

    from analysis.frame import metrics, runs

    runs("store")                     every run of the store, a row each
    runs("store", "demo")             every cell of a request, those without a result too
    metrics("store", "demo")          the metric lines of its runs, a row a line

Read through the store's index (`sweeps.index`). pandas is imported when called.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from analysis.load import open_store, request_of
from hybrid.cost import layout_of
from hybrid.decode import decode, did_you_mean
from hybrid.spec import ConfigError, ModelSpec
from sweeps.columns import ABSENT, Coded, Column, Key, Table, column_of, concatenate, from_rows
from sweeps.hours import S_AN_HOUR, devices
from sweeps.index import Index, row_of
from sweeps.store import Request, Store, StoreError, is_final
from sweeps.tune import UNTUNED, choose, settle

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from sweeps.store import Cell, CellStatus

Source = Store | Index | Path | str
_PROVENANCE: Final = (
    "host",
    "device",
    "device_name",
    "user",
    "git_commit",
    "git_diff_sha",
    "started_at",
    "finished_at",
    "predicted_memory_bytes",
    "peak_memory_bytes",
)


def runs(source: Source, request: Request | str | None = None, overrides: Sequence[str] = ()) -> "pd.DataFrame":
    """A row a run of the store, in the order of their ids; or a row a cell of a request, in its order.

    `source` is a store, its directory, or its index; `request` a stored one, or its sweep's name with its `overrides`.

        run_id status note    the note: what is wrong, why it failed, which metrics are NaN; else ""
        name row seed axes.* tuned.*     what a request's cells are called there
        layout spec.*         the settings that differ between these runs; those of blocks by kind, as in
                              spec.model.mamba2.d_state, a list where blocks of a kind differ
        ...                   each metric of the records, under its own name
        eval.<kind>.*         metrics of evaluations, eval.<kind>(<what is set of it>).* in full
        cost.*                as in the record
        device_hours          of all devices that trained it, with what its trunk took
        own_device_hours      without what its trunk took, which it shares with other runs
        provenance.*          what is most asked for; `Index.record` has the rest

    What a run does not have is missing, as pandas has it. Raises ConfigError where there is no such store or request,
    StoreError where the store is of a newer format.
    """
    import pandas as pd

    index = _index(source)
    told: dict[str, list[Any]] = {}
    if request is None:
        ids: list[str | None] = [*sorted((*index.final, *index.unfinished))]
    else:
        cells = _cells(index, request, overrides)
        ids = [cell.run_id for cell in cells]
        told = _told_of(cells)
    statuses: list[CellStatus] = [UNTUNED if run_id is None else index.status(run_id) for run_id in ids]
    table, problems = _rows(index, ids, statuses)
    columns = [_columns(table, *keys) for keys in (("metrics",), ("cost",))]
    frame: dict[str, Any] = {"run_id": ids, "status": statuses, "note": _notes(index, ids, statuses, table, problems)}
    frame |= told | _settings(table)
    frame |= {key if key not in frame else f"metrics.{key}": array for key, array in columns[0].items()}
    frame |= {f"cost.{name}": array for name, array in columns[1].items()}
    frame |= _evaluations(table) | _device_hours(table)
    made = _columns(table, "provenance")
    frame |= {f"provenance.{name}": made[name] for name in _PROVENANCE if name in made}
    return pd.DataFrame(frame)


def metrics(
    source: Source,
    of: Request | str | Iterable[str] | None = None,
    names: Iterable[str] | None = None,
    overrides: Sequence[str] = (),
) -> "pd.DataFrame":
    """A row a metric line: run_id, step, tokens, and what else was measured, or `names` of it.

    Of all runs of the store, of those of a request, or of an iterable of run ids; runs without a result too, as far as
    they have come. What a line does not say is missing, as pandas has it. `attrs["problems"]`: by run id, why lines
    could not be read. Raises ConfigError for a metric that no line has, and otherwise as `runs`.
    """
    import numpy as np
    import pandas as pd

    index = _index(source)
    if of is None:
        ids = sorted((*index.final, *index.unfinished))
    elif isinstance(of, Request | str):
        ids = [cell.run_id for cell in _cells(index, of, overrides) if cell.run_id is not None]
    else:
        ids = list(of)
    wanted = None if names is None else list(dict.fromkeys(("step", *names)))
    counts, table, problems = index.metric_lines(ids, wanted)
    unknown = [name for name in wanted or () if (name,) not in table.columns]
    if unknown and table.n_rows:
        raise ConfigError(_unknown(index, ids, unknown))
    keys = [(name,) for name in wanted] if wanted is not None else _in_habit(table)
    codes = np.repeat(np.arange(len(counts)), list(counts.values()))
    frame: dict[str, Any] = {"run_id": pd.Categorical.from_codes(codes, list(counts))}
    for key in keys:
        column = table.columns.get(key)
        frame[key[0]] = np.full(table.n_rows, np.nan) if column is None else _array(column)
    result = pd.DataFrame(frame)
    result.attrs["problems"] = problems
    return result


# --- what is asked for --------------------------------------------------------------------------


def _index(source: Source) -> Index:
    if isinstance(source, Index):
        source.refresh()
        return source
    return Index(source if isinstance(source, Store) else open_store(Path(source)))


def _cells(index: Index, request: Request | str, overrides: Sequence[str]) -> "tuple[Cell, ...]":
    """The cells of a request, with the runs that tuning chose."""
    if isinstance(request, str):
        request = request_of(index.store, request, overrides)
    return settle(request, choose(request, index)).cells


def _told_of(cells: "Sequence[Cell]") -> dict[str, list[Any]]:
    told: dict[str, list[Any]] = {
        "name": [cell.name for cell in cells],
        "row": [cell.row for cell in cells],
        "seed": [cell.seed for cell in cells],
    }
    for what, of in (("axes", [cell.axes for cell in cells]), ("tuned", [cell.tuned for cell in cells])):
        for name in dict.fromkeys(name for values in of for name in values):
            told[f"{what}.{name}"] = [values.get(name) for values in of]
    return told


def _rows(index: Index, ids: Sequence[str | None], statuses: "Sequence[CellStatus]") -> tuple[Table, dict[str, str]]:
    """The records of these runs, in this order; of those without one, the spec, as far as it can be read.

    Also what is wrong with those that cannot.
    """
    problems: dict[str, str] = {}
    rows = {run_id: i for i, run_id in enumerate(index.final)}
    others: list[dict[Key, Any]] = []
    at: list[int] = []
    for run_id, status in zip(ids, statuses, strict=True):
        row = None if run_id is None else rows.get(run_id)
        if row is not None:
            at.append(row)
            continue
        plain: Mapping[str, Any] = {}
        if run_id is not None and status != "new":
            try:
                # It may have come to its end just now.
                plain = (index.record(run_id) if is_final(status) else None) or {"spec": index.spec(run_id) or {}}
            except StoreError as error:
                problems[run_id] = str(error)
        at.append(len(rows) + len(others))
        others.append(row_of(plain))
    return concatenate([index.table, from_rows(others)]).take(at), problems


def _notes(
    index: Index,
    ids: Sequence[str | None],
    statuses: "Sequence[CellStatus]",
    table: Table,
    problems: Mapping[str, str],
) -> list[str]:
    notes: list[list[str]] = [[] for _ in ids]
    for i, (run_id, status) in enumerate(zip(ids, statuses, strict=True)):
        if run_id is None or is_final(status) or status == "new":
            continue
        if run_id in problems:
            notes[i].append(problems[run_id])
        if status == "damaged":
            try:
                index.record(run_id)
            except StoreError as damage:
                notes[i].append(str(damage))
        elif (error := index.store.error(run_id, index.store.last_attempt(run_id))) is not None:
            notes[i].append(f"{error.get('class')}: {error.get('message')}")
    for key, column in table.columns.items():
        if key[0] == "metrics" and not isinstance(column, Coded) and column.array.dtype.kind == "f":
            for i in (column.array != column.array).nonzero()[0].tolist():
                notes[i].append(f"{key[-1]} is NaN")
    return ["; ".join(parts) for parts in notes]


# --- columns ------------------------------------------------------------------------------------


def _array(column: Column) -> "NDArray[Any]":
    """A column for pandas: whole numbers and truth where every row has them, numbers with NaN, else objects."""
    import numpy as np

    if not isinstance(column, Coded):
        return column.array if bool((column.states == 3).all()) else column.floats()
    distinct = column.distinct
    whole = len(column) > 0 and bool((column.codes >= 0).all())
    if distinct and all(isinstance(value, bool) for value in distinct) and whole:
        return np.array(distinct)[column.codes]
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in distinct):
        floats = np.array([np.nan if value is None else float(value) for value in distinct] + [np.nan])
        return floats[column.codes]
    objects = np.empty(len(distinct) + 1, object)  # the last one, None, is what -1 finds
    for i, value in enumerate(distinct):
        objects[i] = value
    return objects[column.codes]


def _columns(table: Table, *prefix: str) -> "dict[str, NDArray[Any]]":
    """Columns whose names begin so, that some row has."""
    n = len(prefix)
    return {
        ".".join(key[n:]): _array(column)
        for key, column in table.columns.items()
        if key[:n] == prefix and len(key) > n and _has_any(column)
    }


def _has_any(column: Column) -> bool:
    return bool((column.codes >= 0).any() if isinstance(column, Coded) else (column.states > 0).any())


def _differs(column: Column) -> bool:
    """Whether two rows have different values, or some have none."""
    if isinstance(column, Coded):
        return len(column) > 0 and bool((column.codes != column.codes[0]).any())
    return len(column) > 0 and bool(((column.array != column.array[0]) | (column.states != column.states[0])).any())


def _settings(table: Table) -> "dict[str, NDArray[Any]]":
    """The layout, and the settings that differ."""
    found: dict[str, NDArray[Any]] = {}
    for key, column in table.columns.items():
        if key[0] != "spec" or len(key) != 2:
            continue
        name = key[1]
        parts: dict[str, Column]
        if not isinstance(column, Coded):
            parts = {"": column}
        elif name == "model":
            found = {"layout": _array(_derived(column, _layout)), **found}
            parts = _parts(column, _flat_model)
        else:
            parts = _parts(column, lambda value: dict(_flat(value)))
        for inner, part in parts.items():
            if _differs(part):
                found[f"spec.{name}.{inner}" if inner else f"spec.{name}"] = _array(part)
    return found


def _parts(column: Coded, flat: Callable[[Any], Mapping[str, Any]]) -> dict[str, Column]:
    """The settings in a column of mappings, each a column of its own."""
    flats = [flat(value) for value in column.distinct]
    names = dict.fromkeys(name for one in flats for name in one)
    return {name: _recoded(column, [one.get(name, ABSENT) for one in flats]) for name in names}


def _derived(column: Coded, of: Callable[[Any], Any]) -> Column:
    return _recoded(column, [of(value) for value in column.distinct])


def _recoded(column: Coded, values: Sequence[Any]) -> Column:
    """The column with its distinct values replaced."""
    return Table(n_rows=len(values) + 1, columns={(): column_of([*values, ABSENT])}).take(column.codes).columns[()]


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted settings, but for those that are null; a list stays one, as the text that JSON has for it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else name)
    elif value is not None:
        yield prefix, json.dumps(value) if isinstance(value, list) else value


def _flat_model(model: Any) -> dict[str, Any]:
    """A model's settings; those of its mixers and ffns by kind, with the distinct values in the order of the blocks."""
    if not isinstance(model, dict):
        return {"": model}
    flat: dict[str, Any] = {}
    by_kind: dict[str, list[Any]] = {}
    for name, value in model.items():
        if name != "blocks":
            flat |= dict(_flat(value, name))
    for block in model.get("blocks", ()):
        for what, part in block.items():
            if not isinstance(part, dict):
                by_kind.setdefault(what, []).append(part)
                continue
            of = str(part.get("kind", what))
            for name, value in _flat({key: inner for key, inner in part.items() if key != "kind"}, of):
                by_kind.setdefault(name, []).append(value)
    for name, values in by_kind.items():
        distinct = [value for i, value in enumerate(values) if value not in values[:i]]
        flat[name] = distinct[0] if len(distinct) == 1 else json.dumps(distinct)
    return flat


def _layout(model: Any) -> str | None:
    try:
        return layout_of(decode(ModelSpec, model, "spec.model"))
    except ConfigError:
        return None  # another revision's


def _evaluations(table: Table) -> "dict[str, NDArray[Any]]":
    found: dict[str, NDArray[Any]] = {}
    for eval_id in sorted({key[1] for key in table.columns if key[0] == "evals"}):
        told = {
            key[3]: _one(table.values(key))
            for key in table.columns
            if key[:3] == ("evals", eval_id, "eval") and len(key) == 4
        }
        kind = told.pop("kind", None) or eval_id
        given = ", ".join(f"{name}={_brief(value)}" for name, value in told.items() if value is not None)
        label = f"eval.{kind}({given})" if given else f"eval.{kind}"
        for name, array in _columns(table, "evals", eval_id, "metrics").items():
            key = f"{label}.{name}"
            found[key if key not in found else f"eval.{eval_id}.{name}"] = array
    return found


def _brief(value: Any) -> Any:
    """What is set of an evaluation, as a column is called; of tasks their names."""
    return (
        [one.get("task", one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value
    )


def _one(values: Sequence[Any]) -> Any:
    """The value that the rows which have one share."""
    return next((value for value in values if value is not None and value is not ABSENT), None)


def _device_hours(table: Table) -> "dict[str, NDArray[np.float64]]":
    import numpy as np

    wall = table.columns.get(("metrics", "wall_s"))
    if wall is None:
        return {}
    execs, trunks = table.columns.get(("provenance", "exec")), table.columns.get(("provenance", "trunk"))
    hours = np.asarray(_array(wall), np.float64) / S_AN_HOUR
    together = np.ones(table.n_rows)
    if isinstance(execs, Coded):
        together = _array(_derived(execs, lambda execution: float(devices({"exec": execution}))))
        together = np.where(np.isnan(together.astype(np.float64)), 1.0, together)
    shared = np.zeros(table.n_rows)
    if isinstance(trunks, Coded):
        shared = np.nan_to_num(np.asarray(_array(_derived(trunks, _trunk_s)), np.float64)) / S_AN_HOUR
    return {"device_hours": hours * together, "own_device_hours": (hours - shared) * together}


def _trunk_s(trunk: Any) -> float:
    return float(trunk["wall_s"]) if isinstance(trunk, dict) else 0.0


# --- metric lines -------------------------------------------------------------------------------


def _in_habit(table: Table) -> list[Key]:
    """Step and tokens first."""
    first: list[Key] = [("step",), ("tokens",)]
    return [*(key for key in first if key in table.columns), *(key for key in table.columns if key not in first)]


def _unknown(index: Index, ids: Sequence[str], unknown: Sequence[str]) -> list[str]:
    known = [key[0] for key in index.metric_lines(ids)[1].columns]
    return [f"metric = {name}: no line of these runs has it{did_you_mean(name, known)}" for name in unknown]

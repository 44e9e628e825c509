"""Tasks of LM Evaluation Harness: which it has, and local ones, a YAML file and its data in JSONL beside it.

A local task is the harness's own format, as far as it is all said in these files: questions in lines of JSON, the
prompt, the choices and the answer each the name of one of their fields, or a Jinja template over them. Files are
checked here, before anything is spent; the harness itself is not imported.
"""

import difflib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final

from hybrid.decode import did_you_mean
from hybrid.eval_spec import Right
from hybrid.spec import ConfigError

METRICS: Final[Mapping[str, tuple[Right, ...]]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes"),
    "loglikelihood": ("acc",),
    "generate_until": ("exact_match",),
}
"""What can be a right answer, by how a task is answered."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
SPLITS: Final = ("test_split", "validation_split", "training_split", "fewshot_split")
_TEMPLATES: Final = ("doc_to_text", "doc_to_target", "doc_to_choice")
_REQUIRED: Final = ("task", "dataset_path", "dataset_kwargs", "output_type", "doc_to_text", "doc_to_target")
_OPTIONAL: Final = (
    *SPLITS,
    *("doc_to_choice", "description", "target_delimiter", "fewshot_delimiter", "fewshot_config", "gen_prefix"),
    *("generation_kwargs", "metric_list", "filter_list", "num_fewshot", "tag", "task_alias", "metadata"),
)
_TASK_LINE: Final = re.compile(rb"^task:[ \t]*['\"]?([^\s'\"#]+)", re.MULTILINE)


@final
@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """What a local task is called, and its files: the YAML, then the data in the order in which that names them.

    `output_type` is how it is answered; `has_shots` whether there are answered questions beside those that are asked.
    """

    name: str
    files: tuple[str, ...]
    output_type: str
    has_shots: bool


@final
@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """What the YAML of a local task says; `data` are the file names of its splits."""

    settings: Mapping[str, Any]
    data: Mapping[str, str]

    @property
    def name(self) -> str:
        return str(self.settings["task"])


def is_local(task: str) -> bool:
    """Whether a task is given by its file."""
    return "/" in task or task.endswith((".yaml", ".yml"))


def read_local_task(path: str, where: str) -> LocalTask:
    """The task of a YAML file, checked with its data. Raises ConfigError with all that is wrong."""
    file = parse_task(_content(Path(path), where, "a task's YAML"), f"{where} = {path}")
    fields: set[str] | None = None
    paths = [str(Path(path).parent / name) for name in file.data.values()]
    for split, data_path in zip(file.data, paths, strict=True):
        at = f"{where} = {path}: dataset_kwargs.data_files.{split}"
        rows = parse_rows(_content(Path(data_path), at, "questions in lines of JSON"), f"{at} = {data_path}")
        fields = set(rows[0]) if fields is None else fields & set(rows[0])
    problems = list(_template_problems(file.settings, fields or set(), f"{where} = {path}"))
    if problems:
        raise ConfigError(problems)
    shots = file.settings.get("fewshot_config") or {}
    return LocalTask(
        name=file.name,
        files=(path, *paths),
        output_type=str(file.settings["output_type"]),
        has_shots=has_shots(
            test=file.settings.get("test_split"),
            validation=file.settings.get("validation_split"),
            training=file.settings.get("training_split"),
            shots=shots.get("split") or file.settings.get("fewshot_split"),
            samples=bool(shots.get("samples")),
        ),
    )


def has_shots(
    *, test: str | None, validation: str | None, training: str | None, shots: str | None, samples: bool
) -> bool:
    """Whether shots of a task with these splits are never the question that is asked.

    The harness takes them from the split for shots, else from those written down in the task, else from the training,
    validation or test split, the first that there is; and leaves out the question itself where it is told to take
    them from the test split.
    """
    if shots is not None:
        return shots != (test or validation) or test is not None
    return samples or training is not None or (validation is not None and test not in (None, validation))


def parse_task(content: bytes, where: str) -> TaskFile:
    """Read a local task's YAML. Raises ConfigError with all that is wrong with it."""
    import yaml

    try:
        settings = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        if "!function" in what:
            what = "!function: expected fields and Jinja templates: code is not part of a task's files"
        raise ConfigError(f"{where}: {what}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} = {settings!r}: expected settings: {', '.join(_REQUIRED)}")
    problems = [f"{where}: {name}: missing" for name in _REQUIRED if settings.get(name) is None]
    for name in settings:
        if name == "include":
            problems.append(f"{where}: include: expected a task that is all in one file")
        elif name not in (*_REQUIRED, *_OPTIONAL):
            problems.append(f"{where}: {name}: unknown setting{did_you_mean(name, (*_REQUIRED, *_OPTIONAL))}")
    problems += [f"{where}: {problem}" for problem in _setting_problems(settings)]
    if problems:
        raise ConfigError(problems)
    return TaskFile(settings=settings, data=dict(settings["dataset_kwargs"]["data_files"]))


def _setting_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the settings that are there."""
    if (name := settings.get("task")) is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
        yield f"task = {name!r}: expected a name of letters, digits, _, - and ."
    if (path := settings.get("dataset_path")) not in (None, "json"):
        yield f"dataset_path = {path!r}: expected json, with files in dataset_kwargs.data_files"
    if (output := settings.get("output_type")) is not None and output not in METRICS:
        yield f"output_type = {output!r}: its answers are not right or wrong{did_you_mean(output, METRICS)}"
    if output == "multiple_choice" and settings.get("doc_to_choice") is None:
        yield "doc_to_choice: missing; multiple_choice has choices"
    # Of others some are fetched from the hub, with their code.
    metrics = (*METRICS.get(str(output), ()), *(("perplexity",) if output == "loglikelihood" else ()))
    for entry in settings.get("metric_list") or ():
        metric = entry.get("metric") if isinstance(entry, dict) and not entry.get("hf_evaluate") else entry
        if metric not in metrics:
            yield f"metric_list: {metric!r}: expected one of {', '.join(metrics)}"
    if settings.get("dataset_kwargs") is not None:
        files = settings["dataset_kwargs"].get("data_files") if isinstance(settings["dataset_kwargs"], dict) else None
        if not isinstance(files, dict) or not files or not all(isinstance(v, str) for kv in files.items() for v in kv):
            yield f"dataset_kwargs.data_files = {files!r}: expected files by split, such as {{test: questions.jsonl}}"
            return
        for key in SPLITS:
            if (split := settings.get(key)) is not None and split not in files:
                yield f"{key} = {split!r}: expected a split of data_files{did_you_mean(split, files)}"
    if settings.get("test_split") is None and settings.get("validation_split") is None:
        yield "test_split: missing; expected the split with the questions"


def parse_rows(content: bytes, where: str) -> list[dict[str, Any]]:
    """The questions of a JSONL file. Raises ConfigError naming the first line that is wrong."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: line {number}: {error}: expected an object of JSON") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: line {number} = {line[:40]!r}: expected an object of JSON")
        if rows and set(row) != set(rows[0]):
            differing = ", ".join(sorted(set(row) ^ set(rows[0])))
            raise ConfigError(
                f"{where}: line {number}: {differing}: not in all lines; expected the same fields in each"
            )
        rows.append(row)
    if not rows:
        raise ConfigError(f"{where}: expected questions in lines of JSON: there is none")
    return rows


def _template_problems(settings: Mapping[str, Any], fields: Collection[str], where: str) -> Iterator[str]:
    """Templates that ask for fields which the data do not have."""
    from jinja2 import Environment, TemplateSyntaxError, meta
    from jinja2.defaults import DEFAULT_NAMESPACE

    environment = Environment()
    environment.filters["regex_replace"] = str  # which the harness adds
    for name in _TEMPLATES:
        template = settings.get(name)
        if not isinstance(template, str) or not template or template in fields:
            continue
        if "{{" not in template and "{%" not in template:
            yield f"{where}: {name} = {template!r}: no field of the data{did_you_mean(template, fields)}"
            continue
        try:
            asked = meta.find_undeclared_variables(environment.parse(template)) - set(DEFAULT_NAMESPACE)
        except TemplateSyntaxError as error:
            yield f"{where}: {name} = {template!r}: {error.message}"
            continue
        for field in sorted(asked - set(fields)):
            yield f"{where}: {name}: {field}: no such field in the data{did_you_mean(field, fields)}"


def _content(path: Path, where: str, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where} = {path}: {error.strerror}: expected {expected}") from error


# --- the harness's own --------------------------------------------------------------------------


def harness_tasks_dir() -> Path | None:
    """Where the installed harness keeps its tasks; None where it is not installed."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "tasks"


def harness_task_file(name: str, where: str) -> Path:
    """The YAML of a task of the harness. Raises ConfigError where it has none of this name, or is not installed."""
    directory = harness_tasks_dir()
    if directory is None:
        raise ConfigError(missing_extra())
    # Most files are called as their task is; to read all of the others takes a second.
    for path in sorted(directory.glob(f"*/{name}.yaml")) if NAME.fullmatch(name) else ():
        if _task_in(path) == name:
            return path
    known = _all_task_files(directory)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{where} = {name}: no single task of LM Evaluation Harness is called so{hint} "
        "(python -m lm_eval ls tasks lists them; a local one is given by its file, NAME.yaml)"
    )


def missing_extra() -> str:
    """What is said where the harness is not installed."""
    return "evals = fewshot: needs LM Evaluation Harness, which is an extra: pip install -e '.[fewshot]'"


@cache
def _all_task_files(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for parent, _, names in os.walk(directory):
        for path in (Path(parent, name) for name in sorted(names) if name.endswith(".yaml")):
            if (task := _task_in(path)) is not None:
                found.setdefault(task, path)
    return found


def _task_in(path: Path) -> str | None:
    match = _TASK_LINE.search(path.read_bytes())
    return None if match is None else match[1].decode("utf-8", "replace")

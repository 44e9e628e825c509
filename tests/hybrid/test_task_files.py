"""Local tasks and their settings, read without the harness."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid import eval_config, task_files
from hybrid.config import Resolved, read_config
from hybrid.decode import decode
from hybrid.eval_config import EvalSettings, read_evals, text_digest
from hybrid.eval_spec import EvalSpec, FewShotEvalSpec, TaskEvalSpec, canonical, eval_id
from hybrid.spec import ConfigError, RunSpec
from hybrid.task_files import has_shots, read_local_task
from sweeps.compose import Composer

from .few_shot_tasks import ROWS, TASKS, write_task

FINGERPRINT = "0123456789abcdef"


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """The default configuration."""
    with Composer() as composer:
        return dict(composer.compose([]))


@pytest.fixture(scope="module")
def text(shipped: dict[str, Any]) -> RunSpec:
    return read_config(shipped, stdlib_fingerprint=lambda: FINGERPRINT).run


@pytest.fixture(scope="module")
def read(shipped: dict[str, Any]) -> Callable[..., EvalSettings]:
    def read(*tasks: Any, **settings: Any) -> EvalSettings:
        given = {"tasks": list(tasks), **settings} if tasks else settings
        return read_evals([{"kind": "fewshot", **given}], shipped["eval"], stdlib_fingerprint=lambda: FINGERPRINT)

    return read


def local(path: Path, metric: str = "acc", shots: int = 0, **more: Any) -> dict[str, Any]:
    return {"task": str(path), "shots": shots, "metric": metric, **more}


def test_the_shipped_tasks_are_the_papers(read: Callable[..., EvalSettings], text: RunSpec) -> None:
    (spec,) = read().of(text)
    assert isinstance(spec, FewShotEvalSpec)
    assert [(task.task, task.shots, task.metric, task.benchmark) for task in spec.tasks] == [
        ("lambada_openai", 0, "acc", "lambada"),
        ("hellaswag", 0, "acc_bytes", "hellaswag"),
        ("piqa", 0, "acc_bytes", "piqa"),
        ("arc_easy", 0, "acc_bytes", "arc"),
        ("arc_challenge", 0, "acc_bytes", "arc"),
        ("openbookqa", 0, "acc_bytes", "openbookqa"),
    ]
    assert (spec.limit, spec.seed) == (None, 1)


def test_the_id_of_the_shipped_evaluation_is_frozen(read: Callable[..., EvalSettings], text: RunSpec) -> None:
    (spec,) = read().of(text)
    assert eval_id(spec) == FROZEN
    assert decode(EvalSpec, json.loads(json.dumps(canonical(spec)))) == spec  # type: ignore[arg-type]


FROZEN = "8d368bbe3d89"


def test_a_local_task_is_what_its_files_say_whatever_they_are_called(
    read: Callable[..., EvalSettings], text: RunSpec, tmp_path: Path
) -> None:
    path = write_task(tmp_path)
    (spec,) = read(local(path, "acc_bytes")).of(text)
    digests = tuple(text_digest(file, "") for file in (path, tmp_path / "mine.jsonl"))
    expected = TaskEvalSpec(task="mine", shots=0, metric="acc_bytes", benchmark="mine", files=digests)
    assert isinstance(spec, FewShotEvalSpec)
    assert spec.tasks == (expected,)
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / "other.yml")
    (tmp_path / "mine.jsonl").rename(moved / "mine.jsonl")
    assert read(local(moved / "other.yml", "acc_bytes")).of(text) == (spec,)
    with open(moved / "mine.jsonl", "a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    (changed,) = read(local(moved / "other.yml", "acc_bytes")).of(text)
    assert eval_id(changed) != eval_id(spec)


def test_files_that_are_read_are_those_that_are_kept(read: Callable[..., EvalSettings]) -> None:
    settings = read(local(TASKS / "python_lines.yaml"), local(TASKS / "python_words.yaml", "exact_match"))
    assert sorted(Path(path).name for path in settings.texts) == [
        "python_lines.jsonl",
        "python_lines.yaml",
        "python_lines_shots.jsonl",
        "python_words.jsonl",
        "python_words.yaml",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "task: missing"),
        ({"doc_to_target": None}, "doc_to_target: missing"),
        ({"doc_to_choice": None}, "doc_to_choice: missing; multiple_choice has choices"),
        ({"test_split": None}, "test_split: missing; expected the split with the questions"),
        ({"dataset_path": "Rowan/hellaswag"}, "dataset_path = 'Rowan/hellaswag': expected json"),
        ({"dataset_kwargs": {}}, r"dataset_kwargs.data_files = None: expected files by split"),
        ({"test_split": "tst"}, "test_split = 'tst': expected a split of data_files; did you mean test"),
        ({"doc_to_txt": "x"}, "doc_to_txt: unknown setting; did you mean doc_to_text"),
        ({"include": "other.yaml"}, "include: expected a task that is all in one file"),
        ({"task": "a b"}, "task = 'a b': expected a name"),
        ({"output_type": "multiple_choise"}, "output_type = 'multiple_choise': .*; did you mean multiple_choice"),
        ({"output_type": "loglikelihood_rolling"}, "its answers are not right or wrong"),
        ({"doc_to_text": "qestion"}, "doc_to_text = 'qestion': no field of the data; did you mean question"),
        ({"doc_to_text": "{{qestion}}?"}, "doc_to_text: qestion: no such field in the data; did you mean question"),
        ({"doc_to_text": "{{question"}, "doc_to_text = '{{question': unexpected end of template"),
        ({"doc_to_text": "{{question | nonsense}}"}, "No filter named 'nonsense'"),
        ({"metric_list": [{"metric": "bleu"}]}, "metric_list: 'bleu': expected one of acc, acc_norm, acc_bytes"),
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, "gone.jsonl: No such file or directory"),
    ],
)
def test_what_is_wrong_with_a_task_is_one_clear_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_task(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        read_local_task(str(path), "task")
    (problem,) = caught.value.problems
    assert problem.startswith(f"task = {path}")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: [", "while parsing"),
        ("- a\n- b\n", r"\['a', 'b'\]: expected settings: task"),
        ("process_docs: !function code.run\n", "!function: expected fields and Jinja templates"),
    ],
)
def test_yaml_that_is_no_task_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_local_task(str(path), "task")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected questions in lines of JSON: there is none"),
        (["{", *ROWS], "mine.jsonl: line 1: .*expected an object of JSON"),
        ([*ROWS[:2], "[1]"], r"mine.jsonl: line 3 = b'\[1\]': expected an object of JSON"),
        ([*ROWS[:2], {"question": "x"}], "line 3: answer, choices: not in all lines"),
        ([*ROWS[:2], '{"question": "\\ud800", "choices": [], "answer": 0}'], "line 3: .*surrogates not allowed"),
    ],
)
def test_questions_that_cannot_be_read_are_named_by_their_line(rows: list[Any], message: str, tmp_path: Path) -> None:
    path = write_task(tmp_path, rows)
    with pytest.raises(ConfigError, match=message):
        read_local_task(str(path), "task")


def test_what_means_nothing_is_said_all_at_once(read: Callable[..., EvalSettings], tmp_path: Path) -> None:
    path = write_task(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read(
            local(path, "exact_match", shots=2),
            {"task": str(path), "shots": -1, "metric": "acc", "benchmark": "a b"},
            limit=0,
            seed=-1,
        )
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "eval.fewshot.limit = 0",
        "eval.fewshot.seed = -1",
        "eval.fewshot.tasks[1].shots = -1",
        "eval.fewshot.tasks[1].benchmark = 'a b'",
        "eval.fewshot.tasks = mine",
        "eval.fewshot.tasks[0].metric = exact_match",
        "eval.fewshot.tasks[0].shots = 2",
    ]
    with pytest.raises(ConfigError, match=r"eval.fewshot.tasks = \[\]: expected tasks"):
        read(tasks=[])
    with pytest.raises(
        ConfigError, match=r"metric = 'acc_byte': expected one of acc, acc_norm, acc_bytes, exact_match"
    ):
        read(local(path, "acc_byte"))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"test": "a", "training": "b"}, True),
        ({"test": "a", "validation": "b"}, True),
        ({"validation": "a", "training": "b"}, True),
        ({"test": "a"}, False),
        ({"validation": "a"}, False),
        ({"test": "a", "shots": "a"}, True),  # the harness leaves out the question itself
        ({"validation": "a", "shots": "a"}, False),  # and here it does not
        ({"validation": "a", "shots": "b"}, True),
        ({"test": "a", "samples": True}, True),
    ],
)
def test_shots_are_never_the_question_itself(splits: dict[str, Any], expected: bool) -> None:
    asked = {"test": None, "validation": None, "training": None, "shots": None, "samples": False}
    assert has_shots(**{**asked, **splits}) is expected


def test_a_task_that_the_harness_does_not_have_is_said_before_anything_is_spent(
    read: Callable[..., EvalSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swag").mkdir()
    (tmp_path / "swag" / "swag.yaml").write_text("tag: x\ntask: swag\n")
    (tmp_path / "swag" / "other.yaml").write_text("include: swag.yaml\ntask: 'swag_other'\n")
    for module in (task_files, eval_config):
        monkeypatch.setattr(module, "harness_tasks_dir", lambda: tmp_path)
    read(local(Path("swag")), local(Path("swag_other")))
    with pytest.raises(ConfigError, match=r"task = swagg: no single task of .* is called so; did you mean swag\?"):
        read(local(Path("swagg")))


def test_where_the_harness_is_not_installed_its_tasks_can_be_asked_for_but_not_had(
    read: Callable[..., EvalSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (task_files, eval_config):
        monkeypatch.setattr(module, "harness_tasks_dir", lambda: None)
    read(local(Path("whatever")))
    with pytest.raises(ConfigError, match=r"needs LM Evaluation Harness, .*pip install -e '.\[fewshot\]'"):
        task_files.harness_task_file("whatever", "task")


def test_settings_are_read_without_the_harness() -> None:
    code = (
        "import sys, hybrid.eval_config, hybrid.task_files as files;"
        f"files.read_local_task({str(TASKS / 'python_lines.yaml')!r}, 'task');"
        "print([name for name in ('lm_eval', 'datasets', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_few_shot_means_nothing_for_a_run_that_is_not_on_text(
    read: Callable[..., EvalSettings], resolve: Callable[..., Resolved]
) -> None:
    with pytest.raises(ConfigError, match=r"evals = fewshot: data.kind = recall: expected a run on text"):
        read().of(resolve("data=recall").run)

"""The house rules that a machine can check: who may import whom, and what the command lines may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "hydra", "omegaconf", "pandas", "numpy", "scipy", "matplotlib", "submitit", "rich")
TORCH_FREE = (
    "spec",
    "decode",
    "config",
    "model_config",
    "model_checks",
    "model_resolve",
    "layout",
    "cost",
    "decode_cost",
    "roofline",
    "memory",
    "equivalence",
    "budget",
    "corpus",
    "probes",
    "eval_spec",
    "eval_config",
    "task_files",
    "answers",
    "manifest",
    "durable",
    "checkpoint_files",
    "outside",
)


TRAINING = ("hybrid.train", "hybrid.evals", "hybrid.data", "hybrid.model", "hybrid.generate")


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import that can run, wherever in the file it stands."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not for_types_only(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def touches(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if any(name == p or name.startswith(f"{p}.") for p in packages)}


def files(repo: Path, package: str) -> list[Path]:
    found = sorted((repo / package).rglob("*.py"))
    assert found
    return found


def test_hybrid_imports_nothing_of_ours(repo: Path) -> None:
    for path in files(repo, "hybrid"):
        assert not touches(imports(path), "sweeps", "analysis", "hydra_plugins", "hydra", "omegaconf"), path


def test_the_torch_free_files_import_no_torch_and_only_each_other(repo: Path) -> None:
    allowed = {f"hybrid.{name}" for name in TORCH_FREE}
    for name in TORCH_FREE:
        ours = {
            ".".join(module.split(".")[:2]) for module in touches(imports(repo / "hybrid" / f"{name}.py"), "hybrid")
        }
        assert ours - {"hybrid"} <= allowed, name
        assert not touches(imports(repo / "hybrid" / f"{name}.py"), *HEAVY), name


def test_only_the_worker_reaches_training(repo: Path) -> None:
    for path in files(repo, "sweeps"):
        relative = path.relative_to(repo / "sweeps").as_posix()
        reached = touches(imports(path), *TRAINING, "torch")
        assert relative.startswith("worker/") or not reached, path


def test_hydra_stays_in_run_py_the_plugins_and_compose(repo: Path) -> None:
    for package in ("sweeps", "analysis"):
        for path in files(repo, package):
            if path.name != "compose.py":
                assert not touches(imports(path), "hydra", "omegaconf"), path


def test_analysis_reads_the_store_and_never_trains(repo: Path) -> None:
    allowed = (
        "sweeps.store",
        "sweeps.cells",
        "sweeps.identity",
        "sweeps.tune",
        "sweeps.index",
        "sweeps.columns",
        "sweeps.hours",  # what attempts took: arithmetic over what the store has
        "sweeps.power",  # what seeds can tell apart: arithmetic, which imports nothing of ours
        "sweeps.compose",  # a Composer for `reference`, whose rows are sweeps' cells: Hydra is imported when it is used
        *(f"hybrid.{name}" for name in TORCH_FREE),
    )
    for path in files(repo, "analysis"):
        ours = touches(imports(path), "sweeps", "hybrid") - {"sweeps", "hybrid"}
        assert not {name for name in ours if not touches({name}, *allowed)}, path
        assert not touches(imports(path), "torch", "hydra_plugins"), path


@pytest.mark.parametrize("modules", ["sweeps, sweeps.__main__", "analysis, analysis.__main__"])
def test_the_command_lines_load_nothing_heavy(modules: str) -> None:
    code = f"import sys, {modules}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

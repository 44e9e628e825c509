"""Where a record comes from: the code, and how it differed from its commit, versions, machine, job and command.

diffs/<digest>.patch     of the store: what `git apply` makes of the commit the code that ran; published once
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from hybrid import outside
from hybrid.decode import digest, encode
from hybrid.durable import make_dir
from hybrid.manifest import find_corpus
from hybrid.spec import ConfigError, ExecSpec, HubSpec, RunSpec
from sweeps.speed import processor
from sweeps.store import Store, publish

_ROOT = Path(__file__).resolve().parent.parent
_CODE = ("hybrid", "sweeps", "hydra_plugins", "conf", "run.py", "pyproject.toml", "constraints.txt")
_VERSIONS = ("torch", "numpy", "safetensors")
_GIT_TIMEOUT_S = 20


class Gathering(threading.Thread):
    """What is the same for all that a process does, gathered while it does something else."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True, name="provenance")
        self._store = store
        self._facts: dict[str, Any] = {}

    def run(self) -> None:
        self._facts = {
            **code_state(self._store),
            "versions": {"python": platform.python_version(), **{name: package_version(name) for name in _VERSIONS}},
            "host": platform.node(),
            "platform": platform.platform(),
            "processor": processor(),
        }

    def facts(self) -> dict[str, Any]:
        self.join()
        return self._facts


@lru_cache(maxsize=8)
def _gathering(root: Path, _pid: int) -> Gathering:
    gathering = Gathering(Store(root))
    gathering.start()
    return gathering


def begin(store: Store) -> Gathering:
    """Begin to gather, once in a process; what a fork inherits is gathered again."""
    return _gathering(store.root, os.getpid())


def provenance(store: Store, run: RunSpec, execution: ExecSpec) -> dict[str, Any]:
    """Code, versions, machine and command, as they are now."""
    return {
        **begin(store).facts(),
        "device": execution.device,
        "exec": encode(execution),
        "mixers": outside.source_hashes(run.model),
        **_corpus(store, run),
        "command": command(),
    }


def _corpus(store: Store, run: RunSpec) -> dict[str, Any]:
    """Of a remote corpus the fingerprint of the shards that stand for it here: its run's id says its revision alone."""
    if not isinstance(run.data, HubSpec):
        return {}
    with contextlib.suppress(ConfigError):
        return {"corpus": find_corpus(store.data_root, run.data)[1].fingerprint}
    return {"corpus": None}


def command() -> list[str]:
    """What was typed, to the word; of a process that a launcher has forked, what was typed to start that."""
    return list(sys.orig_argv) if parent_process() is None else list(sys.argv)


def code_state(store: Store) -> dict[str, Any]:
    """Which code this is: `git_commit` and `git_diff_sha`, None where there is no git or no difference, and `snapshot`.

    The difference itself, with files of ours that git does not know yet, is kept in the store, if that can be written.
    """
    snapshot = _of_snapshot()
    if snapshot is not None:
        return snapshot
    found = _git("rev-parse", "HEAD", "--show-toplevel", "--git-path", "index")
    lines = [] if found is None else found.splitlines()
    if len(lines) != 3 or Path(lines[1]).resolve() != _ROOT:  # the repository around an installation is not ours
        return {"git_commit": None, "git_diff_sha": None, "snapshot": None}
    patch = _patch(_ROOT / lines[2])
    sha = digest(patch) if patch else None
    if patch and sha is not None:
        with contextlib.suppress(OSError):
            make_dir(store.root / "diffs")
            publish(store.root / "diffs" / f"{sha}.patch", patch)
    return {"git_commit": lines[0], "git_diff_sha": sha, "snapshot": None}


def _of_snapshot() -> dict[str, Any] | None:
    """What a snapshot says of the code in it (`sweeps.snapshot`); None where this code runs from none."""
    try:
        told = json.loads((_ROOT / "snapshot.json").read_text())
        return {"git_commit": told["git_commit"], "git_diff_sha": told["git_diff_sha"], "snapshot": told["digest"]}
    except (OSError, ValueError, KeyError):
        return None


def _patch(index: Path) -> str | None:
    """How the code differs from its commit; new files are in it too, as a copy of git's index lists them."""
    paths = [path for path in _CODE if (_ROOT / path).exists()]
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *paths)
    diff = ("diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--", *paths)
    if not new:
        return _git(*diff)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "index"
        try:
            shutil.copyfile(index, copy)
        except OSError:
            return _git(*diff)
        _git("add", "--intent-to-add", "--", *new.rstrip("\0").split("\0"), index=copy)
        return _git(*diff, index=copy)


def _git(*arguments: str, index: Path | None = None) -> str | None:
    own = {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"} | ({} if index is None else {"GIT_INDEX_FILE": str(index)})
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments],
            env=inherited | own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Not as text: a patch keeps the ends of its lines.
    return found.stdout.decode(errors="replace") if found.returncode == 0 else None


def package_version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None

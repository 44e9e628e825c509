"""A store that a team shares: a group-writable directory whose group new files take (setgid)."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybrid.decode import canonical_json
from sweeps.store import Store

REPO = Path(__file__).resolve().parent.parent.parent
TEAM, ADA, BOB = 54321, 54322, 54323

_PREAMBLE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from hybrid.decode import decode
from hybrid.spec import RunSpec
from sweeps.gc import GcSettings, propose, remove
from sweeps.housekeeping import COMMANDS
from sweeps.notes import add_note, pin, unpin
from sweeps.store import Cell, Request, Store, publish
from sweeps.submissions import Answer, Intent, Item, Submissions
from hybrid.durable import make_dir

# Only once all is loaded: the other members may not be allowed to read this interpreter's files.
user, group, umask = map(int, sys.argv[4:])
os.umask(umask)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
store = Store(Path(sys.argv[1]))
run = decode(RunSpec, json.loads(sys.argv[2]))
store.prepare()
run_id = store.publish_spec(run)
request = Request(sweep="demo", overrides=(), created_at="2026-01-01", report={},
                  cells=(Cell(name="a", row="a", axes={}, seed=1, run_id=run_id),))
intent = Intent(job_name="demo-1", created_at="", owner={}, sweep="demo", overrides=(), tasks=(), execution={},
                resources={}, snapshot=None, checkpoints="", data="")
"""

# What one member leaves, and what another has to be able to do with it.
_BEGINS = """
attempt = store.claim(run_id, 0)
(attempt.directory / "job.json").write_text(json.dumps({"host": "a", "pid": 1, "lease_s": 1}))
for name in ("metrics.jsonl", "log.txt", "heartbeat"):
    (attempt.directory / name).write_text("")
store.publish_request(request)
Submissions(store).publish(1, intent)
store.publish_speed("0123456789ab", "cpu-runs", {"tokens_per_s": 1.0})
store.publish_speed("0123456789ab", "cpu-runs", {"tokens_per_s": 2.0})
store.publish_speed("0123456789ab", "cpu-runs", {"tokens_per_s": 3.0})
store.publish_trunk("abcdefabcdef", "{}")
store.trunk_attempts("abcdefabcdef").claim(0)
store.publish_point("abcdefabcdef", 10, {})
for directory in (store.checkpoints_dir(run_id), store.trunk_checkpoints_dir("abcdefabcdef")):
    make_dir(directory)
    (directory / "step00000010-a001.ckpt").write_text("old")
add_note(store, [run_id], "mine")
pin(store, [run_id])
"""
_GOES_ON = """
attempts = store.attempts(run_id)
assert attempts.job(1) is not None and attempts.heartbeat(1) is not None
for name in ("metrics.jsonl", "log.txt"):
    (attempts.path(1) / name).read_text()
assert publish(attempts.path(1) / "triage.json", '{"class": "unknown", "message": "gone"}')
attempt = store.claim(run_id, 1)
(attempt.directory / "heartbeat").write_text("1")
before = Path(store.request_files()[0]).stat().st_mtime_ns
store.publish_request(request)
assert Path(store.request_files()[0]).stat().st_mtime_ns > before, "asked for again, it is the newest"
Submissions(store).publish_answer(1, Answer(job_id="7"))
assert Submissions(store).publish(2, intent)
store.publish_speed("0123456789ab", "cpu-runs", {"tokens_per_s": 4.0})
assert len(store.speeds("0123456789ab")[0]) == 3, "the oldest went, whoever made it"
assert store.trunk_attempts("abcdefabcdef").claim(1) is not None
store.publish_point("abcdefabcdef", 20, {})
store.publish_divergence("abcdefabcdef", 30, {})
for directory in (store.checkpoints_dir(run_id), store.trunk_checkpoints_dir("abcdefabcdef")):
    (directory / "step00000010-a001.ckpt").unlink()
    (directory / "step00000020-a002.ckpt").write_text("new")
add_note(store, [run_id], "and mine")
assert unpin(store, [run_id]) == [run_id]
record = {"schema": 1, "run_id": run_id, "status": "done", "attempt": 2, "metrics": {}}
assert store.publish_record(run_id, record)
assert store.publish_eval_record(run_id, "abcd", {"schema": 1, "run_id": run_id, "metrics": {}})
(attempt.directory / "heartbeat").unlink()
done = remove(store, propose(store, GcSettings()), GcSettings())
assert len(done.removed) == 1 and not done.problems, done
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory of a team, setgid and group-writable, that its members can reach."""
    root = Path(tempfile.mkdtemp(prefix="hybrid-team-"))
    if os.geteuid() == 0:
        os.chown(root, ADA, TEAM)
    root.chmod(0o2770)
    yield root / "store"
    shutil.rmtree(root)


def act(script: str, store: Path, spec: str, *, user: int, umask: int) -> None:
    """Carry it out as a member of the team, where this process may say who it is."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _PREAMBLE + textwrap.dedent(script),
            str(store),
            spec,
            str(REPO),
            str(user),
            str(TEAM),
            str(umask),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "LOGNAME": f"member{user}", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_one_member_begins_another_goes_on_with_whatever_their_umasks(
    shared: Path, resolve: Callable, umask: int
) -> None:
    spec = canonical_json(resolve("model.depth=2").run)
    act(_BEGINS, shared, spec, user=ADA, umask=umask)
    modes = {path: path.stat() for path in (shared, *shared.rglob("*"))}
    for path, found in modes.items():
        bits = 0o2770 if path.is_dir() else 0o660
        assert found.st_mode & bits == bits, f"{path}: {found.st_mode:o}"
        if os.geteuid() == 0:
            assert found.st_gid == TEAM, path
    act(_GOES_ON, shared, spec, user=BOB, umask=umask)
    act("assert store.record(run_id) is not None", shared, spec, user=ADA, umask=umask)


def test_a_store_of_ones_own_leaves_the_umask_as_it_is(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        (tmp_path / "store").mkdir(mode=0o755)
        store = Store(tmp_path / "store")
        store.prepare()
        assert store.attempts("0123456789ab").claim(0) is not None
        assert os.umask(0o022) == 0o022
        assert not any(path.stat().st_mode & 0o020 for path in store.root.rglob("*"))
    finally:
        os.umask(before)

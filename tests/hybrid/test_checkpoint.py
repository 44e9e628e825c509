import errno
import itertools
import os
import resource
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hybrid.model import LanguageModel
from hybrid.spec import AttentionSpec, BlockSpec, ConfigError, ModelSpec, MoeSpec
from hybrid.train import checkpoint as checkpoint_module
from hybrid.train.checkpoint import CheckpointStore, load_final_weights, save_final_weights

RUN = "0123456789ab"


def state_at(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    shared = torch.randn(40, 30, generator=generator)
    return {
        "weights": {"a": shared, "b": torch.randn(7, generator=generator)},
        "numbers": [step, step / 7, None, "text", True],
    }


def assert_is_state(found: dict[str, Any], step: int) -> None:
    wanted = state_at(step)
    assert found["numbers"] == wanted["numbers"]
    assert all(torch.equal(found["weights"][name], tensor) for name, tensor in wanted["weights"].items())


def store_of(directory: Path, attempt: int = 1, notes: list[str] | None = None) -> CheckpointStore:
    return CheckpointStore(directory, run_id=RUN, attempt=attempt, log=[].append if notes is None else notes.append)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store_of(tmp_path / "not" / "yet").save(state_at(120), 120)
    assert names(tmp_path / "not" / "yet") == ["step00000120-a001.ckpt"]
    loaded = store_of(tmp_path / "not" / "yet", attempt=2).load_latest()
    assert loaded is not None
    assert (loaded.step, loaded.attempt) == (120, 1)
    assert_is_state(loaded.state, 120)


def test_nothing_there_is_nothing_loaded(tmp_path: Path) -> None:
    assert store_of(tmp_path).load_latest() is None
    assert store_of(tmp_path / "missing").load_latest() is None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for step in (5, 10, 15, 20):
        store.save(state_at(step), step)
    assert names(tmp_path) == ["step00000015-a001.ckpt", "step00000020-a001.ckpt"]


def test_the_one_resumed_from_is_kept_beside_the_next(tmp_path: Path) -> None:
    first = store_of(tmp_path)
    first.save(state_at(5), 5)
    first.save(state_at(10), 10)
    second = store_of(tmp_path, attempt=2)
    second.load_latest()
    second.save(state_at(12), 12)
    assert names(tmp_path) == ["step00000010-a001.ckpt", "step00000012-a002.ckpt"]


def test_at_the_same_step_the_later_attempt_is_newer(tmp_path: Path) -> None:
    store_of(tmp_path, attempt=1).save(state_at(1), 10)
    store_of(tmp_path, attempt=2).save(state_at(2), 10)
    loaded = store_of(tmp_path, attempt=3).load_latest()
    assert loaded is not None
    assert loaded.attempt == 2
    assert_is_state(loaded.state, 2)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for step in (10, 20, 20):
        store.save(state_at(step), step)
    assert names(tmp_path) == ["step00000010-a001.ckpt", "step00000020-a001.ckpt"]


@pytest.mark.parametrize("kept_bytes", [0, 1, 100, 511, 512, 513, 600, 4096, -64, -1])
def test_a_torn_newest_is_noted_and_the_one_before_is_used(tmp_path: Path, kept_bytes: int) -> None:
    store = store_of(tmp_path)
    store.save(state_at(1), 1)
    newest = store.save(state_at(2), 2)
    size = newest.stat().st_size
    os.truncate(newest, kept_bytes if kept_bytes >= 0 else size + kept_bytes)
    assert newest.stat().st_size < size
    notes: list[str] = []
    loaded = store_of(tmp_path, attempt=2, notes=notes).load_latest()
    assert loaded is not None
    assert loaded.step == 1
    assert_is_state(loaded.state, 1)
    assert len(notes) == 1
    assert str(newest) in notes[0]
    assert ("header" if newest.stat().st_size < 511 else f"should have 512 and {size - 512}") in notes[0]


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    store.save(state_at(1), 1)
    newest = store.save(state_at(2), 2)
    whole = newest.read_bytes()
    header_length = whole.index(b"}") + 1
    for position in [*range(0, header_length, 5), 512, 513, len(whole) // 2, len(whole) - 1]:
        newest.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        loaded = store_of(tmp_path, attempt=2).load_latest()
        assert loaded is not None
        assert loaded.step == 1, position


def test_a_longer_file_is_damaged_too(tmp_path: Path) -> None:
    path = store_of(tmp_path).save(state_at(1), 1)
    with open(path, "ab") as file:
        file.write(b"\0")
    assert store_of(tmp_path).load_latest() is None


def test_damaged_files_of_later_steps_push_no_good_one_out(tmp_path: Path) -> None:
    first = store_of(tmp_path)
    for step in (10, 20, 30):
        first.save(state_at(step), step)
    for name in names(tmp_path):
        os.truncate(tmp_path / name, 700)
    second = store_of(tmp_path, attempt=2)
    assert second.load_latest() is None
    second.save(state_at(5), 5)
    assert names(tmp_path) == ["step00000005-a002.ckpt"]


def test_damaged_files_stay_until_a_good_one_is_written(tmp_path: Path) -> None:
    path = store_of(tmp_path).save(state_at(1), 1)
    os.truncate(path, 700)
    store_of(tmp_path, attempt=2).load_latest()
    assert names(tmp_path) == [path.name]


class Killed(BaseException):
    """Stands for SIGKILL: nothing that the process would do after it happens."""


class Killer:
    """Counts a save's calls that change the disk, and ends the process before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fatal: int | None = None
        for owner, name in [
            (checkpoint_module._HashingSink, "write"),
            (os, "fsync"),
            (os, "replace"),
            (Path, "unlink"),
        ]:
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.fatal is not None and len(self.calls) >= self.fatal:
                raise Killed
            self.calls.append(name)
            return real(*arguments, **keywords)

        return call

    def kills(self, fatal: int, store: CheckpointStore, step: int) -> bool:
        """Save, and die before call `fatal`; False if the save needs no such call."""
        self.calls.clear()
        self.fatal = fatal
        try:
            store.save(state_at(step), step)
        except Killed:
            return True
        finally:
            self.fatal = None
        return False


def test_killed_before_any_of_its_calls_a_save_leaves_the_last_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(monkeypatch)
    found = []
    for fatal in range(1000):
        directory = tmp_path / str(fatal)
        writer = store_of(directory)
        writer.save(state_at(1), 1)
        writer.save(state_at(2), 2)
        if not killer.kills(fatal, writer, 3):
            break
        reader = store_of(directory, attempt=2)
        loaded = reader.load_latest()
        assert loaded is not None
        assert loaded.step == (3 if "replace" in killer.calls else 2)
        assert_is_state(loaded.state, loaded.step)
        found.append(loaded.step)
        reader.save(state_at(4), 4)
        assert [name for name in names(directory) if name.endswith(".ckpt")] == [
            f"step0000000{loaded.step}-a001.ckpt",
            "step00000004-a002.ckpt",
        ]
    # On the disk before it has its name, and the name on the disk before an older one goes.
    assert [name for name, _ in itertools.groupby(killer.calls)] == ["write", "fsync", "replace", "fsync", "unlink"]
    assert set(found) == {2, 3}


@pytest.fixture
def no_file_above() -> Iterator[Any]:
    """A disk that takes no more than so many bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [100, 2000, 5000])
def test_a_full_disk_is_an_os_error_and_costs_nothing_that_was_there(
    tmp_path: Path, no_file_above: Any, room: int
) -> None:
    store = store_of(tmp_path)
    store.save(state_at(1), 1)
    store.save(state_at(2), 2)
    no_file_above(room)
    with pytest.raises(OSError, match="large") as caught:
        store.save(state_at(3), 3)
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == ["step00000001-a001.ckpt", "step00000002-a001.ckpt"]


def test_leftovers_go_if_they_are_the_attempts_own_or_long_dead(tmp_path: Path) -> None:
    own, young, dead = (tmp_path / f".step00000009-a00{number}.tmp" for number in (3, 1, 2))
    for path in (own, young, dead):
        path.write_bytes(b"half")
    long_ago = time.time() - 7200
    os.utime(dead, (long_ago, long_ago))
    store_of(tmp_path, attempt=3).save(state_at(10), 10)
    assert names(tmp_path) == [young.name, "step00000010-a003.ckpt"]


def test_files_of_other_names_are_not_touched(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for name in ("step1-a001.ckpt", "notes.txt", "step00000001-a001.ckpt.bak"):
        (tmp_path / name).write_text("mine")
    for step in (10, 20, 30):
        store.save(state_at(step), step)
    store.clear()
    assert names(tmp_path) == ["notes.txt", "step00000001-a001.ckpt.bak", "step1-a001.ckpt"]


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, run_id="ffffffffffff", attempt=1).save(state_at(1), 1)
    with pytest.raises(ConfigError, match=r"of run ffffffffffff: expected one of run 0123456789ab"):
        store_of(tmp_path).load_latest()
    assert path.exists()


def test_a_checkpoint_of_a_newer_format_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint_module, "_VERSION", 2)
        path = store_of(tmp_path).save(state_at(1), 1)
    with pytest.raises(ConfigError, match="format 2: expected format 1"):
        store_of(tmp_path).load_latest()
    assert path.exists()


def test_points_are_kept_and_count_as_checkpoints(tmp_path: Path) -> None:
    first = store_of(tmp_path)
    for step in (5, 10, 15):
        first.save_point(state_at(step), step)
        first.save(state_at(step + 1), step + 1)
    second = store_of(tmp_path, attempt=2)
    steps = [second.load_latest(at_most=limit) for limit in (None, 16, 15, 12, 4)]
    assert [None if found is None else found.step for found in steps] == [16, 16, 15, 10, None]
    second.save(state_at(20), 20)
    second.save(state_at(21), 21)
    points = [f"point000000{step}.ckpt" for step in ("05", "10", "15")]
    assert names(tmp_path) == [*points, "step00000020-a002.ckpt", "step00000021-a002.ckpt"]
    second.clear(at_most=20)
    assert names(tmp_path) == [*points, "step00000021-a002.ckpt"]
    second.clear()
    assert names(tmp_path) == points


def test_one_point_is_loaded_if_it_is_there_and_whole(tmp_path: Path) -> None:
    path = store_of(tmp_path).save_point(state_at(5), 5)
    store_of(tmp_path).save(state_at(6), 6)
    notes: list[str] = []
    reader = store_of(tmp_path, attempt=0, notes=notes)
    found = reader.load_point(5)
    assert found is not None
    assert (found.owner, found.step, found.attempt) == (RUN, 5, 1)
    assert_is_state(found.state, 5)
    assert reader.load_point(6) is None
    os.truncate(path, 700)
    assert reader.load_point(5) is None
    assert len(notes) == 1
    assert str(path) in notes[0]


def test_a_damaged_point_is_made_anew(tmp_path: Path) -> None:
    path = store_of(tmp_path).save_point(state_at(5), 5)
    os.truncate(path, 700)
    second = store_of(tmp_path, attempt=2)
    assert second.load_latest() is None
    assert second.save_point(state_at(5), 5) == path
    found = store_of(tmp_path).load_point(5)
    assert found is not None
    assert found.attempt == 2


def test_a_damaged_point_that_nobody_has_looked_at_is_made_anew(tmp_path: Path) -> None:
    path = store_of(tmp_path).save_point(state_at(5), 5)
    os.truncate(path, 700)
    store_of(tmp_path, attempt=2).save_point(state_at(5), 5)
    found = store_of(tmp_path).load_point(5)
    assert found is not None
    assert found.attempt == 2
    assert names(tmp_path) == [path.name]


def test_a_whole_point_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt_of(step: int) -> int:
        found = store_of(tmp_path).load_point(step)
        assert found is not None
        return found.attempt

    first, second = store_of(tmp_path, attempt=1), store_of(tmp_path, attempt=2)
    first.save_point(state_at(5), 5)
    second.save_point(state_at(5), 5)
    assert attempt_of(5) == 1
    real = checkpoint_module._write

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(checkpoint_module, "_write", real)
        first.save_point(state_at(8), 8)
        real(*arguments)

    monkeypatch.setattr(checkpoint_module, "_write", overtaken)
    second.save_point(state_at(8), 8)  # while the first does the same
    assert attempt_of(8) == 1
    assert names(tmp_path) == ["point00000005.ckpt", "point00000008.ckpt"]  # no temporary file


def test_a_point_of_another_trunk_is_refused_and_kept(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, run_id="ffffffffffff", attempt=1).save_point(state_at(1), 1)
    with pytest.raises(ConfigError, match=r"of run ffffffffffff: expected one of run 0123456789ab"):
        store_of(tmp_path).load_point(1)
    assert path.exists()


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        path = store_of(tmp_path).save(state_at(1), 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_clearing_an_empty_place_is_fine(tmp_path: Path) -> None:
    store_of(tmp_path / "missing").clear()


MIXER = AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=4, rope=None)
MOE = MoeSpec(d_ffn=6, n_experts=3, top_k=1, n_shared=0, bias_step=1e-3)


def model(
    d_model: int = 8, seed: int = 1, blocks: tuple[BlockSpec, ...] = (BlockSpec(mixer=MIXER, ffn=None),)
) -> LanguageModel:
    built = LanguageModel(
        ModelSpec(d_model=d_model, vocab_size=12, tie_embeddings=True, norm_eps=1e-5, init_std=0.02, blocks=blocks)
    )
    built.init_weights(seed)
    return built


def test_final_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    trained, other = model(seed=1), model(seed=2)
    path = tmp_path / "run" / "final.safetensors"
    save_final_weights(path, trained)
    load_final_weights(path, other)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), other.parameters(), strict=True))
    assert names(path.parent) == [path.name]


def test_final_weights_hold_experts_biases_and_tied_blocks_once(tmp_path: Path) -> None:
    blocks = (BlockSpec(mixer=MIXER, ffn=MOE, tie="both"),) * 2
    trained, other = model(seed=1, blocks=blocks), model(seed=2, blocks=blocks)
    for name, buffer in trained.named_buffers():
        assert name == "blocks.0.ffn.expert_bias"
        buffer.copy_(torch.tensor([0.25, -0.5, 0.0]))
    path = tmp_path / "final.safetensors"
    save_final_weights(path, trained)
    load_final_weights(path, other)
    expected = trained.state_dict()
    assert load_file(path).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_final_weights_of_a_model_without_buffers_are_its_parameters(tmp_path: Path) -> None:
    """As they were written before there were experts: such files are read as ever."""
    path = tmp_path / "final.safetensors"
    save_final_weights(path, model())
    assert load_file(path).keys() == dict(model().named_parameters()).keys()


def test_weights_of_another_model_or_cut_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    save_final_weights(path, model(d_model=16))
    with pytest.raises(ConfigError, match=r"weights of another model: expected the same .*embedding"):
        load_final_weights(path, model())
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ConfigError, match="expected whole safetensors"):
        load_final_weights(path, model(d_model=16))


def test_final_weights_on_a_full_disk_leave_what_was_there(tmp_path: Path, no_file_above: Any) -> None:
    path = tmp_path / "final.safetensors"
    save_final_weights(path, model())
    before = path.read_bytes()
    no_file_above(1000)
    with pytest.raises(OSError, match="large"):
        save_final_weights(path, model(seed=2))
    assert path.read_bytes() == before
    assert names(tmp_path) == [path.name]

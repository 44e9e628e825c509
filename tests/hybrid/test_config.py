import pytest

from hybrid.cost import layout_of
from hybrid.spec import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.ratio=0:0", "0:0: nothing of either"),
        ("model.placement=[99]", "outside the blocks"),
        ("model.placement=frnt", "did you mean front"),
        ("model.attention.n_kv_heads=3", "expected a divisor of n_heads = 4"),
        ("model.mamba.head_dim=20", "expected a divisor of d_ssm = 128 .nearest: 16"),
        ("model.depth=0", "expected from 1"),
        ("model.d_model=-64", "expected from 1"),
        ("model.depth=100000", "at most 10000 blocks"),
        ("model.vocab_size=100", "at least the data's 258"),
        ("batch_tokens=1000", "multiple of seq_len = 256 .nearest: 1024"),
        ("budget.tokens=100", "at least one batch of 2048"),
        ("schedule.warmup_tokens=2M", "expected together at most"),
        ("optim.lr=-1", "optim.lr = -1.0: expected a number above 0"),
        ("exec.lease_s=1", "at least three heartbeats"),
        ("data.fingerprint=xyz", "16 hex digits"),
        ("dtype=float16", "one of float32, bfloat16"),
        ("init_seed=-1", "from 0 to"),
        ("model.attention.head_dim=15", "even number"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_a_reason(resolve, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(override)


def test_problems_of_different_parts_are_said_at_once(resolve) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("model.ratio=0:0", "optim.lr=-1", "model.attention.n_kv_heads=3", "budget.tokens=none")
    assert len(caught.value.problems) == 4


def test_depth_null_matches_the_reference_and_says_the_mismatch(resolve) -> None:
    assert resolve("model=llama").param_mismatch == 0
    assert abs(resolve("model=mamba").param_mismatch) < 0.05
    assert resolve("model=mamba", "model.depth=3").param_mismatch is None


def test_schedule_fractions_become_whole_batches(resolve) -> None:
    run = resolve().run
    assert run.schedule.warmup_tokens % run.batch_tokens == 0
    assert run.schedule.warmup_tokens / run.train_tokens == pytest.approx(0.25, abs=0.001)
    assert run.schedule.cooldown_tokens / run.train_tokens == pytest.approx(0.2, abs=0.001)
    assert resolve("schedule.warmup_tokens=0").run.schedule.warmup_tokens == 0


def test_execution_is_not_part_of_the_run(resolve) -> None:
    assert resolve("exec.threads=2", "exec.microbatch=1").run == resolve().run


def test_the_data_decides_the_vocabulary_unless_it_is_set(resolve) -> None:
    assert resolve().run.model.vocab_size == 258
    assert resolve("model.vocab_size=320").run.model.vocab_size == 320


def test_an_explicit_position_may_be_a_bare_number(resolve) -> None:
    assert layout_of(resolve("model.ratio=1:2", "model.depth=3", "model.placement=2").run.model) == "MAM"

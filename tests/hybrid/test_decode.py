import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.budget import parse_count, whole_batches
from hybrid.decode import canonical_json, decode, encode
from hybrid.spec import AdamWSpec, AttentionSpec, ConfigError, DataSpec, Mamba2Spec, RunSpec

ADAMW = {"kind": "adamw", "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}


def test_a_run_spec_survives_the_round_trip_through_json(resolve) -> None:
    run = resolve("scale=1b", "model.ratio=1:5").run
    assert decode(RunSpec, json.loads(canonical_json(run))) == run


def test_canonical_json_does_not_depend_on_the_order_or_spelling_of_the_input() -> None:
    shuffled = dict(reversed(list(ADAMW.items()))) | {"grad_clip": 1}
    assert canonical_json(decode(AdamWSpec, shuffled)) == canonical_json(decode(AdamWSpec, ADAMW))


def test_canonical_json_is_what_json_itself_would_write_of_sorted_keys() -> None:
    spec = decode(AdamWSpec, ADAMW)
    assert canonical_json(spec) == json.dumps(encode(spec), sort_keys=True, separators=(",", ":"))


@given(st.floats(min_value=1e-12, max_value=1e3))
def test_floats_survive_to_the_last_bit(lr: float) -> None:
    spec = decode(AdamWSpec, {**ADAMW, "lr": lr})
    assert decode(AdamWSpec, json.loads(canonical_json(spec))).lr == lr


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"optim\.weight_decai = 0\.1: unknown setting; did you mean weight_decay\?"):
        decode(AdamWSpec, {**ADAMW, "weight_decai": 0.1}, "optim")


def test_all_problems_of_one_object_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(AdamWSpec, {**ADAMW, "lr": "fast", "beta1": None, "nesterov": True, "kind": "sgd"}, "optim")
    assert [problem.split(" ")[0] for problem in sorted(caught.value.problems)] == [
        "optim.beta1",
        "optim.kind",
        "optim.lr",
        "optim.nesterov",
    ]


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr: missing; expected a number"):
        decode(AdamWSpec, {key: value for key, value in ADAMW.items() if key != "lr"}, "optim")


def test_an_unknown_kind_of_a_union_lists_the_known_ones() -> None:
    kinds = "compression, corpus, fuzzy_recall, hub, in_context_recall, memorisation, needle, recall, selective_copying"
    with pytest.raises(
        ConfigError, match=rf"data\.kind = 'recal': unknown; did you mean recall\? \(valid: {kinds}, stdlib\)"
    ):
        decode(DataSpec, {"kind": "recal"}, "data")


@pytest.mark.parametrize("value", [True, "8", 8.5, None, math.inf])
def test_a_whole_number_is_not_made_of_anything_else(value: object) -> None:
    with pytest.raises(ConfigError, match="n_heads"):
        decode(AttentionSpec, {"kind": "attention", "n_heads": value, "n_kv_heads": 1, "head_dim": 8, "rope": None})


@pytest.mark.parametrize("value", [True, "1e-3", math.nan, math.inf])
def test_a_number_is_finite_and_not_a_text(value: object) -> None:
    with pytest.raises(ConfigError, match="lr"):
        decode(AdamWSpec, {**ADAMW, "lr": value})


def test_a_spec_of_another_revision_is_refused() -> None:
    with pytest.raises(ConfigError, match="revision = 2: expected revision 1"):
        decode(AdamWSpec, {**ADAMW, "revision": 2})


def test_kinds_are_written_down_and_revision_one_is_not(resolve) -> None:
    plain = encode(resolve().run)
    assert plain["model"]["blocks"][0]["mixer"]["kind"] == Mamba2Spec.kind
    assert "revision" not in json.dumps(plain).replace("corpus_revision", "")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("60B", 60 * 10**9),
        ("60 B", 60 * 10**9),
        ("6e10", 6 * 10**10),
        (6e10, 6 * 10**10),
        ("0.5M", 500_000),
        ("2_097_152", 2097152),
        (2048, 2048),
        ("1.5k", 1500),
        ("4.1B", 4_100_000_000),
        ("16.1B", 16_100_000_000),
    ],
)
def test_counts_are_read_as_people_write_them(text: object, number: int) -> None:
    assert parse_count(text, "budget.tokens") == number


@pytest.mark.parametrize("bad", ["", "many", "-5", 0, -1, 1.5, "0.3", "1e400", None, True, "60BB", "B"])
def test_what_is_no_count_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"budget\.tokens"):
        parse_count(bad, "budget.tokens")


@given(st.integers(1, 10**12), st.integers(1, 10**7))
def test_whole_batches_are_the_nearest(tokens: int, batch: int) -> None:
    rounded = whole_batches(tokens, batch)
    assert rounded % batch == 0
    assert abs(rounded - tokens) * 2 <= batch

"""One contract over every model of conf/model/: step equals forward, causality, bfloat16, checkpoints, identity.

Their parameters, FLOPs and state bytes are counted in tests/hybrid/test_cost_of_modules.py.
"""

import io
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid.config import read_config
from hybrid.decode import canonical_json, decode, encode
from hybrid.model import LanguageModel, scored_loss
from hybrid.spec import AttentionSpec, IntraSpec, MixerSpec, RunSpec, WindowSpec
from sweeps.compose import Composer

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
PRESETS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
every_preset = pytest.mark.parametrize("name", PRESETS)

VOCAB = 64
LENGTH = 48
"""Longer than two windows and the sink, so that windows are cut into blocks, and several chunks."""
CHUNK = 8
# Weights five times as large as in training, so that what is wrong anywhere is seen in the logits.
SMALL = (
    "scale=toy",
    "data=recall",
    f"seq_len={LENGTH}",
    f"batch_tokens={2 * LENGTH}",
    f"model.vocab_size={VOCAB}",
    "model.init_std=0.1",
)
# With 128 meta tokens, all of them seen through every window, a short sequence would have no window.
SHORTER = {"hymba": ("model.meta_tokens=4", "model.window.sink=4")}


def resolved(*overrides: str) -> RunSpec:
    with Composer() as composer:
        return read_config(composer.compose(overrides), stdlib_fingerprint=lambda: "0" * 16).run


@cache
def small(name: str) -> RunSpec:
    return resolved(*SMALL, f"model={name}", *SHORTER.get(name, ()))


def new(name: str) -> LanguageModel:
    return LanguageModel(small(name).model, ssd_chunk=CHUNK)


def built(name: str) -> LanguageModel:
    model = new(name)
    model.init_weights(1)
    return model


def tokens() -> Tensor:
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def windows(mixer: MixerSpec) -> list[WindowSpec]:
    match mixer:
        case (
            AttentionSpec(window=WindowSpec() as window)
            | IntraSpec(attention=AttentionSpec(window=WindowSpec() as window))
        ):
            return [window]
        case _:
            return []


def test_the_sequences_are_longer_than_what_any_preset_sees_through_a_window() -> None:
    models = {name: small(name).model for name in PRESETS}
    found = {name: [w for block in model.blocks for w in windows(block.mixer)] for name, model in models.items()}
    assert any(found.values())
    assert all(2 * w.size + w.sink < models[name].meta_tokens + LENGTH for name in found for w in found[name])


@every_preset
def test_step_over_an_uneven_partition_equals_forward(name: str) -> None:
    model = built(name).double()
    outputs: list[Tensor] = []
    with torch.no_grad():
        state = model.init_state(2, LENGTH)
        # A piece longer than a window and its sink, and single steps behind it.
        for piece in torch.split(tokens(), [1, 7, 20, 1, 1, 1, 5, 12], dim=1):
            logits, state = model.step(piece, state)
            outputs.append(logits)
        torch.testing.assert_close(torch.cat(outputs, dim=1), model(tokens()), rtol=0, atol=1e-10)


@every_preset
@pytest.mark.parametrize("position", [1, 20, LENGTH - 2])
def test_gradients_of_later_tokens_are_exactly_zero(name: str, position: int) -> None:
    model = built(name).double()
    # Token t stands at position t alone, and of the head, which may be the same matrix, row 0 alone is read.
    logit = model(torch.arange(LENGTH)[None])[0, position, 0]
    (dembedding,) = torch.autograd.grad(logit, model.embedding)
    assert torch.equal(dembedding[position + 1 :], torch.zeros_like(dembedding[position + 1 :]))
    assert dembedding[position - 1 : position + 1].abs().amax(1).min() > 0


@every_preset
def test_bfloat16_autocast_is_near_float32_and_its_gradients_are_finite(name: str) -> None:
    model = built(name)
    with torch.no_grad():
        plain = model(tokens())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens())
        loss, _, _ = scored_loss(logits, tokens())
    torch.autograd.backward(loss)
    # Experts are chosen by scores that rounding may exchange; without experts it is half of that.
    assert float((logits.detach().float() - plain).norm() / plain.norm()) < 0.1
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name


@every_preset
def test_a_saved_model_loads_into_a_new_one_bit_by_bit(name: str) -> None:
    model, fresh = built(name), new(name)
    # The biases of experts, which are no parameters, are then something too.
    model.train()(tokens())
    model.balance_experts()
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *fresh.buffers()):
            tensor.fill_(math.nan)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(fresh(tokens()), model(tokens()))


@every_preset
@pytest.mark.parametrize("scale", ["toy", "1b"])
def test_a_spec_survives_the_round_trip_through_canonical_json(name: str, scale: str) -> None:
    run = small(name) if scale == "toy" else resolved(f"scale={scale}", f"model={name}")
    text = canonical_json(run)
    again = decode(RunSpec, json.loads(text))
    assert again == run
    # repr, unlike equality and with it the cache of canonical_json, tells 1 from 1.0.
    assert repr(again) == repr(run)
    assert json.dumps(encode(again), sort_keys=True, separators=(",", ":")) == text

"""An exported run, loaded by transformers from its files alone, has the logits of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import hybrid
from hybrid import exported
from hybrid.__main__ import main
from hybrid.config import Resolved
from hybrid.data.__main__ import main as prepare
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError
from hybrid.train.loop import build_model
from sweeps.identity import run_id
from sweeps.stopping import StopFlag
from sweeps.store import Store
from sweeps.worker.runs import run_one

SMALL = (
    "model.depth=3",
    "model.d_model=32",
    "model.attention.n_heads=4",
    "model.attention.n_kv_heads=2",
    "model.attention.head_dim=12",
    "model.mamba.d_ssm=64",
    "model.mamba.head_dim=16",
    "model.mamba.d_state=12",
    "model.ffn.d_ffn=56",
    "model.norm_eps=3e-5",
    "seq_len=64",
    "batch_tokens=128",
    "budget.tokens=256",
)
SCALING = (
    "model.attention.rope={theta:100,scaling:{factor:32,low_freq_factor:1,high_freq_factor:4,original_seq_len:32}}"
)
TOLERANCE = 5e-6
"""Largest difference of logits over the largest of them, float32."""

COUNTERPARTS = {
    "llama": ("LlamaForCausalLM", ["model=llama"]),
    "llama, scaled positions, untied": ("LlamaForCausalLM", ["model=llama", SCALING, "model.tie_embeddings=false"]),
    "mamba2": ("Mamba2ForCausalLM", ["model=mamba", "model.ffn=null"]),
    "mamba2 of two groups, untied": (
        "Mamba2ForCausalLM",
        [
            "model=mamba",
            "model.ffn=null",
            "model.mamba.n_groups=2",
            "model.mamba.gate_norm=grouped",
            "model.tie_embeddings=false",
        ],
    ),
    "bamba": ("BambaForCausalLM", ["model=inter", "model.ratio=1:2"]),
    "bamba without attention": ("BambaForCausalLM", ["model=mamba"]),
    "bamba, scaled positions": ("BambaForCausalLM", ["model=inter", "model.ratio=2:1", SCALING]),
}


def drawn(resolved: Resolved) -> LanguageModel:
    """Our model with weights of which no two are alike, norms and biases included."""
    model = build_model(resolved.run, resolved.execution)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_transformers_loads_what_was_exported_and_computes_the_same(
    name: str, resolve: Callable[..., Resolved], tmp_path: Path
) -> None:
    architecture, overrides = COUNTERPARTS[name]
    resolved = resolve(*SMALL, *overrides)
    model = drawn(resolved)
    exported.write(resolved.run, model, tmp_path / "out", exported.tokens_of(resolved.run, tmp_path))
    theirs, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(theirs).__name__ == architecture
    assert not any(loading.values()), loading
    tokens_BL = torch.randint(258, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BLV = model(tokens_BL)
        found_BLV = theirs.eval()(tokens_BL, use_cache=False).logits
    error = (found_BLV - expected_BLV).abs().max() / expected_BLV.abs().max()
    assert error < TOLERANCE


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=intra"], ["intra: expected attention or mamba2"]),
        (["model=swa"], ["attention.window = 16, sink 2", "attention: 2 different ones"]),
        (["model=llama", "model.attention.rope=null"], ["attention.rope = null"]),
        (["model=llama", "model.attention.qkv_conv=4"], ["attention.qkv_conv = 4"]),
        (["model=llama", "model.ffn=null"], ["blocks without one: expected swiglu"]),
        (["model=llama", "model.meta_tokens=3"], ["model.meta_tokens = 3: expected 0"]),
        (
            ["model=diff_transformer", "model.moe.every=2"],
            ["diff_attention: expected", "ffn moe: expected", "ffn: 2 different"],
        ),
        (["model=mamba", "model.mamba.d_ssm=48"], ["mamba.d_ssm = 48: expected a multiple of d_model = 32"]),
        (["model=mamba", "model.mamba.n_groups=2"], ["mamba.gate_norm = rms, n_groups = 2"]),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    overrides: list[str], expected: list[str], resolve: Callable[..., Resolved], tmp_path: Path
) -> None:
    resolved = resolve(*SMALL, *overrides)
    with pytest.raises(ConfigError) as error:
        exported.write(resolved.run, drawn(resolved), tmp_path / "out", exported.tokens_of(resolved.run, tmp_path))
    assert all(any(text in problem for problem in error.value.problems) for text in expected), error.value.problems
    assert list(tmp_path.iterdir()) == []


def test_the_byte_tokenizer_is_bytes_behind_a_bos(resolve: Callable[..., Resolved], tmp_path: Path) -> None:
    resolved = resolve(*SMALL, "model=llama")
    exported.write(resolved.run, drawn(resolved), tmp_path / "out", exported.tokens_of(resolved.run, tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("def f(x):\n\treturn  x", "größe Δ 🙂", "".join(map(chr, range(1, 256))), ""):
        ids = tokenizer(text)["input_ids"]
        assert ids == [256, *text.encode()]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (256, 257, 258)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id, config.max_position_embeddings) == (256, 257, 64)


def test_a_run_of_other_tokens_has_no_tokenizer(resolve: Callable[..., Resolved], tmp_path: Path) -> None:
    resolved = resolve(*SMALL, "model=llama", "data=recall", "data.n_symbols=16", "data.n_pairs=2")
    exported.write(resolved.run, drawn(resolved), tmp_path / "out", exported.tokens_of(resolved.run, tmp_path))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] is None


def test_a_finished_run_is_exported_by_command_and_from_python(
    resolve: Callable[..., Resolved], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = resolve(*SMALL, "model=inter", "model.ratio=1:2", "data=recall", "data.n_symbols=16", "data.n_pairs=2")
    store, name = Store(tmp_path / "store"), run_id(resolved.run)
    store.prepare()
    assert run_one(store, resolved.run, resolved.execution, stop=StopFlag(), progress=lambda *_: None) == "done"
    place: dict[str, Any] = {"store": store.root}
    assert hybrid.export(name, tmp_path / "python", **place) == tmp_path / "python"
    assert main(["export", name[:4], f"{tmp_path}/command", "--store", str(store.root)]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    ours = hybrid.load(name, **place)
    for directory in ("python", "command"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / directory).eval()
        tokens_BL = torch.arange(32).reshape(2, 16) % 16
        with torch.no_grad():
            assert torch.allclose(theirs(tokens_BL, use_cache=False).logits, ours(tokens_BL), atol=1e-5)
    for arguments, message in (
        ([name, f"{tmp_path}/command"], "expected a directory that is new or empty"),
        (["0123456789ab", f"{tmp_path}/other"], "no such run"),
    ):
        assert main(["export", *arguments, "--store", str(store.root)]) == 2
        assert message in capsys.readouterr().err


def test_the_tokenizer_of_a_corpus_comes_along(resolve: Callable[..., Resolved], tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [f"text number {i} of a corpus" for i in range(90)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(tmp_path / "given.json"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = tmp_path / "data" / "mine"
    arguments = ["prepare", corpus, tmp_path / "a.jsonl", "--tokenizer", tmp_path / "given.json", "--processes", 1]
    assert prepare([str(argument) for argument in [*arguments, "--val-percent", 30, "--max-overlap", 1]]) == 0
    resolved = resolve(*SMALL, "model=llama", "data=corpus", f"data.directory={corpus}")
    tokens = exported.tokens_of(resolved.run, tmp_path / "data")
    exported.write(resolved.run, drawn(resolved), tmp_path / "out", tokens)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(texts[3])["input_ids"] == tokenizer.encode(texts[3]).ids
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokens.bos, tokens.eos) == (0, 1)
    assert exported.tokens_of(resolved.run, tmp_path / "elsewhere").files == {}

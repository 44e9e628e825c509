"""A trained model as a checkpoint that transformers loads, where it has the same architecture: Llama, Mamba2 or Bamba.

Written with safetensors and JSON alone; transformers is never imported. The weights are the float32 ones of the run,
cut and renamed; not one is changed, so the logits are the same up to the order of sums. What has no counterpart is
refused by name, all of it at once:

    LlamaForCausalLM    attention and SwiGLU in every block, all alike
    Mamba2ForCausalLM   Mamba-2 in every block, without ffn, all alike
    BambaForCausalLM    Mamba-2 in some or all blocks, attention in the others, SwiGLU in all, each kind alike
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import safetensors.torch
import torch
from torch import Tensor

from hybrid import trained
from hybrid.data.corpora import tokenizer_file
from hybrid.data.pieces import byte_characters
from hybrid.durable import make_dir
from hybrid.manifest import find_corpus
from hybrid.model import LanguageModel
from hybrid.spec import (
    AttentionSpec,
    ConfigError,
    CorpusSpec,
    HubSpec,
    Llama3RopeScalingSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    RunSpec,
    StdlibSpec,
    SwigluSpec,
)

Counterpart = Literal["llama", "mamba2", "bamba"]

_ARCHITECTURES: Final[dict[Counterpart, str]] = {
    "llama": "LlamaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "bamba": "BambaForCausalLM",
}
_BYTE_BOS: Final = 256
_BYTE_EOS: Final = 257


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a run's data: bos and eos, and the files of their tokenizer by name."""

    bos: int | None
    eos: int | None
    files: dict[str, bytes]


def export(
    run_id: str,
    directory: str | Path,
    *,
    store: str | Path | None = None,
    checkpoints: str | Path | None = None,
    data: str | Path | None = None,
) -> Path:
    """As `hybrid.export`, which says what it raises."""
    run, model = trained.load_run(run_id, store=store, checkpoints=checkpoints)
    root = Path(store or os.environ.get("HYBRID_STORE") or "store")
    return write(run, model, Path(directory), tokens_of(run, Path(data or root / "data")))


def write(run: RunSpec, model: LanguageModel, target: Path, tokens: Tokens) -> Path:
    """The checkpoint in `target`, whole or not at all. Raises ConfigError as `hybrid.export`, OSError."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: expected a directory that is new or empty")
    special = {"bos_token_id": tokens.bos, "eos_token_id": tokens.eos, "pad_token_id": None}
    files = tokens.files | {"config.json": _json(config(run) | special), "generation_config.json": _json(special)}
    tensors = weights(model)
    make_dir(target.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        safetensors.torch.save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


# --- what has a counterpart ---------------------------------------------------------------------


def counterpart(spec: ModelSpec) -> Counterpart:
    """The architecture of transformers that computes the same. Raises ConfigError naming all that has none."""
    problems = [
        f"model.{name} = {value}: expected {birth}: transformers' Llama, Mamba2 and Bamba have none"
        for name, value, birth in (
            ("meta_tokens", spec.meta_tokens, 0),
            ("embedding_multiplier", spec.embedding_multiplier, 1.0),
            ("residual_multiplier", spec.residual_multiplier, 1.0),
            ("logit_multiplier", spec.logit_multiplier, 1.0),
        )
        if value != birth
    ]
    attentions = _distinct([block.mixer for block in spec.blocks if isinstance(block.mixer, AttentionSpec)])
    mambas = _distinct([block.mixer for block in spec.blocks if isinstance(block.mixer, Mamba2Spec)])
    ffns = _distinct([block.ffn for block in spec.blocks])
    for i, block in enumerate(spec.blocks):
        if not isinstance(block.mixer, AttentionSpec | Mamba2Spec):
            problems.append(f"block {i}: {block.mixer.kind}: expected attention or mamba2, which transformers has")
        if block.ffn is not None and not isinstance(block.ffn, SwigluSpec):
            problems.append(f"block {i}: ffn {block.ffn.kind}: expected swiglu, which its Llama and Bamba have")
    for kind, found in (("attention", attentions), ("mamba2", mambas), ("ffn", ffns)):
        if len(found) > 1:
            problems.append(
                f"{kind}: {len(found)} different ones: expected one for all blocks, as its configurations say it"
            )
    for attention in attentions:
        problems += _of_attention(attention, spec.d_model)
    for mamba in mambas:
        problems += _of_mamba2(mamba, spec.d_model)
    if None in ffns and attentions:
        problems.append("ffn: blocks without one: expected swiglu in every block, as in its Llama and Bamba")
    if problems:
        raise ConfigError([f"export: {problem}" for problem in dict.fromkeys(problems)])
    if not mambas:
        return "llama"
    return "mamba2" if None in ffns else "bamba"


def _distinct(parts: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(parts))


def _of_attention(spec: AttentionSpec, d_model: int) -> list[str]:
    """What its Llama, and the attention of its Bamba, cannot do."""
    problems = []
    if spec.rope is None:
        problems.append("attention.rope = null: expected rotary positions")
    if spec.window is not None:
        problems.append(f"attention.window = {spec.window.size}, sink {spec.window.sink}: expected attention to all")
    if spec.value_head_dim not in (None, spec.head_dim) or spec.n_value_heads not in (None, spec.n_kv_heads):
        problems.append("attention.value_head_dim, n_value_heads: expected those of the keys")
    if spec.qkv_conv is not None:
        problems.append(f"attention.qkv_conv = {spec.qkv_conv}: expected none")
    if spec.softmax_scale not in (None, spec.head_dim**-0.5):
        problems.append(f"attention.softmax_scale = {spec.softmax_scale}: expected 1 / sqrt(head_dim)")
    if spec.borrows_kv:
        problems.append("attention.borrows_kv = true: expected keys and values of each block's own")
    if d_model % spec.n_heads:
        problems.append(f"attention.n_heads = {spec.n_heads}: expected a divisor of d_model = {d_model}")
    return problems


def _of_mamba2(spec: Mamba2Spec, d_model: int) -> list[str]:
    """What its Mamba2, and the Mamba-2 of its Bamba, cannot do."""
    problems = []
    if spec.d_ssm % d_model:
        problems.append(f"mamba.d_ssm = {spec.d_ssm}: expected a multiple of d_model = {d_model}")
    if spec.gate_norm == "none" or (spec.gate_norm == "rms" and spec.n_groups > 1):
        problems.append(
            f"mamba.gate_norm = {spec.gate_norm}, n_groups = {spec.n_groups}: expected a norm of each group "
            "(grouped, or rms of one group)"
        )
    return problems


# --- its configuration --------------------------------------------------------------------------


def config(run: RunSpec) -> dict[str, Any]:
    """`config.json`. Raises ConfigError for a model without a counterpart."""
    spec = run.model
    kind = counterpart(spec)
    attention = next((block.mixer for block in spec.blocks if isinstance(block.mixer, AttentionSpec)), None)
    mamba = next((block.mixer for block in spec.blocks if isinstance(block.mixer, Mamba2Spec)), None)
    ffn = spec.blocks[0].ffn
    found: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "dtype": "float32",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": len(spec.blocks),
        "tie_word_embeddings": spec.tie_embeddings,
        "initializer_range": spec.init_std,
        "hidden_act": "silu",
        "use_cache": True,
    }
    if kind == "mamba2":
        assert mamba is not None
        return found | {
            "num_heads": mamba.n_heads,
            "head_dim": mamba.head_dim,
            "state_size": mamba.d_state,
            "n_groups": mamba.n_groups,
            "conv_kernel": mamba.d_conv,
            "expand": mamba.d_ssm // spec.d_model,
            "layer_norm_epsilon": spec.norm_eps,
            "use_bias": False,
            "use_conv_bias": True,
        }
    assert isinstance(ffn, SwigluSpec)
    found |= {
        "rms_norm_eps": spec.norm_eps,
        "intermediate_size": ffn.d_ffn,
        "max_position_embeddings": run.seq_len,
        "attention_bias": False,
        "mlp_bias": False,
    }
    if attention is not None:
        found |= {
            "num_attention_heads": attention.n_heads,
            "num_key_value_heads": attention.n_kv_heads,
            "head_dim": attention.head_dim,
            "rope_parameters": _rope(attention),
        }
    if mamba is not None:
        found |= {
            "attn_layer_indices": [i for i, block in enumerate(spec.blocks) if isinstance(block.mixer, AttentionSpec)],
            "mamba_n_heads": mamba.n_heads,
            "mamba_d_head": mamba.head_dim,
            "mamba_d_state": mamba.d_state,
            "mamba_n_groups": mamba.n_groups,
            "mamba_d_conv": mamba.d_conv,
            "mamba_expand": mamba.d_ssm // spec.d_model,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
        }
    return found


def _rope(spec: AttentionSpec) -> dict[str, Any]:
    assert spec.rope is not None
    # Bamba turns half of every head unless told otherwise.
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope.theta, "partial_rotary_factor": 1.0}
    scaling: Llama3RopeScalingSpec | None = spec.rope.scaling
    if scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_seq_len,
        }
    return rope


# --- its weights --------------------------------------------------------------------------------


def weights(model: LanguageModel) -> dict[str, Tensor]:
    """The model's parameters under transformers' names. Blocks that are one here are copies there."""
    spec = model.spec
    kind = counterpart(spec)
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    body = "backbone" if kind == "mamba2" else "model"
    last_norm = {"llama": "norm", "mamba2": "norm_f", "bamba": "final_layernorm"}[kind]
    found = {
        f"{body}.{'embeddings' if kind == 'mamba2' else 'embed_tokens'}.weight": ours["embedding"],
        f"{body}.{last_norm}.weight": ours["final_norm.weight"],
    }
    if not spec.tie_embeddings:
        found["lm_head.weight"] = ours["head"]
    for i, (block, module) in enumerate(zip(spec.blocks, model.applied_blocks(), strict=True)):
        theirs, own = f"{body}.layers.{i}", {key: tensor.detach().cpu() for key, tensor in module.state_dict().items()}
        found[f"{theirs}.{'norm' if kind == 'mamba2' else 'input_layernorm'}.weight"] = own["mixer_norm.weight"]
        mixer = {"mamba2": "mixer", "bamba": "mamba", "llama": "self_attn"}[kind]
        mixer = "self_attn" if isinstance(block.mixer, AttentionSpec) else mixer
        found |= {f"{theirs}.{mixer}.{key}": tensor for key, tensor in _mixer(block.mixer, own).items()}
        if isinstance(block.ffn, SwigluSpec):
            norm, ffn = ("pre_ff_layernorm", "feed_forward") if kind == "bamba" else ("post_attention_layernorm", "mlp")
            gate, up = own["ffn.gate_up_proj.weight"].chunk(2)
            found |= {
                f"{theirs}.{norm}.weight": own["ffn_norm.weight"],
                f"{theirs}.{ffn}.gate_proj.weight": gate,
                f"{theirs}.{ffn}.up_proj.weight": up,
                f"{theirs}.{ffn}.down_proj.weight": own["ffn.down_proj.weight"],
            }
    # Parts of one tensor, and one under two names, each as a tensor of its own.
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def _mixer(spec: MixerSpec, own: dict[str, Tensor]) -> dict[str, Tensor]:
    match spec:
        case AttentionSpec():
            sizes = [spec.d_qk, spec.n_kv_heads * spec.head_dim, spec.n_v_heads * spec.v_head_dim]
            q, k, v = torch.split(own["mixer.qkv_proj.weight"], sizes)
            out = own["mixer.out_proj.weight"]
            return {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": out}
        case Mamba2Spec():
            same = ("in_proj.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight")
            return {name: own[f"mixer.{name}"] for name in same} | {
                "conv1d.weight": own["mixer.conv_weight"].unsqueeze(1),
                "conv1d.bias": own["mixer.conv_bias"],
            }
        case _:
            raise ConfigError(f"export: {spec.kind}: expected attention or mamba2")


# --- its tokenizer ------------------------------------------------------------------------------


def tokens_of(run: RunSpec, data_root: Path) -> Tokens:
    """What is known here of the run's tokens: of a corpus, what lies beside its shards below `data_root`."""
    match run.data:
        case StdlibSpec():
            return Tokens(bos=_BYTE_BOS, eos=_BYTE_EOS, files=byte_tokenizer(run.seq_len))
        case CorpusSpec() | HubSpec():
            try:
                directory, manifest = find_corpus(data_root, run.data)
            except ConfigError:
                return Tokens(bos=None, eos=None, files={})
            if not manifest.tokenizer_sha256:
                return Tokens(bos=manifest.bos, eos=manifest.eos, files=byte_tokenizer(run.seq_len))
            content = tokenizer_file(directory, manifest).read_bytes()
            settings = _tokenizer_settings(manifest.bos_token, manifest.eos_token, run.seq_len)
            files = {"tokenizer.json": content, "tokenizer_config.json": _json(settings)}
            return Tokens(bos=manifest.bos, eos=manifest.eos, files=files)
        case _:
            return Tokens(bos=None, eos=None, files={})


def _tokenizer_settings(bos: str, eos: str, seq_len: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_len,
    }


def byte_tokenizer(seq_len: int) -> dict[str, bytes]:
    """The files of a tokenizer whose tokens are bytes, then bos and eos, with a bos before every text.

    A byte-level BPE without a merge: its alphabet gives every byte a character, so ids need no offset.
    """
    special = [(_BYTE_BOS, "<|bos|>"), (_BYTE_EOS, "<|eos|>")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bos = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, *({"Sequence": {"id": which, "type_id": 0}} for which in "AB")],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [_BYTE_BOS], "tokens": ["<|bos|>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(byte_characters())}
            | {text: number for number, text in special},
            "merges": [],
        },
    }
    settings = _tokenizer_settings(special[0][1], special[1][1], seq_len)
    return {"tokenizer.json": _json(tokenizer), "tokenizer_config.json": _json(settings)}

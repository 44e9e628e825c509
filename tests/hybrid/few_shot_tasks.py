"""A small model on bytes, and local tasks, for tests of few-shot evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.data.shards import Shards
from hybrid.data.stdlib import StdlibData
from hybrid.model import LanguageModel
from hybrid.spec import AttentionSpec, BlockSpec, Mamba2Spec, ModelSpec, RopeSpec, WindowSpec

TASKS = Path(__file__).parent.parent / "data" / "fewshot"
CHOICES: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "mine.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}
ROWS: list[dict[str, Any]] = [
    {"question": f"{i} and", "choices": [f"{i + 1}", "grün", f"{i}{i}"], "answer": i % 3} for i in range(9)
]


def stdlib_data() -> StdlibData:
    tokens = np.random.default_rng(0).integers(97, 123, size=400).astype(np.uint16)
    tokens[0] = 256
    return StdlibData(Shards(directory=Path("nowhere"), training=tokens, validation=tokens), 16)


def small_model(vocab_size: int = 260) -> LanguageModel:
    """Mamba, attention and a window, in weights that make some tokens much likelier than others."""
    mamba = Mamba2Spec(
        d_ssm=16,
        head_dim=8,
        d_state=4,
        n_groups=1,
        d_conv=4,
        a_init_min=0.01,
        a_init_max=0.1,
        dt_init_min=0.01,
        dt_init_max=0.1,
    )
    attention = AttentionSpec(n_heads=2, n_kv_heads=1, head_dim=8, rope=RopeSpec(theta=1e4, scaling=None))
    window = AttentionSpec(
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        rope=RopeSpec(theta=1e4, scaling=None),
        window=WindowSpec(size=5, sink=2),
    )
    blocks = tuple(BlockSpec(mixer=mixer, ffn=None) for mixer in (mamba, attention, window))
    spec = ModelSpec(
        d_model=16, vocab_size=vocab_size, tie_embeddings=False, norm_eps=1e-5, init_std=0.5, blocks=blocks
    )
    model = LanguageModel(spec)
    model.init_weights(1)
    return model


def write_task(directory: Path, rows: Sequence[Any] = ROWS, **changes: Any) -> Path:
    """`CHOICES` with these changes (None: left out), and its rows; a row that is a text is written as it is."""
    settings = {name: value for name, value in {**CHOICES, **changes}.items() if value is not None}
    path = directory / "mine.yaml"
    path.write_text(json.dumps(settings))
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    (directory / "mine.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return path

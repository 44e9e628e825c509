"""The frozen descriptions of evaluations; torch-free.

An evaluation is one of a finished run, and never part of its id: its own id is the hash of its spec. As with runs, what
is added to a spec after its birth is left out while it has its birth value, and a fix that changes what a kind measures
raises its `revision`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, assert_never, final

from hybrid.decode import canonical_json, digest, encode
from hybrid.probes import check_probe, with_items
from hybrid.spec import ConfigError, DataSpec, IntraSpec, NeedleSpec, ProbeSpec, RunSpec, added

SHORTEST_PROMPT: Final = 128
"""The tokens that a needle, its question and some haystack take where each byte is one."""


@final
@dataclass(frozen=True, kw_only=True)
class NllEvalSpec:
    """Validation loss and accuracy over the first `max_examples` held-out sequences (null: the whole split).

    They are those of the run's own data, or of `data`, which is then called `name`.
    """

    kind: ClassVar[str] = "nll"
    revision: ClassVar[int] = 1

    max_examples: int | None = None
    name: str | None = added(None)
    data: DataSpec | None = added(None)  # noqa: RUF009, as `added` makes a field


@final
@dataclass(frozen=True, kw_only=True)
class PositionEvalSpec:
    """Loss by position, in bins of `bin`, over the first `length` positions of long documents, each on its own.

    Of the first `documents` that are long enough: the run's own held-out ones, or `texts`, one each, by the first 16
    hex digits of their SHA-256.
    """

    kind: ClassVar[str] = "position"
    revision: ClassVar[int] = 1

    length: int
    bin: int
    documents: int
    texts: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class NeedleEvalSpec:
    """How often a sentence in the depth of a long text is found again (arXiv 2510.04800, Figure 4).

    A prompt has one of `lengths` tokens, all told, and the needle at one of `depths_percent` of its haystack; each pair
    is tried `trials` times, and `new_tokens` are generated. The haystack is taken out of the run's own held-out text,
    or of `text`, given by the first 16 hex digits of its SHA-256. Of a run on needles among letters, it is of letters.
    """

    kind: ClassVar[str] = "needle"
    revision: ClassVar[int] = 1

    lengths: tuple[int, ...]
    depths_percent: tuple[int, ...]
    trials: int
    new_tokens: int
    seed: int
    text: str | None


@final
@dataclass(frozen=True, kw_only=True)
class RecallEvalSpec:
    """Accuracy on the run's own synthetic task, over `examples` held-out sequences of each size, that of training too.

    Sizes are `lengths` of a sequence, each with each of `items`: how many things are to be remembered
    (`hybrid.probes.items_of`); as many as in training where there are none.
    """

    kind: ClassVar[str] = "recall"
    revision: ClassVar[int] = 1

    examples: int
    lengths: tuple[int, ...]
    items: tuple[int, ...]


@final
@dataclass(frozen=True, kw_only=True)
class ModuleWeightsEvalSpec:
    """Attention's weight in every gated intra-hybrid block, by position, a mean over held-out sequences."""

    kind: ClassVar[str] = "module_weights"
    revision: ClassVar[int] = 1

    max_examples: int = 64


Right = Literal["acc", "acc_norm", "acc_bytes", "exact_match"]
"""What counts as a right answer: the likeliest choice; by likelihood a character, or a byte, of it; the very words."""


@final
@dataclass(frozen=True, kw_only=True)
class TaskEvalSpec:
    """A task of LM Evaluation Harness, with `shots` answered questions before each; scored by `metric`.

    The accuracies of the tasks of one `benchmark` are averaged into its own. A local task is what its `files` say, by
    the first 16 hex digits of the SHA-256 of each: its YAML, then its data in the order in which that names them.
    """

    task: str
    shots: int
    metric: Right
    benchmark: str
    files: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class FewShotEvalSpec:
    """Accuracy on tasks, on the first `limit` questions of each (null: all); `seed` draws the shots."""

    kind: ClassVar[str] = "fewshot"
    revision: ClassVar[int] = 1

    tasks: tuple[TaskEvalSpec, ...]
    limit: int | None
    seed: int


@final
@dataclass(frozen=True, kw_only=True)
class ThroughputEvalSpec:
    """How fast a run's model trains, reads and decodes (arXiv 2510.04800, Table 13), beside rooflines.

    `batch` sequences go from `prompt` tokens to each of `lengths`; with `max_batch`, as many too as fit, up to that.

    What comes out depends on the machine, which no spec describes: so `device` is what tells one measurement from
    another. It is the kind of device of the execution that was asked with, cpu or cuda, unless it was named: a100, h100
    or h200, which only such a card fulfils, or any word for a machine, such as `new_node`, under which it is measured
    anew. Threads, kernels and versions, and what the device calls itself, are in the record; the first to
    measure under a name has said what it is, as with all records.
    """

    kind: ClassVar[str] = "throughput"
    revision: ClassVar[int] = 1

    device: str
    lengths: tuple[int, ...]
    batch: int
    prompt: int
    max_batch: int | None
    warmup: int
    repeats: int


EvalSpec = (
    NllEvalSpec
    | PositionEvalSpec
    | NeedleEvalSpec
    | RecallEvalSpec
    | FewShotEvalSpec
    | ModuleWeightsEvalSpec
    | ThroughputEvalSpec
)


def canonical(spec: EvalSpec) -> dict[str, Any]:
    """Plain data: what the canonical JSON says."""
    data: dict[str, Any] = encode(spec)
    return data


def eval_id(spec: EvalSpec) -> str:
    """12 hex digits of the SHA-256 of the canonical JSON."""
    return digest(canonical_json(spec))


def usual_evals(run: RunSpec) -> tuple[EvalSpec, ...]:
    """What is measured of a run of which nothing else was asked: its loss, and the weights of gated blocks."""
    return (NllEvalSpec(), *((ModuleWeightsEvalSpec(),) if is_gated(run) else ()))


def is_gated(run: RunSpec) -> bool:
    """Whether a block of the model has a gate, whose weights can be recorded."""
    return any(isinstance(block.mixer, IntraSpec) and block.mixer.scalar == "gate" for block in run.model.blocks)


def problems_of(spec: EvalSpec, run: RunSpec) -> list[str]:
    """Why an evaluation means nothing for this run, a line each; what only its data can tell is not asked here."""
    match spec:
        case ModuleWeightsEvalSpec() | ThroughputEvalSpec():
            return []
        case NllEvalSpec(data=data):
            if data is None or (is_text(run.data) and is_text(data)):
                return []
            return [
                f"eval.nll.sets.{spec.name} = {data.kind}: expected text, for a run on text; this one's data.kind is "
                f"{run.data.kind}"
            ]
        case PositionEvalSpec() | NeedleEvalSpec() | FewShotEvalSpec():
            if is_text(run.data) or (isinstance(spec, NeedleEvalSpec) and isinstance(run.data, NeedleSpec)):
                return []
            return [f"evals = {spec.kind}: data.kind = {run.data.kind}: expected a run on text, such as data=stdlib"]
        case RecallEvalSpec():
            if not isinstance(run.data, ProbeSpec):
                return [
                    f"evals = recall: data.kind = {run.data.kind}: expected a run on a synthetic task (data=recall)"
                ]
            return _recall_problems(spec, run.data)
        case _ as never:
            assert_never(never)


def _recall_problems(spec: RecallEvalSpec, probe: ProbeSpec) -> list[str]:
    """Items that none of the lengths holds; else lengths that hold none of the items."""
    items = spec.items or (None,)
    refused = {(n, length): _refusal(probe, n, length) for n in items for length in spec.lengths}
    by_items = [[refused[n, length] for length in reversed(spec.lengths)] for n in spec.items]
    by_length = [[refused[n, length] for n in items] for length in spec.lengths]
    return [f"eval.recall.items = {list(spec.items)}: {line[0]}" for line in by_items if None not in line] or [
        f"eval.recall.lengths = {list(spec.lengths)}: {line[0]}" for line in by_length if None not in line
    ]


def _refusal(probe: ProbeSpec, items: int | None, seq_len: int) -> str | None:
    try:
        check_probe(probe if items is None else with_items(probe, items), seq_len)
    except ConfigError as error:
        return error.problems[0]
    return None


def is_text(data: DataSpec) -> bool:
    """Whether these data are documents."""
    return not isinstance(data, ProbeSpec)

"""Corpora and synthetic probes; a batch is a pure function of (data_seed, step). NumPy only, no torch."""

from pathlib import Path
from typing import assert_never

from hybrid.data.base import NOT_SCORED, Batch, DataSource, DocumentSource
from hybrid.data.compression import CompressionData
from hybrid.data.corpora import open_corpus
from hybrid.data.fuzzy_recall import FuzzyRecallData
from hybrid.data.in_context_recall import InContextRecallData
from hybrid.data.memorisation import MemorisationData
from hybrid.data.needle import NeedleData
from hybrid.data.recall import RecallData
from hybrid.data.selective_copying import SelectiveCopyingData
from hybrid.data.shards import open_shards
from hybrid.data.stdlib import StdlibData
from hybrid.data.synthetic import SyntheticData
from hybrid.spec import (
    CompressionSpec,
    CorpusSpec,
    DataSpec,
    FuzzyRecallSpec,
    HubSpec,
    InContextRecallSpec,
    MemorisationSpec,
    NeedleSpec,
    ProbeSpec,
    RecallSpec,
    SelectiveCopyingSpec,
    StdlibSpec,
)

__all__ = ["NOT_SCORED", "Batch", "DataSource", "DocumentSource", "SyntheticData", "make_probe", "open_data"]


def open_data(spec: DataSpec, seq_len: int, cache_dir: Path) -> DataSource:
    """The data of a run, in sequences of `seq_len`, from shards below `cache_dir`; the library's are built if missing.

    Raises ConfigError if this machine does not have the data or they do not fit `seq_len`, OSError if shards cannot be
    written.
    """
    match spec:
        case StdlibSpec():
            return StdlibData(open_shards(spec, cache_dir), seq_len)
        case CorpusSpec() | HubSpec():
            return open_corpus(spec, seq_len, cache_dir)
        case _:
            return make_probe(spec, seq_len)


def make_probe(spec: ProbeSpec, seq_len: int) -> SyntheticData:
    """A probe's sequences of `seq_len`. Raises ConfigError if they cannot be laid out."""
    match spec:
        case RecallSpec():
            return RecallData(spec, seq_len)
        case NeedleSpec():
            return NeedleData(spec, seq_len)
        case InContextRecallSpec():
            return InContextRecallData(spec, seq_len)
        case FuzzyRecallSpec():
            return FuzzyRecallData(spec, seq_len)
        case SelectiveCopyingSpec():
            return SelectiveCopyingData(spec, seq_len)
        case CompressionSpec():
            return CompressionData(spec, seq_len)
        case MemorisationSpec():
            return MemorisationData(spec, seq_len)
        case _ as never:
            assert_never(never)

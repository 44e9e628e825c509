"""Corpora and synthetic probes; a batch is a pure function of (data_seed, step). NumPy only, no torch."""

from pathlib import Path
from typing import assert_never

from hybrid.data.base import NOT_SCORED, Batch, DataSource, DocumentSource
from hybrid.data.corpora import open_corpus
from hybrid.data.needle import NeedleData
from hybrid.data.recall import RecallData
from hybrid.data.shards import open_shards
from hybrid.data.stdlib import StdlibData
from hybrid.spec import CorpusSpec, DataSpec, HubSpec, NeedleSpec, RecallSpec, StdlibSpec

__all__ = ["NOT_SCORED", "Batch", "DataSource", "DocumentSource", "open_data"]


def open_data(spec: DataSpec, seq_len: int, cache_dir: Path) -> DataSource:
    """The data of a run, in sequences of `seq_len`, from shards below `cache_dir`; the library's are built if missing.

    Raises ConfigError if this machine does not have the data or they do not fit `seq_len`, OSError if shards cannot be
    written.
    """
    match spec:
        case StdlibSpec():
            return StdlibData(open_shards(spec, cache_dir), seq_len)
        case RecallSpec():
            return RecallData(spec, seq_len)
        case NeedleSpec():
            return NeedleData(spec, seq_len)
        case CorpusSpec() | HubSpec():
            return open_corpus(spec, seq_len, cache_dir)
        case _ as never:
            assert_never(never)

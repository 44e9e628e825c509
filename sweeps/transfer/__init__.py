"""Stores in files, and stores merged: `python -m sweeps export` and `import`.

An export is a tar file of a store's files under their own names, `manifest.json` the last of them:

    format.json  runs/...  trunks/...  requests/...  speeds/...  diffs/...  notes/...
    checkpoints/ab/<run_id>/final-a001.safetensors     with --weights
    checkpoints/trunks/ab/<trunk_id>/point00000120.ckpt  with --checkpoints
    manifest.json                                      the length and SHA-256 of all of them

Importing publishes what is not there yet, and replaces nothing. Where both stores have a record of a run, or describe
it differently, this one's stands and the other is told of. Attempts keep their numbers where these are free; where both
stores tried a run, those of the other follow the ones that are here, and what names them by number is told the new one:
the metrics that go on from them, the record, the weights. Which of them came with an earlier import is told by who made
them, so that importing again changes nothing.

    attempts/003/imported.json    the attempt was made in another store, under what number there

Neither an import nor an export takes along an attempt that somebody is at just now.
"""

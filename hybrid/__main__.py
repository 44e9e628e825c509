"""`python -m hybrid`: what can be done with a trained model outside of a sweep."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hybrid.checkpoint_files import RUNS, run_place
from hybrid.spec import ConfigError

_EXIT_FAILED = 1
_EXIT_MISTAKE = 2

_EXPORT = """Write a finished run as a checkpoint that transformers loads (AutoModelForCausalLM.from_pretrained),
with the same logits, where its architecture has a counterpart there: Llama, Mamba2 or Bamba."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one command; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hybrid", description="Trained models, outside of sweeps.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="a checkpoint for transformers", description=_EXPORT)
    export.add_argument("run", help="a run id, or its first digits")
    export.add_argument("directory", type=Path, metavar="DIR", help="new or empty")
    store = Path(os.environ.get("HYBRID_STORE") or "store")
    export.add_argument(
        "--store",
        type=Path,
        default=store,
        metavar="DIR",
        help="the results store (default: $HYBRID_STORE, else ./store)",
    )
    export.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="where weights are, if store.checkpoints was set"
    )
    export.add_argument("--data", type=Path, metavar="DIR", help="where shards are, if store.data was set")
    options = parser.parse_args(arguments)
    try:
        from hybrid.exported import export as write

        run_id = _whole(options.run, options.store)
        directory = write(
            run_id, options.directory, store=options.store, checkpoints=options.checkpoints, data=options.data
        )
    except ConfigError as error:
        print("\n".join(f"error: {line}" for line in error.problems), file=sys.stderr)
        return _EXIT_MISTAKE
    except OSError as error:
        print(f"error: {error.filename or options.directory}: {error.strerror or error}", file=sys.stderr)
        return _EXIT_FAILED
    if not (directory / "tokenizer.json").exists():
        print("no tokenizer: the run's tokens are no text, or its corpus is not below --data", file=sys.stderr)
    print(f"{directory}: {', '.join(sorted(path.name for path in directory.iterdir()))}")
    return 0


def _whole(given: str, store: Path) -> str:
    """The run id that begins so. Raises ConfigError for several."""
    place = run_place(store / RUNS, given)
    found = sorted(path.name for path in place.parent.glob(f"{place.name}*")) if len(given) >= 2 else []
    if len(found) > 1:
        raise ConfigError(f"run = {given}: begins {len(found)} ids: {', '.join(found[:5])}; give more digits")
    return found[0] if found else given


if __name__ == "__main__":
    sys.exit(main())

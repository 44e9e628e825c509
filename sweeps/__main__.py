"""`python -m sweeps`: what the store holds, without Hydra and without torch."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hybrid.spec import ConfigError
from sweeps.commands import EXIT_OK, guarded
from sweeps.progress import say
from sweeps.status import cells_text, choose_requests, diff_text, logs_text, requests_text, show_text
from sweeps.store import Store

_EPILOG = """examples:
  python -m sweeps status               every request, one line each
  python -m sweeps status demo          every cell of the newest request named demo
  python -m sweeps show 3f2a            one run in full; the first digits of its id do
  python -m sweeps diff 3f2a 91bc       where two runs differ
  python -m sweeps logs 3f2a            what its attempts logged

Sweeps are started with Hydra:
  python run.py -m +sweep=demo                 run what is missing
  python run.py -m +sweep=table4 mode=plan     stop at the plan
"""


_DEFAULT_STORE = Path(os.environ.get("HYBRID_STORE", "store"))


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweeps`."""
    top = argparse.ArgumentParser(
        prog="python -m sweeps",
        description="Which runs exist and what became of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    store_help = "the results store (default: $HYBRID_STORE, else ./store)"
    common.add_argument("--store", type=Path, default=_DEFAULT_STORE, metavar="DIR", help=store_help)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", parents=[common], help="requests, or the cells of one")
    status.add_argument("request", nargs="?", help="a sweep's name; without it, every request")
    show = commands.add_parser("show", parents=[common], help="one run in full")
    show.add_argument("run", help="a run id, or its first digits")
    diff = commands.add_parser("diff", parents=[common], help="where two runs differ")
    diff.add_argument("run", help="a run id, or its first digits")
    diff.add_argument("other", help="another")
    logs = commands.add_parser("logs", parents=[common], help="what a run's attempts logged")
    logs.add_argument("run", help="a run id, or its first digits")
    logs.add_argument("--attempt", type=int, metavar="N", help="only this attempt")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one command; gives the exit code."""
    options = parser().parse_args(arguments)

    def command() -> int:
        store = Store(options.store)
        store.check_format()
        if options.store != _DEFAULT_STORE and not options.store.is_dir():
            raise ConfigError(f"--store {options.store}: there is no such directory")
        for problem in store.damaged_requests():
            say(f"warning: {problem}")
        print(_answer(store, options))
        return EXIT_OK

    return guarded(command)


def _answer(store: Store, options: argparse.Namespace) -> str:
    match options.command:
        case "status" if options.request is None:
            return requests_text(store, choose_requests(store, None))
        case "status":
            requests = choose_requests(store, options.request)
            text = cells_text(store, requests[-1])
            return text if len(requests) == 1 else f"{requests_text(store, requests)}\n\nthe newest:\n{text}"
        case "show":
            return show_text(store, store.find(options.run))
        case "diff":
            return diff_text(store, store.find(options.run), store.find(options.other))
        case _:
            return logs_text(store, store.find(options.run), options.attempt)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)

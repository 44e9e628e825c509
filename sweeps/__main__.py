"""`python -m sweeps`: what a request would cost, and what the store holds; without torch, and, but for what has to read
overrides, without Hydra."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hybrid.spec import ConfigError
from sweeps.commands import EXIT_OK, guarded, look_at_request
from sweeps.compose import as_override
from sweeps.progress import say
from sweeps.status import cells_text, choose_requests, diff_text, logs_text, requests_text, show_text
from sweeps.store import Store

_EPILOG = """examples:
  python -m sweeps plan +sweep=table4               what it would cost and could show, before anything is spent
  python -m sweeps plan +sweep=table4 scale=350m --json
  python -m sweeps preflight +sweep=demo            three steps of every shape here, to know memory and time
  python -m sweeps status                           every request, one line each
  python -m sweeps status demo                      every cell of the newest request named demo
  python -m sweeps show 3f2a                        one run in full; the first digits of its id do
  python -m sweeps diff 3f2a 91bc                   where two runs differ
  python -m sweeps logs 3f2a                        what its attempts logged

Sweeps are started with Hydra, from the same words:
  python run.py -m +sweep=demo                      run what is missing
"""

_PLAN = """What a request would cost and what its results could show, worked out before anything is spent: the same as
python run.py -m ARGUMENTS mode=plan. Arguments are those of run.py; without +sweep=NAME, a sweep of your own."""

_PLAN_EPILOG = """examples:
  python -m sweeps plan +sweep=table2
  python -m sweeps plan +sweep=table2 plan.device=h200 plan.price=2.5
  python -m sweeps plan +sweep=table2 'plan.separate=[Llama,Mamba]' plan.difference_nats=0.005
  python -m sweeps plan +sweep=table2 plan.max_gpu_hours=1000 plan.gpu_memory=40GB
  python -m sweeps plan model.ratio=1:1,1:12 optim.lr=1e-3,3e-3 --json

The plan.* settings, and what they are unless given, are in conf/config.yaml; python run.py --help prints them.
"""

_PREFLIGHT = """Three steps of every distinct shape of a request, on the device that exec names, to know its memory and
speed before its runs are queued: the same as python run.py -m ARGUMENTS mode=preflight. What is known is not measured
again."""

_DEFAULT_STORE = Path(os.environ.get("HYBRID_STORE", "store"))
_OF_REQUESTS = ("plan", "preflight")


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweeps`."""
    top = argparse.ArgumentParser(
        prog="python -m sweeps",
        description="Which runs exist, what they cost, and what became of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    store_help = "the results store (default: $HYBRID_STORE, else ./store)"
    common.add_argument("--store", type=Path, default=_DEFAULT_STORE, metavar="DIR", help=store_help)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plan = commands.add_parser(
        "plan",
        parents=[common],
        help="what a request would cost and could show",
        description=_PLAN,
        epilog=_PLAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument(
        "--yes", action="store_true", help="say of limits only what is beyond them, as with plan.yes=true on run.py"
    )
    preflight = commands.add_parser(
        "preflight", parents=[common], help="three steps of every shape of a request", description=_PREFLIGHT
    )
    for command in (plan, preflight):
        command.add_argument("--json", action="store_true", help="a JSON list, in full precision (plan.format=json)")
        overrides = "+sweep=NAME and settings, as for run.py"
        command.add_argument("overrides", nargs="*", metavar="ARGUMENT", help=overrides)
    status = commands.add_parser("status", parents=[common], help="requests, or the cells of one")
    status.add_argument("request", nargs="?", help="a sweep's name; without it, every request")
    show = commands.add_parser("show", parents=[common], help="one run in full")
    show.add_argument("run", help="a run id or a trunk's, or its first digits")
    diff = commands.add_parser("diff", parents=[common], help="where two runs differ")
    diff.add_argument("run", help="a run id, or its first digits")
    diff.add_argument("other", help="another")
    logs = commands.add_parser("logs", parents=[common], help="what a run's attempts logged")
    logs.add_argument("run", help="a run id or a trunk's, or its first digits")
    logs.add_argument("--attempt", type=int, metavar="N", help="only this attempt")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one command; gives the exit code."""
    options = _read(arguments)

    def command() -> int:
        store = Store(options.store)
        store.check_format()
        if options.command in _OF_REQUESTS:  # a store that is not there yet is an empty one
            return look_at_request(_overrides(options))
        if options.store != _DEFAULT_STORE and not options.store.is_dir():
            raise ConfigError(f"--store {options.store}: there is no such directory")
        for problem in store.damaged_requests():
            say(f"warning: {problem}")
        print(_answer(store, options))
        return EXIT_OK

    return guarded(command)


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; overrides may stand before, between and after flags."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    unknown = [text for text in rest if options.command not in _OF_REQUESTS or text.startswith("-")]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides += rest
    return options


def _overrides(options: argparse.Namespace) -> list[str]:
    """What the flags say, as the settings that they stand for. Raises ConfigError where an override says it again."""
    said = {"mode": f"python -m sweeps {options.command}"}
    if options.store != _DEFAULT_STORE:
        said["store.root"] = "--store"
    said |= {"plan.format": "--json"} if options.json else {}
    if options.command == "plan":
        said |= {"plan.yes": "--yes"} if options.yes else {}
    keys = {text: text.lstrip("+").partition("=")[0] for text in options.overrides}
    problems = [f"{text}: {said[key]} says it already" for text, key in keys.items() if key in said]
    if problems:
        raise ConfigError(problems)
    overrides = [*options.overrides, f"mode={options.command}"]
    if options.store != _DEFAULT_STORE:
        overrides.append(as_override("store.root", str(options.store)))
    overrides += ["plan.format=json"] if options.json else []
    if options.command == "plan":
        overrides += ["plan.yes=true"] if options.yes else []
    return overrides


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

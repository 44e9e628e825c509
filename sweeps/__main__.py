"""`python -m sweeps`: what a request would cost, and what the store holds; without torch, and, but for what has to read
overrides, without Hydra."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hybrid.spec import ConfigError
from sweeps import cancel, housekeeping, retry
from sweeps.compose import as_override
from sweeps.curves import SPIKE_RULE, curves, curves_json, curves_text
from sweeps.exits import EXIT_OK, guarded
from sweeps.progress import say
from sweeps.status import choose_requests, diff_text, logs_text, look, requests_text, show_text, status_text, view
from sweeps.store import Store
from sweeps.watch import EVERY_S, View, watch

_EPILOG = """examples:
  python -m sweeps plan +sweep=table4               what it would cost and could show, before anything is spent
  python -m sweeps plan +sweep=table4 scale=350m --json
  python -m sweeps preflight +sweep=demo            three steps of every shape here, to know memory and time
  python -m sweeps status                           every request, one line each
  python -m sweeps status demo                      every cell of the newest request named demo
  python -m sweeps status demo --watch              the same again and again, until nothing is queued or running
  python -m sweeps curves demo --against Llama      training losses of its rows at equal tokens; --watch
  python -m sweeps show 3f2a                        one run in full; the first digits of its id do
  python -m sweeps diff 3f2a 91bc                   where two runs differ
  python -m sweeps retry demo --class oom           try again what failed of a request
  python -m sweeps cancel demo                      stop what is queued or runs of a request
  python -m sweeps logs 3f2a                        what its attempts logged
  python -m sweeps note 3f2a "spikes at 400"        notes; tag and pin likewise
  python -m sweeps gc                               what could be removed, and why
  python -m sweeps export demo demo.tar.gz          for python -m sweeps import on another machine

Sweeps are started with Hydra, from the same words, or with submit:
  python run.py -m +sweep=demo                      run what is missing, here
  python run.py -m +sweep=demo hydra/launcher=slurm      on a cluster: python -m sweeps submit +sweep=demo --on slurm
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

_SUBMIT = """Run what is missing of a request: the same as python run.py -m ARGUMENTS hydra/launcher=LAUNCHER. On Slurm,
jobs are submitted and the command returns; what is queued, running or done is left alone, so giving it again, or with
more rows, adds what is new and what has failed."""

_SUBMIT_EPILOG = """examples:
  python -m sweeps submit +sweep=table2 --on slurm hydra.launcher.partition=gpu hydra.launcher.time=1-0
  python -m sweeps submit +sweep=demo --on slurm hydra.launcher.runs_per_gpu=8 hydra.launcher.throttle=4 --wait
  python -m sweeps submit +sweep=demo --on local hydra.launcher.workers=2

The launcher's settings, and what they are unless given, are in conf/hydra/launcher/.
"""

_CURVES = f"""Training losses of a request's rows, of live and finished runs alike, seeds averaged with their standard
deviation, and their differences in nats from a baseline's at equal tokens. {SPIKE_RULE}"""

_DEFAULT_STORE = Path(os.environ.get("HYBRID_STORE", "store"))
_OF_REQUESTS = ("plan", "preflight", "submit")
_WITH_OVERRIDES = (*_OF_REQUESTS, "retry")


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
    submit = commands.add_parser(
        "submit",
        parents=[common],
        help="run what is missing of a request, on a cluster or here",
        description=_SUBMIT,
        epilog=_SUBMIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    submit.add_argument(
        "--on", choices=("slurm", "local"), metavar="LAUNCHER", help="slurm or local (default: conf/config.yaml's)"
    )
    submit.add_argument("--wait", action="store_true", help="return when all runs have ended (exec.wait=true)")
    submit.add_argument("--yes", action="store_true", help="start beyond the plan's limits (plan.yes=true)")
    submit.add_argument("overrides", nargs="*", metavar="ARGUMENT", help="+sweep=NAME and settings, as for run.py")
    for command in (plan, preflight):
        command.add_argument("--json", action="store_true", help="a JSON list, in full precision (plan.format=json)")
        overrides = "+sweep=NAME and settings, as for run.py"
        command.add_argument("overrides", nargs="*", metavar="ARGUMENT", help=overrides)
    status = commands.add_parser("status", parents=[common], help="requests, or the cells of one")
    status.add_argument("request", nargs="?", help="a sweep's name, or SWEEP/HASH; without it, every request")
    status.add_argument("--json", action="store_true", help="one JSON object, in full precision")
    curves = commands.add_parser(
        "curves",
        parents=[common],
        help="training losses of a request's rows at equal tokens",
        description=_CURVES,
    )
    curves.add_argument("request", help="a sweep's name, or SWEEP/HASH")
    curves.add_argument("--against", metavar="ROW", help="the row to compare with (default: the first)")
    curves.add_argument("--json", action="store_true", help="one JSON object, in full precision")
    for live in (status, curves):
        live.add_argument(
            "--watch",
            nargs="?",
            type=float,
            const=EVERY_S,
            metavar="SECONDS",
            help="again every so often, while it lasts",
        )
    show = commands.add_parser("show", parents=[common], help="one run in full")
    show.add_argument("run", help="a run id or a trunk's, or its first digits")
    diff = commands.add_parser("diff", parents=[common], help="where two runs differ")
    diff.add_argument("run", help="a run id, or its first digits")
    diff.add_argument("other", help="another")
    logs = commands.add_parser("logs", parents=[common], help="what a run's attempts logged")
    logs.add_argument("run", help="a run id or a trunk's, or its first digits")
    logs.add_argument("--attempt", type=int, metavar="N", help="only this attempt")
    retry.add_parser(commands, common)
    cancel.add_parser(commands, common)
    housekeeping.add_parsers(commands, common)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one command; gives the exit code."""
    options = _read(arguments)

    def command() -> int:
        store = Store(options.store)
        store.check_format()
        if options.command == "submit":
            from sweeps.commands import submit_request

            return submit_request(_overrides(options), options.on)
        if options.command in _OF_REQUESTS:  # a store that is not there yet is an empty one
            from sweeps.commands import look_at_request

            return look_at_request(_overrides(options))
        if options.store != _DEFAULT_STORE and options.command != "import" and not options.store.is_dir():
            raise ConfigError(f"--store {options.store}: there is no such directory")
        for problem in store.damaged_requests():
            say(f"warning: {problem}")
        if options.command == "retry":
            return retry.retry(store, options)
        if options.command == "cancel":
            return cancel.cancel(store, options)
        if options.command in housekeeping.COMMANDS:
            return housekeeping.answer(store, options)
        if options.command in ("status", "curves") and options.watch is not None:
            return _watch(store, options)
        print(_answer(store, options))
        return EXIT_OK

    return guarded(command)


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; overrides may stand before, between and after flags."""
    top = parser()
    options, rest = top.parse_known_args(housekeeping.protected(sys.argv[1:] if arguments is None else arguments))
    unknown = [text for text in rest if options.command not in _WITH_OVERRIDES or text.startswith("-")]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides += rest
    return options


def _overrides(options: argparse.Namespace) -> list[str]:
    """What the flags say, as the settings that they stand for. Raises ConfigError where an override says it again."""
    settings: dict[str, tuple[str, str]] = {}
    if options.command != "submit":
        settings["mode"] = (options.command, f"python -m sweeps {options.command}")
    if options.store != _DEFAULT_STORE:
        settings["store.root"] = (str(options.store), "--store")
    flags = {"json": ("plan.format", "json"), "yes": ("plan.yes", "true"), "wait": ("exec.wait", "true")}
    settings |= {key: (value, f"--{name}") for name, (key, value) in flags.items() if getattr(options, name, False)}
    keys = {text: text.lstrip("+").partition("=")[0] for text in options.overrides}
    problems = [f"{text}: {settings[key][1]} says it already" for text, key in keys.items() if key in settings]
    if problems:
        raise ConfigError(problems)
    path = as_override("store.root", str(options.store))
    return [*options.overrides, *(path if k == "store.root" else f"{k}={v}" for k, (v, _) in settings.items())]


def _watch(store: Store, options: argparse.Namespace) -> int:
    """Raises ConfigError for what cannot be watched."""
    problems = ["--watch: expected a request's name"] if options.request is None else []
    problems += ["--watch, --json: expected one of them"] if options.json else []
    if not options.watch > 0:
        problems.append(f"--watch {options.watch:g}: expected seconds above 0")
    if problems:
        raise ConfigError(problems)
    choose_requests(store, options.request)

    def seen() -> View:
        request = choose_requests(store, options.request)[-1]
        state = look(store, request)
        if options.command == "status":
            return view(state)
        text = curves_text(*curves(store, request, options.against))
        return View(text=lambda _: text, essence=text, is_active=state.is_active)

    watch(seen, options.watch)
    return EXIT_OK


def _answer(store: Store, options: argparse.Namespace) -> str:
    match options.command:
        case "status" if options.request is None:
            if options.json:
                raise ConfigError("--json: expected a request's name")
            return requests_text(store, choose_requests(store, None))
        case "status":
            return status_text(store, choose_requests(store, options.request), as_json=options.json)
        case "curves":
            found, baseline = curves(store, choose_requests(store, options.request)[-1], options.against)
            return curves_json(found, baseline) if options.json else curves_text(found, baseline)
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

"""The commands that keep a store in order: gc, pin, unpin, note, tag, export, import, mirror."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybrid.spec import ConfigError
from sweeps.progress import say
from sweeps.store import Store
from sweeps.text import size_text

COMMANDS = ("gc", "pin", "unpin", "note", "tag", "export", "import", "mirror")

_GC = """What a store holds, and what of it can go. Nothing is removed without --apply, and then only what may still go
at that moment. Of unfinished runs the last two checkpoints stay; of finished ones their final weights; of trunks the
points that branches start from; of a run that somebody trains, and of what is pinned, everything. Descriptions,
records, attempts and requests always stay."""

_GC_EPILOG = """examples:
  python -m sweeps gc                                    what could go, and why
  python -m sweeps gc --apply                            remove it
  python -m sweeps gc --max-bytes 2TB --max-inodes 200K  final weights too, as far as the budget needs it: those of
                                                         diverged runs first, then the oldest, never pinned ones
  python -m sweeps gc --usage                            bytes and files by kind
"""

_TRANSFER_EPILOG = """examples:
  python -m sweeps export table2 table2.tar.gz           a sweep's requests, and all that is known of their runs
  python -m sweeps export --all --weights all.tar        everything, with final weights
  python -m sweeps export 3f2a 91bc two.tar              two runs
  python -m sweeps import table2.tar.gz                  merge it into this store
  python -m sweeps import /mnt/other/store --weights     or another store as it is
"""


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add these commands to those of `python -m sweeps`."""

    def command(name: str, help: str, **more: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name, parents=[common], help=help, formatter_class=argparse.RawDescriptionHelpFormatter, **more
        )
        return parser

    def places(parser: argparse.ArgumentParser) -> None:
        elsewhere = "where they are, if not in the store: as store.{} of run.py"
        parser.add_argument("--checkpoints-root", type=Path, metavar="DIR", help=elsewhere.format("checkpoints"))
        parser.add_argument("--data-root", type=Path, metavar="DIR", help=elsewhere.format("data"))

    gc = command("gc", "what a store holds, and what can go", description=_GC, epilog=_GC_EPILOG)
    gc.add_argument("--apply", action="store_true", help="remove it")
    gc.add_argument("--usage", action="store_true", help="only say what there is")
    gc.add_argument("--list", action="store_true", help="name every file")
    gc.add_argument("--max-bytes", metavar="SIZE", help="how much may stay, such as 2TB")
    gc.add_argument("--max-inodes", metavar="N", help="how many files and directories may stay, such as 200K")
    gc.add_argument(
        "--branch-points", action="store_true", help="of trunks, too, that no unfinished run of a request starts from"
    )
    gc.add_argument(
        "--unknown", action="store_true", help="of runs that this store does not know, where checkpoints lie elsewhere"
    )
    places(gc)
    for name, what in (("pin", "keep all that belongs to runs"), ("unpin", "let gc treat runs as any others")):
        pinning = command(name, what)
        pinning.add_argument("names", nargs="+", metavar="RUN", help="a run, a trunk, or a request for all of its runs")
    note = command("note", "write a note on a run or request, or list its notes")
    note.add_argument("name", metavar="RUN_OR_REQUEST", help="a run id's first digits, a sweep's name, or SWEEP/HASH")
    note.add_argument("text", nargs="?", help="without it, what there is")
    tag = command("tag", "put tags on a run or request, or take them off")
    tag.add_argument("name", metavar="RUN_OR_REQUEST", help="a run id's first digits, a sweep's name, or SWEEP/HASH")
    tag.add_argument("changes", nargs="*", metavar="+TAG|-TAG", help="without any, what there is")
    export = command("export", "write requests, runs and records into a file", epilog=_TRANSFER_EPILOG)
    export.add_argument("names", nargs="*", metavar="NAME|RUN", help="sweeps, requests, runs")
    export.add_argument("file", type=Path, metavar="FILE", help="a new file.tar or file.tar.gz")
    export.add_argument("--all", action="store_true", help="everything")
    import_ = command("import", "merge such a file, or another store, into this one", epilog=_TRANSFER_EPILOG)
    import_.add_argument("source", type=Path, metavar="FILE|DIR", help="what export wrote, or a store")
    for parser in (export, import_):
        parser.add_argument("--weights", action="store_true", help="final weights too")
        parser.add_argument("--checkpoints", action="store_true", help="with the points where branches of trunks start")
        places(parser)
    mirror = command("mirror", "write a request's metrics as TensorBoard event files")
    mirror.add_argument("name", metavar="NAME", help="a sweep's name")
    mirror.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the event files go")
    mirror.add_argument("--follow", action="store_true", help="go on until all of its runs have ended")
    mirror.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="how often to look (default: 5)")


def protected(arguments: Sequence[str]) -> list[str]:
    """The arguments, those of `tag` so that argparse does not take -TAG for an option."""
    if "tag" not in arguments[:1]:
        return list(arguments)
    return [f" {text}" if re.match(r"-[^-]", text) and text != "-h" else text for text in arguments]


def answer(store: Store, options: argparse.Namespace) -> int:
    """Carry out one of these commands; gives the exit code."""
    match options.command:
        case "gc":
            return _gc(_placed(store, options), options)
        case "pin" | "unpin":
            return _pin(store, options)
        case "note" | "tag":
            return _note(store, options)
        case "export":
            from sweeps.transfer.archives import export_store

            return export_store(
                _placed(store, options),
                options.names,
                options.file,
                everything=options.all,
                weights=options.weights,
                points=options.checkpoints,
            )
        case "import":
            from sweeps.transfer.merging import import_store

            return import_store(
                _placed(store, options), options.source, weights=options.weights, points=options.checkpoints
            )
        case _:
            from sweeps.mirror import mirror

            return mirror(store, options.name, options.to, follow=options.follow, every_s=options.every)


def _placed(store: Store, options: argparse.Namespace) -> Store:
    """The store with its checkpoints and data where the options say."""
    for option in ("checkpoints_root", "data_root"):
        path = getattr(options, option)
        if path is not None and not path.is_dir():
            raise ConfigError(f"--{option.replace('_', '-')} {path}: there is no such directory")
    return Store(store.root, checkpoints=options.checkpoints_root, data=options.data_root)


def _gc(store: Store, options: argparse.Namespace) -> int:
    from hybrid.config import parse_count_or_zero
    from sweeps.gc import GcSettings, proposal_text, propose, remove, survey, usage_text
    from sweeps.plan_settings import parse_size
    from sweeps.scheduler import Slurm

    if options.usage:
        there = survey(store)
        for problem in there.problems:
            say(f"warning: {problem}")
        print(usage_text(there))
        return 0
    problems = []
    limits: dict[str, int | None] = {"max_bytes": None, "max_inodes": None}
    for key, read in (("max_bytes", parse_size), ("max_inodes", parse_count_or_zero)):
        given = getattr(options, key)
        if given is not None:
            try:
                limits[key] = read(given, f"--{key.replace('_', '-')}")
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    settings = GcSettings(unknown=options.unknown, branch_points=options.branch_points, **limits)
    slurm = Slurm.find()
    proposal = propose(store, settings, slurm=slurm)
    for problem in proposal.problems:
        say(f"warning: {problem}")
    print(proposal_text(proposal, settings, every=options.list))
    over = bool(proposal.shortfall.n_bytes or proposal.shortfall.inodes)
    if not options.apply:
        if proposal.all():
            say("nothing was removed: --apply removes it")
        return int(over)
    done = remove(store, proposal, settings, slurm=slurm)
    freed = size_text(sum(removal.found.usage.n_bytes for removal in done.removed))
    print(f"\nremoved {len(done.removed):,} of {len(proposal.all()):,}, {freed}")
    if done.changed:
        say(f"left alone, as things have changed since: {len(done.changed):,}")
    for problem in done.problems:
        say(f"error: {problem}")
    return int(over or bool(done.problems))


def _pin(store: Store, options: argparse.Namespace) -> int:
    from sweeps.notes import pin, subject_of, unpin

    problems, found = [], []
    for name in options.names:
        try:
            found.append(subject_of(store, name))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    changed = (pin if options.command == "pin" else unpin)(store, [subject for subject, _ in found])
    for subject, text in found:
        already = "is pinned already" if options.command == "pin" else "was not pinned"
        print(f"{text}: {f'{options.command}ned' if subject in changed else already}")
    return 0


def _note(store: Store, options: argparse.Namespace) -> int:
    from sweeps.notes import add_note, change_tags, notes_of, subject_of

    subject, text = subject_of(store, options.name)
    if options.command == "note" and options.text is not None:
        add_note(store, [subject], options.text)
    elif options.command == "tag" and options.changes:
        change_tags(store, subject, [change.strip() for change in options.changes])
    print("\n".join([text, *(f"  {line}" for line in notes_of(store, subject).lines() or ["nothing noted"])]))
    return 0

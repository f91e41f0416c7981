# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent: its commands, and what an error becomes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Optional, Sequence

from ..host import reporter as progress
from ..host.errors import BusyError, CommandError, NotNowError, StillpointError, Stopped, UsageError, fail
from ..host.version import VERSION
from ..job import file as jobs
from ..job.file import Job
from ..observe import notify
from . import show
from .output import PROGRAM, complain, job_directory, now, print_json, print_lines, reporter_for, warn

# Modules that only some commands need are imported in them: the archive has no compiled modules, and `list` runs on a
# whole fleet at once.
# pylint: disable=import-outside-toplevel

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_EPILOG = """\
exit codes: 0 done; 1 failed; 2 wrong usage or job file; 3 another run holds the job;
75 not now: the server was too busy to be locked, nothing happened, try again later.

JOB is the name of a job in /etc/stillpoint/jobs, or the path of a job file.
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the agent with the arguments and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files may be in any encoding
    os.umask(0o077)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # for developers; old PyMySQL makes them of what the server notes
    try:
        with _stopped_by_signals():
            arguments = _parsed(words)
            if not hasattr(arguments, "command"):
                _parser().print_help()
                return UsageError.exit_code
            if arguments.needs_root and os.geteuid() != 0:
                raise UsageError("root is needed to read databases, volumes and repositories: run it as root, or as sudo %s" % os.path.abspath(sys.argv[0]))
            code: int = arguments.command(arguments)
            return code
    except (Stopped, Exception) as error:  # pylint: disable=broad-exception-caught
        return _failed(error, as_json="--json" in words, debug="--debug" in words)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise Stopped for the first signal that asks the process to end; those after it must not cut the clean-up short."""

    def ignore(_number: int, _frame: Any) -> None:
        """Not SIG_IGN: the programs that the clean-up starts would inherit that, and could then not be ended either."""

    def stop(number: int, _frame: Any) -> None:
        for each in before:
            signal.signal(each, ignore)
        raise Stopped(signal.Signals(number).name)

    # one that is ignored already stays so: nohup, and shells that start jobs in the background, mean it
    before = {each: signal.signal(each, stop) for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _failed(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Say what went wrong, once and in one sentence, and return the exit code."""
    code = error.exit_code if isinstance(error, StillpointError) else StillpointError.exit_code
    if isinstance(error, Stopped):
        sentence = "%s; what had been opened was closed" % error
    elif isinstance(error, StillpointError):
        sentence = str(error)
    else:
        sentence = "unexpected %s: %s (a fault in stillpoint %s; --debug shows where)" % (type(error).__name__, error, VERSION)
    sentence = " ".join(sentence.split())
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
        if isinstance(error, CommandError):
            complain("command: %s\nexit status: %s\n%s" % (error.cmd, error.rc, error.stderr.rstrip()))
    if as_json:
        print_json({"failed": True, "msg": sentence, "exit_code": code})
    complain(("<3>" if progress.is_journal(sys.stderr) else "") + "%s: %s" % (PROGRAM, sentence))
    return code


# --- arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError("%s; see `%s --help`" % (message, self.prog))


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return what the words say. A word that may be left out may also stand behind options, where argparse takes it for left out already."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    for name in ("job", "generation", "run"):
        if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, name, "") is None:
            setattr(arguments, name, rest.pop())
    if rest:
        parser.error("unrecognized arguments: %s" % " ".join(rest))
    return arguments


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser = _Parser(
        prog=PROGRAM,
        description="Backups of a database and its files, both from one point in time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Any, text: str, *, needs_root: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common])
        added.set_defaults(command=command, needs_root=needs_root)
        return added

    def one_job(command: argparse.ArgumentParser) -> None:
        command.add_argument("job", metavar="JOB")

    def one_generation(command: argparse.ArgumentParser, which: str) -> None:
        one_job(command)
        command.add_argument("generation", metavar="GENERATION", nargs="?", help="as `%s list` shows it (default: %s)" % (PROGRAM, which))
        any_host(command)

    def any_host(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--host", metavar="NAME", help="look at the backups of another host in the job's repository (default: this one)"
        )

    one_job(add("plan", _plan, "show what a run would do, and every reason why it would not succeed; change nothing"))
    one_job(add("run", _run, "take a backup now"))
    listing = add("list", _list, "list the generations of a job, or of all jobs, newest first")
    listing.add_argument("job", metavar="JOB", nargs="?")
    any_host(listing)
    showing = add("show", _show, "show a generation: what was locked and for how long, coordinates, proof, what was copied")
    one_generation(showing, "the newest that is good")
    showing.add_argument("--timeline", action="store_true", help="instead: to which moments the job can be recovered")
    verifying = add("verify", _verify, "read a generation and compare every file with its checksum")
    one_generation(verifying, "the newest that is not bad")
    verifying.add_argument("--all", action="store_true", help="every generation of the job")
    verifying.add_argument("--sample", metavar="PERCENT", help="read this share of the files alone, drawn at random; compare names, sizes and owners of all")
    verifying.add_argument("--server", action="store_true", help="besides, start a server on a copy: it has to recover and to find all its tables well")
    restoring = add("restore", _restore, "put a generation back: in place, with what it replaces kept beside it, or into a directory")
    one_generation(restoring, "the newest that is good")
    restoring.add_argument("--to", metavar="DIR", help="put it there and leave the live data alone")
    part = restoring.add_mutually_exclusive_group()
    part.add_argument("--database-only", dest="parts", action="store_const", const="database", help="leave the files alone")
    part.add_argument("--files-only", dest="parts", action="store_const", const="files", help="leave the database alone")
    part.add_argument("--path", metavar="PATH", help="this directory or file of the live files alone")
    part.add_argument("--database", metavar="NAME", help="of a dump: this database alone")
    part.add_argument("--table", metavar="DATABASE.TABLE", help="this table or view alone, into a running server")
    restoring.add_argument("--as", dest="into", metavar="DATABASE.TABLE", help="with --table, not of a dump: under this name, beside the live one")
    restoring.add_argument("--server-socket", metavar="PATH", help="of a dump, or a table: into the server at this socket, as root (default: the job's)")
    restoring.add_argument("--server-config", metavar="FILE", help="of a dump, or a table: an option file that logs in to the server it is loaded into")
    moment = restoring.add_mutually_exclusive_group()
    moment.add_argument("--until", metavar="TIME", help="then replay archived binary logs: everything committed before that second, as in 2026-11-22 14:03:07Z")
    moment.add_argument("--until-gtid", metavar="GTID", help="the same, up to and with this transaction")
    moment.add_argument("--before-gtid", metavar="GTID", help="the same, up to and without this transaction")
    moment.add_argument("--until-position", metavar="FILE:POS", help="the same, up to this place in the server's binary logs")
    restoring.add_argument("--undo", action="store_true", help="instead: undo a restore in place that was interrupted, and put back what it was to replace")
    restoring.add_argument("--yes", action="store_true", help="do not ask")
    restoring.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")
    restoring.add_argument(
        "--discard-replaced", action="store_true", help="instead: delete what earlier restores of the job replaced and kept"
    )
    rolling = add("rollback", _rollback, "go back to the snapshots that a playbook has kept, and lose what was written since")
    rolling.add_argument("run", metavar="RUN", nargs="?", help="the run_id of mysql_quiesce_snapshot (default: the only one that there is)")
    rolling.add_argument("--yes", action="store_true", help="do not ask")
    rolling.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")
    pruning = add("prune", _prune, "remove the generations that the job's keep no longer asks for")
    one_job(pruning)
    pruning.add_argument("--dry-run", action="store_true", help="show what would be removed; change nothing")
    archiving = add("archive", _archive, "keep the server's binary logs beside the backups as they are written, until told to end")
    one_job(archiving)
    archiving.add_argument("--once", action="store_true", help="copy the logs that are closed, after having the open one closed, and end")
    cleaning = add("clean", _clean, "remove what killed runs left behind: snapshots, mount points, unfinished copies")
    cleaning.add_argument("--kept", action="store_true", help="also the snapshots that a playbook was given and has not removed")
    add("version", _version, "show the version", needs_root=False)
    return parser


# --- commands


def _plan(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    jobs.check_paths(job)
    from ..backup import plan

    made = plan.make(job)
    if arguments.json:
        print_json(made.as_dict())
    else:
        print_lines(made.lines())
    return 0


def _run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    reporter = reporter_for(arguments, job)
    with _told(job, notify.RUN) as outcome:
        try:
            summary = _backup(job, reporter)
        finally:
            reporter.close()
        outcome("", summary)
    if arguments.json:
        print_json(summary)
    else:
        print_lines(show.generation(summary, now()))
    return 0


@contextmanager
def _told(job: Job, action: str) -> Iterator[Callable[[str, Dict[str, Any]], None]]:
    """Have those who are to be told hear how the body ended; it is given what takes a complaint, or "", and what it came to."""
    ended = notify.Outcome(job.name, jobs.host_name(), notify.OK, 0, action=action)

    def outcome(complaint: str, summary: Dict[str, Any]) -> None:
        nonlocal ended
        ended = replace(ended, summary=summary)
        if complaint:
            ended = replace(ended, status=notify.FAILED, exit_code=StillpointError.exit_code, message=complaint)

    try:
        yield outcome
    except BusyError:
        raise  # the run that holds the job tells how it ended
    except (Stopped, Exception) as error:
        code = error.exit_code if isinstance(error, StillpointError) else StillpointError.exit_code
        status = notify.NOT_NOW if isinstance(error, NotNowError) else notify.FAILED
        _tell(job, replace(ended, status=status, exit_code=code, message=str(error) or type(error).__name__))
        raise
    _tell(job, ended)


def _tell(job: Job, ended: notify.Outcome) -> None:
    """Tell how something ended to all who are to hear of it, the metrics first: they take no time."""
    if job.notify.metrics:
        from ..observe import metrics

        metrics.write(job.notify.metrics, job.name, ended.action, metrics.ended(ended, now().timestamp()), warn)
        _count(job)
    notify.tell(job.notify, ended, warn)


def _count(job: Job) -> None:
    """Have the metrics say what backups there are now."""
    if not job.notify.metrics:
        return
    from ..observe import metrics

    try:
        found = metrics.backups(job.name, job_directory(job, None).generations())
    except StillpointError as error:
        warn("notify.metrics: %s" % error)
        return
    metrics.write(job.notify.metrics, job.name, metrics.BACKUPS, found, warn)


def _backup(job: Job, reporter: progress.Reporter) -> Dict[str, Any]:
    jobs.check_paths(job)
    from ..backup import run

    return run.run(job, reporter)


def _list(arguments: argparse.Namespace) -> int:
    troubles: List[str] = []
    if arguments.job:
        asked = [arguments.job]
        found = _listed(jobs.load(arguments.job), arguments.host)
    else:
        asked = jobs.names()
        found = []
        for name in asked:
            try:
                found += _listed(jobs.load(name), arguments.host)
            except StillpointError as error:
                troubles.append(str(error))
        found.sort(key=lambda each: str(each["time"]), reverse=True)
    if arguments.json:
        print_json(found)
    elif found:
        print_lines([show.generations(found, now())])
    elif not asked:
        print_lines(["there are no jobs in %s" % jobs.jobs_directory()])
    elif not troubles:
        print_lines(["there is no backup yet of %s" % ", ".join(asked)])
    if not arguments.json:
        _print_archives(asked, arguments.host)
    for trouble in troubles:
        complain("%s: %s" % (PROGRAM, trouble))
    return StillpointError.exit_code if troubles else 0


def _print_archives(names: Sequence[str], host: Optional[str]) -> None:
    """Say how the archives of binary logs are."""
    from ..archive import timeline
    from ..archive.archive import Archive

    for name in names:
        try:
            job = jobs.load(name)
            if job.binlog is not None:
                directory = job_directory(job, host)
                print_lines(["%s: %s" % (job.name, line) for line in timeline.brief(Archive(directory.path), directory.generations(), now())])
        except StillpointError as error:
            complain("%s: %s" % (PROGRAM, error))


def _listed(job: Job, host: Optional[str]) -> List[Dict[str, Any]]:
    """Return what `list` says of a job's generations, newest first.

    :raises UsageError: the repository is not there
    """
    return [show.listed(job.name, host or jobs.host_name(), each, now()) for each in job_directory(job, host).generations()]


def _show(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    if arguments.timeline:
        return _show_timeline(arguments, job)
    facts = show.known(job.name, job_directory(job, arguments.host).find(arguments.generation))
    if arguments.json:
        print_json(facts)
    else:
        print_lines(show.generation(facts, now()))
    return 0


def _show_timeline(arguments: argparse.Namespace, job: Job) -> int:
    from ..archive import timeline
    from ..archive.archive import Archive

    directory = job_directory(job, arguments.host)
    found = timeline.read(Archive(directory.path), directory.generations())
    if arguments.json:
        print_json({"job": job.name, "host": arguments.host or jobs.host_name(), **found.as_dict(now())})
    else:
        print_lines(found.lines(now()))
    return 0


def _archive(arguments: argparse.Namespace) -> int:
    from ..archive import service

    job = jobs.load(arguments.job)
    jobs.check_paths(job)
    reporter = progress.for_stream(sys.stderr, quiet=arguments.json and not sys.stderr.isatty())
    try:
        status = service.serve(job, reporter, once=arguments.once)
    finally:
        reporter.close()
    if arguments.json:
        print_json(status)
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from .restore import restore

    return restore(arguments)


def _rollback(arguments: argparse.Namespace) -> int:
    from .restore import rollback

    return rollback(arguments)


def _verify(arguments: argparse.Namespace) -> int:
    from ..proof import verify

    job = jobs.load(arguments.job)
    sample = verify.percent(arguments.sample) if arguments.sample else None
    asked = verify.Asked(arguments.generation, arguments.all, sample, arguments.server)
    # One that somebody picked by hand is of no concern to who is told of the job.
    told = replace(job, notify=jobs.Notify()) if arguments.generation or arguments.host else job
    reporter = reporter_for(arguments, job)
    try:
        with _told(told, notify.VERIFY) as outcome:
            troubles: List[StillpointError] = []
            chosen = verify.choose(job_directory(job, arguments.host), asked)
            found = verify.perform(chosen, asked, reporter, troubles.append if asked.all else fail)
            reporter.close()
            complaint = verify.complaint(job, found, troubles)
            outcome(complaint, next((each for each in found if each.bad), found[0]).as_dict() if found else {})
    finally:
        reporter.close()
    if arguments.json:
        facts = [each.as_dict() for each in found]
        print_json(facts if arguments.all else facts[0])
    else:
        print_lines([line for each in found for line in show.verified(job.name, each)])
    if complaint:
        complain("%s: %s" % (PROGRAM, complaint))
    return StillpointError.exit_code if complaint else 0


def _prune(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    if job.keep is None:
        raise UsageError("%s: the job has no keep, so every generation is kept: say how many it shall keep" % job.where)
    directory = job_directory(job, None)
    if arguments.dry_run:
        decisions = directory.prune(job.keep, dry_run=True)
    else:
        with directory.lock():
            decisions = directory.prune(job.keep)
        _count(job)
    if arguments.json:
        print_json([{"generation": each.name, "keep": each.keep, "reasons": list(each.reasons)} for each in decisions])
        return 0
    gone = "would be removed" if arguments.dry_run else "removed"
    print_lines(
        ["%s  %s" % (each.name, "kept: " + ", ".join(each.reasons) if each.keep else gone) for each in decisions]
        or ["there is no backup yet of %s" % job.name]
    )
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    from ..lvm import ownership
    from ..mysql import topology

    unfinished, put_back = [], []
    troubles: List[StillpointError] = []
    snapshots = ownership.clean(kept=arguments.kept, on_trouble=troubles.append)
    try:
        put_back = topology.put_back_leftovers()
    except StillpointError as error:
        troubles.append(error)
    for name in jobs.names():
        try:
            directory = job_directory(jobs.load(name), None)
            if os.path.isdir(directory.path):
                with directory.lock():
                    unfinished += [os.path.join(directory.path, each) for each in directory.clean(troubles.append)]
        except BusyError:
            continue  # it is being written by a run that lives
        except StillpointError as error:
            troubles.append(error)
    if arguments.json:
        print_json({"snapshots": snapshots, "unfinished": unfinished, "put_back": put_back})
    else:
        lines = ["removed the snapshot %s/%s of the run %s" % (each["vg"], each["name"], each["run_id"]) for each in snapshots]
        lines += ["removed %s" % path for path in unfinished] + put_back
        print_lines(lines or ([] if troubles else ["nothing was left behind"]))
    for trouble in troubles:
        complain("%s: %s" % (PROGRAM, trouble))
    return StillpointError.exit_code if troubles else 0


def _version(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json({"version": VERSION, "python": "%d.%d.%d" % sys.version_info[:3]})
    else:
        print_lines(["%s %s" % (PROGRAM, VERSION)])
    return 0

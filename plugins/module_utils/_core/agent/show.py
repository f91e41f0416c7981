# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations as people read them: the facts of one, the table of many."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..host.text import age, count, duration, iso, moment, size, table

_WIDTH = 13
_NOT_PASSED = {False: "failed", None: "not done"}


def generation(facts: Mapping[str, Any], now: datetime) -> List[str]:
    """Return what is known of a generation, as lines.

    :param facts: the manifest's summary, and ``path``, ``state`` and ``reason`` where they are known
    """
    lines = ["%s %s" % (facts.get("job"), facts.get("generation"))]

    def say(head: str, text: str) -> None:
        lines.append("  %s%s" % (head.ljust(_WIDTH), text))

    say("taken", _taken(facts, now))
    if facts.get("state"):
        say("state", "%s%s" % (facts["state"], ": " + facts["reason"] if facts.get("reason") else ""))
    if facts.get("path"):
        say("path", facts["path"])
    server = facts.get("server")
    if server:
        say("server", "%s %s, %s" % (server.get("flavour"), server.get("version"), server.get("datadir")))
        for name in (server.get("keys") or {}).get("files") or ():
            say("key file", "%s, for %s" % (name, " and ".join(server["keys"].get("needed_by") or ())))
        lock = facts.get("lock")
        say("lock", _lock(lock) if lock else "none")
        if lock and lock.get("reason"):
            say("", "because %s" % lock["reason"])
        for statement in (lock or {}).get("killed") or []:
            say("", "ended %s" % statement)
        say("coordinates", _coordinates(facts.get("coordinates")))
        if lock and lock.get("between") and not facts.get("coordinates"):
            say("", "between %s and %s" % tuple(_coordinates(each) for each in lock["between"]))
        for source in (facts.get("coordinates") or {}).get("replica") or []:
            say(
                "replica of",
                "%s:%s at %s:%s%s" % (source.get("host"), source.get("port"), source.get("file"), source.get("position"), _gtid(source)),
            )
    for snapshot in facts.get("snapshots") or []:
        used = snapshot.get("used_percent")
        say(
            "snapshot",
            "%s/%s%s%s"
            % (snapshot.get("vg"), snapshot.get("origin"), _snapshot_size(snapshot), ", %.1f %% used" % used if used is not None else ""),
        )
    dump = facts.get("dump")
    if dump:
        say("dump", _dump(dump))
    copy = facts.get("copy")
    if copy:
        say("copy", _copy(copy))
    for tree in facts.get("trees") or []:
        say(
            "holds",
            "%s in %s: %s files, %s" % (tree.get("source"), tree.get("name"), count(tree.get("files", 0)), size(tree.get("bytes", 0))),
        )
        if tree.get("left_out"):
            say("", "but for %s" % ", ".join(tree["left_out"]))
    if facts.get("own_bytes") is not None:
        say("own", "%s, which its removal would free; the rest is shared with other generations" % size(facts["own_bytes"]))
    for number, text in enumerate(proof(facts.get("proof"))):
        say("" if number else "proof", text)
    for head, found in (("verified", facts.get("verified")), ("sampled", facts.get("sampled"))):
        if found:
            say(head, "%s: %s" % (found.get("time"), verdict(found)))
    if "copies" in facts:
        say("copies", ", ".join(facts["copies"]) or "none yet")
    for name in facts.get("removed") or []:
        say("removed", "%s, as keep says" % name)
    for warning in facts.get("warnings") or []:
        say("warning", str(warning))
    return lines


def verdict(facts: Mapping[str, Any]) -> str:
    """Return in words what a verification found; of a sample, what was read and that the rest was not."""
    wrong = "%s faults" % count(facts.get("faults_total", 0))
    if facts.get("percent") is None:
        return "every checksum is right" if facts.get("ok") else wrong
    read = "%s of %s files and %.1f %% of the bytes" % (
        count(facts["files"]),
        count(facts["of_files"]),
        100.0 * facts["bytes"] / facts["of_bytes"] if facts["of_bytes"] else 100.0,
    )
    return "in a sample of %s, %s" % (read, "every checksum is right; the rest was not read" if facts.get("ok") else wrong)


HEAD = ("JOB", "GENERATION", "AGE", "SIZE", "STATE", "LOCK HELD", "PROOF")


def _state(each: Mapping[str, Any]) -> str:
    """Return the state of a generation, with how much of the server it names as left out."""
    left_out = each.get("left_out") or []
    return "%s, without %d view%s" % (each["state"], len(left_out), "s"[len(left_out) == 1 :]) if left_out else str(each["state"])


def row(each: Mapping[str, Any], now: datetime) -> Tuple[str, ...]:
    held = (each.get("lock") or {}).get("held_ms")
    return (
        str(each["job"]),
        str(each["generation"]),
        age((now - moment(each["time"])).total_seconds()),
        size(each["size_bytes"]),
        _state(each),
        "%d ms" % round(held) if held is not None else "-",
        _passed(each.get("proof")),
    )


def generations(listed: Sequence[Mapping[str, Any]], now: datetime) -> str:
    """Return the table of generations as ``list`` describes them."""
    if not any("copies" in each for each in listed):
        return table(HEAD, [row(each, now) for each in listed], right=(2, 3, 5))
    rows = [(*row(each, now), ", ".join(each.get("copies") or ()) or "-") for each in listed]
    return table((*HEAD, "COPIES"), rows, right=(2, 3, 5))


def fleet(hosts: Mapping[str, Mapping[str, Any]], now: datetime) -> Tuple[List[str], List[str]]:
    """Return how the backups of many hosts stand: a table with the newest backup of each job that is not bad, and what is wrong.

    :param hosts: by the name of each, ``{jobs, backups, status}`` as the module backup_info returns them; ``msg`` says what could not be had
    """
    rows, wrong = [], []
    for host, known in hosts.items():
        if "backups" not in known or known.get("msg"):
            wrong.append("%s: %s" % (host, known.get("msg") or "it was not asked"))
        failed = [each["job"] for each in known.get("failures") or ()]
        if not known.get("jobs") and not known.get("msg"):
            wrong.append("%s: it has no job: list some in backup_client_jobs and deploy, or leave it out with -e stillpoint_hosts=GROUP" % host)
        for job in known.get("jobs") or ():
            found = [each for each in known["backups"] if each["job"] == job]
            usable = next((each for each in found if each["state"] != "bad"), None)
            rows.append((host, *row(usable, now)) if usable else (host, job, *["-"] * (len(HEAD) - 1)))
            said = [each for each in known.get("status") or () if each["job"] == job]
            if said:
                wrong += ["%s: %s: %s" % (host, job, sentence) for sentence in said[0]["wrong"] if job not in failed]
            elif found and found[0] is not usable:
                wrong.append("%s: the newest backup of %s, %s, is bad: %s" % (host, job, found[0]["generation"], found[0].get("reason")))
            elif not found and job not in failed:
                wrong.append("%s: there is no backup yet of %s" % (host, job))
    return table(("HOST", *HEAD), rows, right=(3, 4, 6)).splitlines(), wrong


def recovery(facts: Mapping[str, Any]) -> List[str]:
    """Return what was replayed onto a generation, as a restore tells it, for people."""
    lines = ["%s of binary log were replayed in %s, up to %s" % (size(facts["bytes"]), duration(facts["duration_s"]), facts["stops_at"])]
    left_out = facts.get("leaves_out_from")
    if left_out:
        lines.append("the first transaction that was left out: %s, committed %s" % (left_out.get("gtid") or "one without a GTID", left_out["time"]))
    if facts.get("gtid"):
        lines.append("GTIDs: %s" % facts["gtid"])
    return lines


def proof(facts: Optional[Mapping[str, Any]]) -> List[str]:
    """Return in words what a proof found, as lines."""
    if not facts:
        return ["none: nobody has tried yet whether it starts"]
    took = " in %s" % duration(facts["duration_s"]) if facts.get("duration_s") is not None else ""
    lines = ["passed" + took if facts.get("ok") else "%s%s: %s" % (_NOT_PASSED[facts.get("ok")], took, facts.get("reason"))]
    if facts.get("program"):
        lines.append("by %s %s, on %s" % (facts["program"], facts.get("version"), facts.get("of")))
    lines += _position(facts.get("position") or {})
    tables = facts.get("tables") or {}
    if "checked" in tables:
        since = "; %s unchanged since %s" % (count(tables.get("unchanged", 0)), tables["since"]) if tables.get("since") else ""
        lines.append("%s tables checked, %s damaged%s" % (count(tables["checked"]), count(tables.get("complaints_total", 0)), since))
        lines += ["not checked: %s" % each for each in (tables.get("unchecked") or [])[:3]]
    elif tables.get("mode"):
        lines.append("no tables checked, as verify.tables says")
    return lines + ["known: %s" % each.get("sentence") for each in facts.get("known_faults") or []]


def _position(found: Mapping[str, Any]) -> List[str]:
    """Return what a proof found of where the server stands."""
    stands = found.get("recovered") or {}
    where = "%s:%s" % (stands["file"], stands["position"]) if stands.get("file") else ""
    if found.get("given"):
        return ["no lock stopped commits; the coordinates are those of %s" % str(found["given"].get("source")).replace("proof: ", "")]
    if not found.get("compared"):
        return [found["note"]] if found.get("note") else []
    between = found.get("between")
    text = "stands where it should, by %s" % found["compared"] + (" (%s)" % where if where else "")
    if found.get("fault"):
        return []
    if between:
        text += "; %s events up to the recorded position, %s of them transactions" % (count(between["events"]), count(between["transactional"]))
    return [text] + ([found["note"]] if found.get("note") else [])


def _passed(facts: Optional[Mapping[str, Any]]) -> str:
    """Return how a proof ended, in a word for a table."""
    if not facts:
        return "-"
    return "passed" if facts.get("ok") else _NOT_PASSED[facts.get("ok")]


def _taken(facts: Mapping[str, Any], now: datetime) -> str:
    when = moment(facts["time"])
    text = "%s UTC (%s ago)" % (when.strftime("%Y-%m-%d %H:%M:%S"), age((now - when).total_seconds()))
    return text + (", in %s" % duration(facts["duration_s"]) if facts.get("duration_s") is not None else "")


def _lock(lock: Mapping[str, Any]) -> str:
    text = str(lock.get("method"))
    if lock.get("method") == "none":
        return text
    if lock.get("held_ms") is not None:
        text += ", held %d ms" % round(lock["held_ms"])
        if lock.get("waited_ms") is not None:
            text += " (%d ms of them to get it)" % round(lock["waited_ms"])
    if lock.get("method") == "instance":
        text += ", commits went on"
    if lock.get("frozen_ms") is not None:
        text += ", file system frozen %d ms" % round(lock["frozen_ms"])
    if lock.get("skew_ms"):
        text += ", volumes at most %d ms apart" % round(lock["skew_ms"])
    if lock.get("guard_waited_ms"):
        text += "; waited %s for long statements before" % duration(lock["guard_waited_ms"] / 1000)
    return text


def _coordinates(coordinates: Optional[Mapping[str, Any]]) -> str:
    if not coordinates:
        return "none: the server wrote no binary log, or commits went on"
    where = "%s:%s" % (coordinates["file"], coordinates["position"]) if coordinates.get("file") else "no binary log of its own"
    return where + _gtid(coordinates)


def _gtid(facts: Mapping[str, Any]) -> str:
    return ", GTID %s" % facts["gtid"] if facts.get("gtid") else ""


def _snapshot_size(snapshot: Mapping[str, Any]) -> str:
    if snapshot.get("thin"):
        full = snapshot.get("pool_percent")
        return ", thin" + (", the pool %s was %.1f %% full" % (snapshot.get("pool"), full) if full is not None else "")
    return ", %s" % size(snapshot["size_bytes"]) if snapshot.get("size_bytes") else ""


def _copy(copy: Mapping[str, Any]) -> str:
    text = "%s files, %s, of which %s were new" % (
        count(copy.get("files", 0)),
        size(copy.get("bytes", 0)),
        size(copy.get("bytes_transferred", 0)),
    )
    return text + (", in %s" % duration(copy["duration_s"]) if copy.get("duration_s") is not None else "")


def _dump(dump: Mapping[str, Any]) -> str:
    text = "%s of SQL by %s" % (size(dump["sql_bytes"]), dump["program"])
    if dump.get("source") == "snapshot":
        return text + ", of a scratch server on a snapshot"
    if dump.get("locked_tables"):
        held = ", for %s" % duration(dump["locked_s"]) if dump.get("locked_s") is not None else ""
        text += "; %s tables locked for writers%s" % (count(dump["locked_tables"]), held)
    return text


def known(job: str, found: Any) -> Dict[str, Any]:
    """Return all that is known of a generation, also of one whose manifest can't be read."""
    return {
        "job": job,
        "generation": found.name,
        "time": iso(found.time),
        **found.summary,
        "proof": found.proof,
        "path": found.path,
        "state": found.state,
        "reason": found.reason,
        "size_bytes": found.size_bytes,
        "verified": found.verified,
        "sampled": found.recorded.get("sample"),
    }


def listed(job: str, host: str, found: Any, now: datetime) -> Dict[str, Any]:
    """Return the object that ``list --json`` prints for a generation."""
    summary = found.summary
    return {
        "job": job,
        "host": host,
        "generation": found.name,
        "path": found.path,
        "time": iso(found.time),
        "age_s": int((now - found.time).total_seconds()),
        "size_bytes": found.size_bytes,
        "state": found.state,
        "reason": found.reason,
        "left_out": [".".join(view) for view in (summary.get("dump") or {}).get("invalid_views") or ()],
        "lock": summary.get("lock"),
        "coordinates": summary.get("coordinates"),
        "proof": found.proof,
        "duration_s": summary.get("duration_s"),
        "warnings": summary.get("warnings") or [],
    }

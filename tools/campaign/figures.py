"""Writes the figures of benchmarks/results/reliability-*.json into docs/reliability.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
COMMANDS = ("migrate", "fix", "regen", "pull")


def _load(part: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"reliability-{part}.json").read_bytes())
    return loaded


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), ["---"] * len(list(head)), *[[str(c) for c in row] for row in rows]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _found(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items()))


def _origin(document: Mapping[str, Any]) -> str:
    seed = f", seed {document['seed']}" if "seed" in document else ""
    return f"Commit {document['commit']}{seed}."


def kills() -> str:
    random, every = _load("kills"), _load("boundaries")
    rows = [
        (
            command,
            random[command]["kills"],
            _found(random[command]["found_after_the_kill"]),
            every[command]["boundaries"],
            every[command]["kills_inside_a_write"],
            _found(every[command]["found_after_the_kill"]),
            len(random[command]["faults"]) + len(every[command]["faults"]),
        )
        for command in COMMANDS
    ]
    head = (
        *("command", "random kills", "found", "boundaries", "inside a write", "found"),
        "faults left",
    )
    return (
        f"### kill -9\n\n{_table(head, rows)}\n\n"
        "*old* and *new* are the whole checkpoint before and after; *absent* is a pull into a new "
        "folder that has placed nothing; *between* is a mix of whole files, which verify reported "
        "every time (for regen: the new state, its twin or the manifest not there yet, which is "
        f"no error). Random kills: {_origin({**random, 'seed': random['migrate']['seed']})} "
        f"Boundaries: {_origin(every)}"
    )


def powerloss() -> str:
    document = _load("powerloss")
    rows = [
        (
            command,
            sum(run["writes"] for run in document[command]),
            sum(run["fsyncs"] for run in document[command]),
            sum(run["files_put_in_place"] for run in document[command]),
            sum(len(run["violations"]) for run in document[command]),
        )
        for command in COMMANDS
    ]
    head = ("command", "writes", "fsyncs", "files put in place", "violations")
    return f"### Order for power loss\n\n{_table(head, rows)}\n\n{_origin(document)}"


def faults() -> str:
    document = {**_load("faults"), "injected": _load("injected")["injected"]}
    names = {
        "injected": "ENOSPC, EDQUOT, EIO, EROFS or a vanished state, at every change of "
        + ", ".join(document["injected"]),
        "full_disk": "tmpfs with 0 to 256 free pages",
        "limited": "write cut by the kernel in the middle of a file",
        "no_permission": "read-only, another user's, immutable, unreadable",
        "links": "symbolic and hard links",
        "two_writers": "two writers at once",
    }
    rows = []
    for name, words in names.items():
        part = document[name]
        parts = [part] if "faults" in part else [part[c] for c in COMMANDS if c in part]
        found: Counter[str] = Counter()
        for item in parts:
            found.update(item["found"])
        runs = sum(item.get("runs", item.get("rounds", 0)) for item in parts)
        rows.append((words, runs, _found(found), sum(len(i["faults"]) for i in parts)))
    clock = document["clock"]
    rows.append(
        (
            "clock stands or goes back",
            15,
            f"all {clock['backups']} backups kept",
            len(clock["faults"]),
        )
    )
    head = ("fault", "runs", "found", "faults left")
    left = [fault["what"] for row in document["two_writers"].values() for fault in row["faults"]]
    told = "".join(f" Left with two writers: {text}." for text in left)
    return (
        f"### Disks, permissions, other writers\n\n{_table(head, rows)}\n\n"
        f"{_origin(document)}{told}"
    )


def pushes() -> str:
    d = _load("pushes")
    set_faults = sum(d["faults_set"].values())
    return (
        "### push\n\n"
        f"{d['runs']} runs ({d['runs_over_xet']} over xet, the others over LFS), {set_faults} "
        f"faults set ({_found(d['faults_set'])}), {d['requests_that_met_a_fault']} of "
        f"{d['requests']:,} requests met one; {d['killed_on_the_way']} pushes were killed, "
        f"{d['overtaken_by_another_push']} were overtaken. Under faults: "
        f"{_found(d['exit_codes_under_faults'])}. Looked at: {d['revisions_looked_at']:,} "
        f"revisions after {d['versions_published']} versions, and "
        f"{d['outputs_and_files_searched_for_the_token']:,} outputs and files for the token. "
        f"Faults left: {len(d['faults'])}. {_origin(d)}"
    )


def soaks() -> str:
    many, loop, ctrl_c = _load("verify"), _load("loop"), _load("interrupts")
    text, form = many["text"], many["json"]
    return (
        "### For long\n\n"
        f"- verify over {many['checkpoints']:,} checkpoints in one call: {text['seconds']} s, "
        f"resident memory {text['kilobytes_after_a_fifth']:,} kB after a fifth of the time and "
        f"{text['kilobytes_at_the_end']:,} kB at the end; with `--format json` "
        f"{form['kilobytes_after_a_fifth']:,} and {form['kilobytes_at_the_end']:,} kB. "
        f"{_origin(many)}\n"
        f"- push and pull for {loop['seconds'] / 60:.0f} minutes in one process: "
        f"{loop['rounds']:,} rounds, exit code {loop['exit']}, {loop['revisions_all_whole']:,} "
        f"revisions, all whole; resident memory {loop['kilobytes_after_a_fifth']:,} kB after a "
        f"fifth, {loop['kilobytes_at_the_end']:,} kB at the end; open files "
        f"{loop['open_files_first_and_last'][0]} and {loop['open_files_first_and_last'][1]}, "
        f"threads {loop['threads_first_and_last'][0]} and {loop['threads_first_and_last'][1]} "
        f"(first and last). {_origin(loop)}\n"
        f"- regen with Ctrl-C, {ctrl_c['runs']} times: {_found(ctrl_c['found'])} "
        "(-2 is Ctrl-C while modules were still imported: ended by the signal itself, which a "
        "shell shows as 130 too); "
        f"last stage announced: {_found(ctrl_c['stage_when_it_came'])}; from Ctrl-C to the end "
        f"{ctrl_c['seconds_to_the_end_after_it']['median']} s (median), "
        f"{ctrl_c['seconds_to_the_end_after_it']['most']} s at most. Faults left: "
        f"{len(ctrl_c['faults'])}. {_origin(ctrl_c)}"
    )


def write() -> None:
    """Replace what stands between the marks."""
    sections = (kills(), powerloss(), faults(), pushes(), soaks())
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "## Figures\n\n" + "\n\n".join(sections)
    PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write()

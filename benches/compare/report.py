"""What a comparison found, and how it is told: Markdown for people, JSON with every measurement."""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from measure import Measured
from tools import NO, REFERENCE, TOOLS, Tool

MIB = 1 << 20
GIB = 1 << 30


@dataclass
class Run:
    """One tool, once: a fresh repository, a snapshot of each day, a restore of the last."""

    first: Measured = Measured(0, 0, 0)
    incremental: list[Measured] = field(default_factory=list)
    restore: Measured = Measured(0, 0, 0)
    repository_bytes: list[int] = field(default_factory=list)  # after each day
    restored_bytes: int = 0  # on disk

    def added(self) -> list[int]:
        return [new - old for old, new in zip(self.repository_bytes, self.repository_bytes[1:])]


@dataclass
class ToolResult:
    version: str = ""  # none: not installed
    failure: str = ""
    runs: list[Run] = field(default_factory=list)


@dataclass
class Result:
    date: str
    command: str
    machine: dict[str, str]
    size: int
    days: int
    runs: int
    guest_bytes: int
    changed_bytes: list[int]
    smallest_peak: int
    tools: dict[str, ToolResult]


def machine(folder: Path, load_before: float) -> dict[str, str]:
    return {
        "processor": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": file_system(folder),
        "load average before and after": f"{load_before:.2f}, {os.getloadavg()[0]:.2f}",
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """The type of the mount that a folder is on: the longest mount point that it begins with."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, type_, *_ = line.split()
        inside = folder == Path(point) or Path(point) in folder.resolve().parents
        if inside and len(point) >= len(best):
            best, kind = point, type_
    return kind


def as_json(result: Result) -> str:
    return json.dumps(dataclasses.asdict(result), indent=1) + "\n"


# Figures


def first(runs: list[Run]) -> list[float]:
    return [run.first.seconds for run in runs]


def incremental(runs: list[Run]) -> list[float]:
    return [step.seconds for run in runs for step in run.incremental]


def added(runs: list[Run]) -> list[float]:
    return [count / MIB for run in runs for count in run.added()]


def repository(runs: list[Run]) -> list[float]:
    return [run.repository_bytes[-1] / MIB for run in runs]


def restore(runs: list[Run]) -> list[float]:
    return [run.restore.seconds for run in runs]


def peak(runs: list[Run]) -> int:
    return max(step.peak_bytes for run in runs for step in [run.first, *run.incremental, run.restore])


def number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def spread(values: list[float]) -> str:
    low, middle, high = (number(value) for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


def mib(count: int) -> str:
    return number(count / MIB)


# Markdown


def markdown(result: Result) -> str:
    shown = [tool for tool in TOOLS if tool.name in result.tools]
    parts = [
        f"# imgsnap and other tools, {result.date}",
        f"```\n{result.command}\n```",
        guest(result),
        rows(["machine", ""], [[name, text] for name, text in result.machine.items()]),
        "Versions: " + versions(result, shown) + ".",
        f"## Medians of {counted(result.runs, 'run')} (smallest–largest)",
        medians(result, shown),
        *failures(result, shown),
        *ratios(result, shown),
        "## Processor time",
        "Medians, user and system together, of the tool's processes alone.",
        processor_time(result, shown),
        "## Method",
        *method(result),
        "## Commands",
        "`REPO` is a folder of the tool's own; `vm.img` is the live image, and, in a restore, the new file.",
        *(told(result, tool) for tool in shown),
    ]
    return "\n\n".join(parts) + "\n"


def rows(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def guest(result: Result) -> str:
    changes = ", ".join(mib(count) for count in result.changed_bytes)
    return (
        f"The guest is an ext4 image of {number(result.size / GIB)} GiB, of which {mib(result.guest_bytes)} MiB are "
        f"allocated after the last day. Blocks of 4 KiB that a day changed, in MiB: {changes}."
    )


def versions(result: Result, shown: list[Tool]) -> str:
    """Each program once."""
    found = {tool.program: result.tools[tool.name].version or "not installed" for tool in shown}
    return ", ".join(f"{program} {version}" for program, version in found.items())


def measured(result: Result, tool: Tool) -> list[Run]:
    found = result.tools[tool.name]
    return [] if found.failure else found.runs


def absent(result: Result, tool: Tool, columns: int) -> list[str]:
    why = "failed" if result.tools[tool.name].failure else "not installed"
    return [tool.name, why, *[""] * (columns - 2)]


def medians(result: Result, shown: list[Tool]) -> str:
    head = [
        "tool",
        "first snapshot, s",
        "a day's snapshot, s",
        "added by a day, MiB",
        "repository after all days, MiB",
        "restore of the last day, s",
        "peak memory, MiB",
        "history",
    ]
    body = []
    for tool in shown:
        if runs := measured(result, tool):
            figures = [spread(of(runs)) for of in (first, incremental, added, repository, restore)]
            body.append([tool.name, *figures, peak_text(result, runs), tool.history])
        else:
            body.append(absent(result, tool, len(head)))
    return rows(head, body)


def peak_text(result: Result, runs: list[Run]) -> str:
    if peak(runs) <= result.smallest_peak:
        return f"< {mib(result.smallest_peak)}"
    return mib(peak(runs))


def failures(result: Result, shown: list[Tool]) -> list[str]:
    return [
        f"{tool.name} failed: {result.tools[tool.name].failure}" for tool in shown if result.tools[tool.name].failure
    ]


def ratios(result: Result, shown: list[Tool]) -> list[str]:
    base = measured(result, REFERENCE) if REFERENCE.name in result.tools else []
    if not base:
        return []
    columns = (first, incremental, added, repository, restore)
    head = ["tool", "first snapshot", "a day's snapshot", "added by a day", "repository after all days", "restore"]
    body = []
    for tool in shown:
        if runs := measured(result, tool):
            body.append([tool.name, *(number(median(of(runs)) / median(of(base))) for of in columns)])
    return [
        f"## Medians, as multiples of {REFERENCE.name}'s",
        "Above 1: slower, or larger.",
        rows(head, body),
    ]


def processor_time(result: Result, shown: list[Tool]) -> str:
    body = []
    for tool in shown:
        if runs := measured(result, tool):
            days = [step.cpu_seconds for run in runs for step in run.incremental]
            figures = [[run.first.cpu_seconds for run in runs], days, [run.restore.cpu_seconds for run in runs]]
            body.append([tool.name, *(number(median(values)) for values in figures)])
    return rows(["tool", "first snapshot, s", "a day's snapshot, s", "restore, s"], body)


def method(result: Result) -> list[str]:
    overwriting = ", ".join(tool.name for tool in TOOLS if tool.history == NO and tool.name in result.tools)
    whole = [
        name
        for name, found in result.tools.items()
        if not found.failure and any(run.restored_bytes > 1.5 * result.guest_bytes for run in found.runs)
    ]
    texts = [
        "Every tool begins each run with an empty repository, which is made beforehand. It takes a snapshot of the "
        "first day's image, then of each following day's, and gives the last day back as a new file. Between the days "
        "the blocks that differ are written into the live image in place, as a virtual machine does. The tools take "
        "turns: all of them run once, then all of them again, beginning with another one. Before each step everything "
        "is synced, the image and the repository are read, so that they are in the page cache if it is large enough, "
        "and a copy of the image is made and thrown away, so that a virtual machine has memory at hand. The time of a "
        "step ends after `sync -f`, when its files are durable. A restored file is compared "
        "with the day's image byte for byte; a tool that gives back anything else has failed and gets no times. Sizes "
        "are what the repository takes on disk; caches that a tool keeps elsewhere (borg, restic) are not counted. "
        "Peak memory is the largest of any process in any step, with the pages of files that it maps; that of small "
        "processes cannot be told. A day's figures are over all days and runs.",
        "What is not comparable: borg, restic and casync deduplicate, also over many images, and restic encrypts; "
        "here there is one image, and nothing to be had from it. Rolling back in place, remote repositories and pruning "
        "are not measured. Times are those of one machine, perhaps a shared one (look at the smallest and largest); "
        "the ratios carry over better.",
    ]
    if overwriting:
        texts.append(f"Without a history (each day overwrites the one before): {overwriting}.")
    if whole:
        texts.append(f"Restored without the guest's holes, so the times include writing zeros: {', '.join(whole)}.")
    return texts


def told(result: Result, tool: Tool) -> str:
    """What a tool is asked to do."""
    values = {"repo": "REPO", "live": "vm.img", "day": "N", "before": "(N-1)", "old": "OLD", "new": "NEW"}
    steps = {
        "an empty repository, not timed": tool.prepare,
        "first snapshot" if tool.next != tool.first else "every snapshot": tool.first,
        "each day's snapshot": tool.next if tool.next != tool.first else "",
        "restore" if tool.restore else "restore, once for each day": tool.restore or tool.replay,
    }
    lines = [f"# {name}\n{step.strip().format(**values)}" for name, step in steps.items() if step]
    return f"**{tool.name}**: {tool.note}.\n\n```\n" + "\n".join(lines) + "\n```"

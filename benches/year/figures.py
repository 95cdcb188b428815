"""What the year came to, and how it is told: Markdown for people, JSON with every measurement."""

import dataclasses
import json
from dataclasses import dataclass

from report import GIB, MIB, counted, mib, number, rows, spread

MOST_BYTES = 1.05  # of what is live
LEAST_SPEED = 0.7  # of copying the merged files with fsync
MOST_MEMORY = 128 * MIB  # DESIGN.md
ORDERS = ("prune `--compact` at once", "prune", "then `--compact`")


@dataclass(frozen=True)
class Step:
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Day:
    day: int
    sha256: str
    ageing_seconds: float
    snapshot: Step
    changed_bytes: int
    stored_bytes: int
    guest_bytes: int  # allocated


@dataclass(frozen=True)
class Prune:
    step: Step
    ceiling_seconds: float
    before_bytes: int
    after_bytes: int
    before_files: int
    after_files: int
    written_bytes: int
    written_files: int
    told: dict

    def speed(self) -> float:
        return self.ceiling_seconds / self.step.seconds


@dataclass(frozen=True)
class Kept:
    number: int
    time: str
    stored_bytes: int
    live_bytes: int  # when stored afresh, as an increment on the one before
    restore: Step


@dataclass
class Result:
    date: str
    command: str
    version: str
    machine: dict[str, str]
    loads: list[float]
    smallest_peak: int
    size: int
    rules: str
    guest_bytes: list[int]
    days: list[Day]
    year_bytes: int
    year_files: int
    expected: list[str]
    dry: Step
    dry_freed_bytes: int
    prunes: list[list[Prune]]  # in each run those of ORDERS
    kept: list[Kept]
    live_bytes: int  # of the repository in which they are stored afresh
    restore: list[Step]
    verify: list[Step]
    wrong: list[str]


def as_json(result: Result) -> str:
    return json.dumps(dataclasses.asdict(result), indent=1) + "\n"


def markdown(result: Result) -> str:
    parts = [
        f"# A year of daily snapshots, pruned, {result.date}",
        f"```\n{result.command}\n```",
        guest(result),
        rows(["machine", ""], [[name, text] for name, text in machine(result).items()]),
        "## What is asked for",
        demands(result),
        *(f"**Wrong:** {text}." for text in result.wrong),
        f"## The prune, medians of {counted(len(result.prunes), 'run')} (smallest–largest)",
        f"`imgsnap prune vm {result.rules}`, with and without `--compact`, of fresh copies of the repository in each "
        "run. A copy with fsync of the files that it wrote follows each of them.",
        prune_table(result),
        "## Other steps",
        other_steps(result),
        "## The snapshots of the year",
        year_table(result),
        "## What is kept",
        "`afresh` is what the same image takes as an increment on the one before, in a new repository: what is live.",
        kept_table(result),
    ]
    return "\n\n".join(parts) + "\n"


def machine(result: Result) -> dict[str, str]:
    loads = ", ".join(f"{load:.2f}" for load in result.loads)
    when = "load average at the start, after the year, before and after the prunes, at the end"
    return {**result.machine, "program": result.version, when: loads}


def guest(result: Result) -> str:
    changed = [day.changed_bytes / MIB for day in result.days[1:]]
    stored = [day.stored_bytes / MIB for day in result.days[1:]]
    first, last = (mib(count) for count in result.guest_bytes)
    return (
        f"The guest is an image of {number(result.size / GIB)} GiB, of which {first} MiB are allocated on the first "
        f"day and {last} after {counted(len(result.days) - 1, 'day')}. Median of a day (smallest–largest): "
        f"{spread(changed)} MiB changed, {spread(stored)} MiB stored; the base takes "
        f"{mib(result.days[0].stored_bytes)} MiB. The repository with all of them: {mib(result.year_bytes)} MiB in "
        f"{result.year_files} files."
    )


def demands(result: Result) -> str:
    """Each with what was found."""
    peaks = [prune.step.peak_bytes for run in result.prunes for prune in run]
    body = [
        [
            "kept snapshots that are restored bit for bit",
            "all",
            f"{len(result.kept)} of {len(result.expected)}; {counted(len(result.wrong), 'thing')} wrong",
        ],
        ["peak memory", f"≤ {mib(MOST_MEMORY)} MiB", f"{mib(max(peaks))} MiB"],
    ]
    for name, prunes in turns(result):
        if "compact" in name:
            ratios = [prune.after_bytes / result.live_bytes for prune in prunes]
            body.append([f"{name}: bytes after it, of what is live", f"≤ {MOST_BYTES}", f"{max(ratios):.4f}"])
    for name, prunes in turns(result):
        if any(prune.written_bytes for prune in prunes):
            speeds = spread([prune.speed() for prune in prunes])
            body.append([f"{name}: speed, of copying what it wrote, with fsync", f"≥ {LEAST_SPEED}", speeds])
    return rows(["", "asked for", "measured"], body)


def turns(result: Result) -> list[tuple[str, list[Prune]]]:
    """The prunes of each kind."""
    return [(name, [run[place] for run in result.prunes]) for place, name in enumerate(ORDERS)]


def line(prune: Prune) -> str:
    return (
        f"{prune.step.seconds:.2f} s, copy {prune.ceiling_seconds:.2f} s, "
        f"{mib(prune.before_bytes)} to {mib(prune.after_bytes)} MiB"
    )


def prune_table(result: Result) -> str:
    def told(key: str):
        return lambda prune: prune.told[key]

    def mebibytes(of):
        return lambda prune: of(prune) / MIB

    figures = {
        "seconds": lambda p: p.step.seconds,
        "processor time, s": lambda p: p.step.cpu_seconds,
        "copy of what it wrote, with fsync, s": lambda p: p.ceiling_seconds,
        "written, MiB": mebibytes(lambda p: p.written_bytes),
        "written, MiB/s": lambda p: p.written_bytes / MIB / p.step.seconds,
        "written, files": lambda p: p.written_files,
        "repository before, MiB": mebibytes(lambda p: p.before_bytes),
        "repository after, MiB": mebibytes(lambda p: p.after_bytes),
        "files before": lambda p: p.before_files,
        "files after": lambda p: p.after_files,
        "it tells: freed, MiB": mebibytes(told("freed_bytes")),
        "it tells: garbage left, MiB": mebibytes(told("garbage_bytes")),
        "it tells: files held for others": told("held_files"),
        "peak memory, MiB": mebibytes(lambda p: p.step.peak_bytes),
    }
    body = [[name, *(values([of(p) for p in prunes]) for _, prunes in turns(result))] for name, of in figures.items()]
    return rows(["", *ORDERS], body)


def values(found: list) -> str:
    """Counts without a fraction."""
    is_count = isinstance(found[0], int) and min(found) == max(found)
    return f"{found[0]:,}" if is_count else spread(found)


def other_steps(result: Result) -> str:
    def cells(name: str, step: Step) -> list[str]:
        peak = f"< {mib(result.smallest_peak)}" if step.peak_bytes <= result.smallest_peak else mib(step.peak_bytes)
        return [name, number(step.seconds), number(step.cpu_seconds), peak]

    first, newest = result.restore
    before, after = result.verify
    body = [
        cells("dry run", result.dry),
        cells("restore of the newest, before the prune", first),
        cells("restore of the newest, after it", newest),
        cells("verify, before the prune", before),
        cells("verify, after it", after),
    ]
    told = f"The dry run tells that {mib(result.dry_freed_bytes)} MiB would be freed."
    return rows(["", "s", "processor time, s", "peak memory, MiB"], body) + f"\n\n{told}"


def year_table(result: Result) -> str:
    count = min(30, len(result.days) // 2)
    parts = {f"first {count} days": result.days[1 : 1 + count], f"last {count} days": result.days[-count:]}
    parts = {"base": result.days[:1], **parts, "all days": result.days[1:]}
    body = []
    for name, days in parts.items():
        if days:
            seconds = [day.snapshot.seconds for day in days]
            peak = max(day.snapshot.peak_bytes for day in days)
            stored = [day.stored_bytes / MIB for day in days]
            body.append([name, spread(seconds), spread(stored), mib(peak)])
    return rows(["", "snapshot, s", "stored, MiB", "peak memory, MiB"], body)


def kept_table(result: Result) -> str:
    body = [
        [
            f"@{one.number}",
            one.time[:10],
            mib(one.stored_bytes),
            mib(one.live_bytes),
            f"{one.stored_bytes / one.live_bytes:.4f}",
            number(one.restore.seconds),
        ]
        for one in result.kept
    ]
    stored, live = (sum(getattr(one, name) for one in result.kept) for name in ("stored_bytes", "live_bytes"))
    seconds = sum(one.restore.seconds for one in result.kept)
    body.append(["all", "", mib(stored), mib(live), f"{stored / live:.4f}", number(seconds)])
    return rows(["snapshot", "time", "stored, MiB", "afresh, MiB", "ratio", "restore, s"], body)

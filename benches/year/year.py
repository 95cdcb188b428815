#!/usr/bin/env python3
"""A year of daily snapshots of a guest, pruned: what is left, how long it takes, and if it is right. See README.md."""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

sys.dont_write_bytecode = True  # leaves no __pycache__ beside the sources
HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "compare"))

import figures  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
from figures import Day, Kept, Prune, Result, Step  # noqa: E402
from measure import CHUNK, Failed, Interrupted, Runner  # noqa: E402
from run import MIB, PROJECT, environment, positive, say, search_path, size_in_bytes  # noqa: E402

# In the future, as seen by the image: imgsnap waits for a while if a file was changed later than now.
FIRST_DAY = datetime(2034, 11, 21, 2, 30, tzinfo=timezone.utc)
DAILY, WEEKLY, MONTHLY = 7, 4, 12
RULES = ["--keep-daily", str(DAILY), "--keep-weekly", str(WEEKLY), "--keep-monthly", str(MONTHLY)]
ZEROS = hashlib.sha256(bytes(CHUNK)).digest()


def main() -> int:
    options = parse_options()
    is_ours = not options.dir.exists()
    options.dir.mkdir(parents=True, exist_ok=True)
    need, free = room_needed(options.size, options.days), shutil.disk_usage(options.dir).free
    if free < need:
        return complain(f"needs {need / MIB:,.0f} MiB in {options.dir}, and {free / MIB:,.0f} MiB are free")
    root = Path(tempfile.mkdtemp(prefix="year-", dir=options.dir))
    try:
        year = Year(options, root)
        result = year.run()
        write(options, result)
        return 1 if result.wrong else 0
    except Interrupted:
        complain("interrupted; nothing was written")
        return 130
    except (Failed, OSError) as error:
        return complain(str(error))
    finally:
        if options.keep:
            complain(f"kept {root}")
        else:
            shutil.rmtree(root)
        if is_ours and not any(options.dir.iterdir()):
            options.dir.rmdir()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=size_in_bytes, default="8G", help="of the guest, as in 8G or 512M [8G]")
    parser.add_argument("--days", type=positive, default=365, help="days after the first snapshot [365]")
    parser.add_argument("--runs", type=positive, default=3, help="of the prune, of which the median counts [3]")
    parser.add_argument("--seed", default="1", help="another one makes another year [1]")
    parser.add_argument("--dir", type=Path, default=PROJECT / "target/year", help="folder for all scratch files")
    parser.add_argument("--imgsnap", type=Path, default=PROJECT / "target/release/imgsnap", help="the program")
    parser.add_argument("--output", type=Path, help="Markdown file to write [standard output]")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    parser.add_argument("--keep", action="store_true", help="do not remove the scratch files")
    options = parser.parse_args()
    if not options.imgsnap.is_file():
        parser.error(f"no imgsnap at {options.imgsnap}: cargo build --release, or --imgsnap PATH")
    for program, package in {"faketime": "faketime", "debugfs": "e2fsprogs"}.items():
        if not shutil.which(program, path=search_path()):
            parser.error(f"{program} is missing (package {package})")
    for file in filter(None, (options.output, options.json)):
        if not file.absolute().parent.is_dir():
            parser.error(f"no folder for {file}")
    options.dir = options.dir.absolute()
    return options


def room_needed(size: int, days: int) -> int:
    """At most: the image and one copy of it, the repository of the year and one that is pruned, and copies of what
    the prune writes. They take less than is said here, about as much as that last."""
    image = size * 2 // 5 + days * size // 1000
    repository = size // 4 + days * size // 400
    return 2 * image + 2 * repository


def complain(text: str) -> int:
    print(f"year.py: {text}", file=sys.stderr)
    return 1


class Ager:
    """The process that changes the image: what it holds is not to be the peak memory of what is measured."""

    def __init__(self, image: Path, size: int, seed: str) -> None:
        command = [sys.executable, "-B", str(HERE / "ageing.py"), str(image), str(size), seed]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.said()

    def said(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise Failed("the guest could not be aged")
        return line

    def age(self, day: int) -> list[int]:
        """The chunks that were written to."""
        assert self.process.stdin
        self.process.stdin.write(f"{day}\n")
        self.process.stdin.flush()
        return json.loads(self.said())

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


class Digests:
    """SHA-256 of an image, by that of its chunks: a day's costs only what the day wrote."""

    def __init__(self, image: Path, runner: Runner) -> None:
        self.image = image
        self.runner = runner
        self.chunks = [ZEROS] * (image.stat().st_size // CHUNK)
        with image.open("rb", buffering=0) as file:
            self.read(measure.data_chunks(file.fileno()))

    def read(self, chunks: list[int]) -> None:
        buffer = bytearray(CHUNK)
        with self.image.open("rb", buffering=0) as file:
            for chunk in chunks:
                self.runner.check()
                os.preadv(file.fileno(), [buffer], chunk * CHUNK)
                self.chunks[chunk] = hashlib.sha256(buffer).digest()

    def all(self) -> str:
        return hashlib.sha256(b"".join(self.chunks)).hexdigest()


class Year:
    """The folders, and what was found so far."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.options = options
        self.root = root
        self.live = root / "live/vm.img"
        self.restored = root / "restored/vm.img"
        self.year = root / "year"  # the repository, never pruned itself
        self.pruned = root / "pruned"
        self.afresh = root / "afresh"
        for name in ("bin", "tmp", "home", "live", "restored"):
            (root / name).mkdir()
        # A copy: a build in between does not change what is measured.
        shutil.copy2(options.imgsnap, root / "bin/imgsnap")
        libfaketime = {"NO_FAKE_STAT": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        self.runner = Runner({**environment(root), "TZ": "UTC", **libfaketime}, root / "log")
        self.loads = [os.getloadavg()[0]]
        self.wrong: list[str] = []

    def run(self) -> Result:
        days = self.live_through()
        before = files_of(self.year)
        self.loads.append(os.getloadavg()[0])
        say("the newest is restored, and all is verified, before the prune")
        restore_before = self.restore_newest(self.year, days)
        verify_before = self.imgsnap(self.year, "verify")
        say("dry run")
        dry, told = self.measured(self.year, "prune", "vm", *RULES, "--dry-run")
        if files_of(self.year) != before:
            self.wrong.append("the dry run changed the repository")
        self.check_kept(told[0]["snapshots"], "the dry run")
        self.loads.append(os.getloadavg()[0])
        prunes = [self.prune(number) for number in range(self.options.runs)]
        self.loads.append(os.getloadavg()[0])
        if not self.options.keep:
            shutil.rmtree(self.year)
        kept = self.restore_all(days)
        say("all is verified")
        verify_after = self.imgsnap(self.pruned, "verify")
        restore_after = self.restore_newest(self.pruned, days)
        self.runner.run(["imgsnap", "--version"], self.root)
        version = self.runner.log.read_text().strip()
        machine = report.machine(self.root, 0)
        del machine["load average before and after"]
        self.loads.append(os.getloadavg()[0])
        return Result(
            date=date.today().isoformat(),
            command=shlex.join(sys.argv),
            version=version,
            machine=machine,
            loads=self.loads,
            smallest_peak=self.runner.smallest_peak(),
            size=self.options.size,
            rules=" ".join(RULES),
            guest_bytes=[days[0].guest_bytes, days[-1].guest_bytes],
            days=days,
            year_bytes=sum(before.values()),
            year_files=len(before),
            expected=[f"@{day + 1}" for day in kept_days(self.options.days)],
            dry=dry,
            dry_freed_bytes=told[0]["freed_bytes"],
            prunes=prunes,
            kept=kept,
            live_bytes=sum(files_of(self.afresh).values()),
            restore=[restore_before, restore_after],
            verify=[verify_before, verify_after],
            wrong=self.wrong,
        )

    # The year

    def live_through(self) -> list[Day]:
        """The guest, and a snapshot of each of its days."""
        say("makes the guest")
        size, seed = str(self.options.size), self.options.seed
        guest = str(HERE.parent / "compare/guest.sh")
        self.runner.run([guest, "make", str(self.live), size, seed], self.root)
        self.imgsnap(self.year, "init")
        ager = Ager(self.live, self.options.size, seed)
        try:
            digests = Digests(self.live, self.runner)
            days = []
            for day in range(self.options.days + 1):
                self.runner.check()
                start = time.perf_counter()
                if day:
                    digests.read(ager.age(day))
                ageing = time.perf_counter() - start
                days.append(self.live_day(day, digests.all(), ageing))
                if day % 30 == 0:
                    say(f"day {day}: aged in {ageing:.2f} s, snapshot in {days[-1].snapshot.seconds:.2f} s")
        finally:
            ager.end()
        if Digests(self.live, self.runner).all() != days[-1].sha256:
            raise Failed("a day wrote to more than it told: the digests of the days are worth nothing")
        return days

    def live_day(self, day: int, sha256: str, ageing: float) -> Day:
        clock = (FIRST_DAY + timedelta(days=day)).strftime("@%Y-%m-%d %H:%M:%S")
        command = ["imgsnap", "-q", "--json", "--repo", str(self.year), "snapshot", str(self.live)]
        step = self.timed(["faketime", "-f", clock, *command])
        told = self.told()
        if told["number"] != day + 1 or not told["time"].startswith(clock[1:11]):
            raise Failed(f"day {day} became snapshot {told['number']} of {told['time']}: does faketime work here?")
        guest_bytes = measure.allocated(self.live)
        return Day(day, sha256, ageing, step, told["changed_bytes"], told["stored_bytes"], guest_bytes)

    # The prune

    def check_kept(self, snapshots: list[dict], who: str) -> None:
        kept = [snapshot["number"] for snapshot in snapshots if snapshot["kept"]]
        expected = [day + 1 for day in kept_days(self.options.days)]
        if kept != expected:
            self.wrong.append(f"{who} keeps {kept} instead of {expected}")

    def prune(self, number: int) -> list[Prune]:
        """With --compact at once; and without and then with it: each of a fresh copy of the year."""
        done = []
        for orders in ([["--compact"]], [[], ["--compact"]]):
            if self.pruned.exists():
                shutil.rmtree(self.pruned)
            self.runner.run(["cp", "-a", str(self.year), str(self.pruned)], self.root)
            for more in orders:
                done.append(self.prune_once(more))
                say(f"prune {number + 1} of {self.options.runs} {' '.join(more)}: {figures.line(done[-1])}")
        return done

    def prune_once(self, more: list[str]) -> Prune:
        """And its ceiling."""
        before = files_of(self.pruned)
        self.settle(self.pruned)
        step, told = self.measured(self.pruned, "prune", "vm", *RULES, *more)
        self.check_kept(told[0]["snapshots"], f"prune {' '.join(more)}")
        after = files_of(self.pruned)
        written = [path for path in after if path.suffix == ".delta" and path not in before]
        return Prune(
            step=step,
            ceiling_seconds=self.copy_with_fsync(written),
            before_bytes=sum(before.values()),
            after_bytes=sum(after.values()),
            before_files=len(before),
            after_files=len(after),
            written_bytes=sum(after[path] for path in written),
            written_files=len(written),
            told={key: told[0][key] for key in ("freed_bytes", "garbage_bytes", "held_files", "merged")},
        )

    def copy_with_fsync(self, files: list[Path]) -> float:
        """Seconds for the ceiling: each file read from the page cache and written anew, and its fsync."""
        self.settle(*(self.pruned / file for file in files))
        folder = self.root / "tmp/copies"
        folder.mkdir()
        buffer = memoryview(bytearray(CHUNK))
        start = time.perf_counter()
        for file in files:
            source, copy = (self.pruned / file).open("rb", buffering=0), (folder / file.name).open("wb", buffering=0)
            with source, copy:
                while count := source.readinto(buffer):
                    self.runner.check()
                    copy.write(buffer[:count])
                os.fsync(copy.fileno())
        seconds = time.perf_counter() - start
        shutil.rmtree(folder)
        return seconds

    def settle(self, *paths: Path) -> None:
        """As in the comparison: what is read is cached, memory is at hand, and nothing is left to be written."""
        for path in paths:
            self.runner.warm(path)
        spare = self.root / "tmp/spare"
        self.runner.run(["cp", "--sparse=always", str(self.live), str(spare)], self.root)
        spare.unlink()
        self.runner.run(["sync", "-f", str(self.root)], self.root)

    # What is left

    def restore_all(self, days: list[Day]) -> list[Kept]:
        """Each kept snapshot, compared with its day, and stored afresh: a plain increment on the one before."""
        self.imgsnap(self.afresh, "init")
        kept = []
        for stored in self.listed(self.pruned):
            name = f"vm@{stored['number']}"
            self.restored.unlink(missing_ok=True)
            step, _ = self.measured(self.pruned, "restore", name, "-o", str(self.restored))
            if Digests(self.restored, self.runner).all() != days[stored["number"] - 1].sha256:
                self.wrong.append(f"{name} is not the image of its day")
            _, told = self.measured(self.afresh, "snapshot", str(self.restored))
            kept.append(Kept(stored["number"], stored["time"], stored["stored_bytes"], told["stored_bytes"], step))
            sizes = f"{kept[-1].stored_bytes:,} bytes, afresh {kept[-1].live_bytes:,}"
            say(f"{name}: restored in {step.seconds:.2f} s; {sizes}")
        expected = [day + 1 for day in kept_days(self.options.days)]
        if [one.number for one in kept] != expected:
            self.wrong.append(f"there are {[one.number for one in kept]} instead of {expected}")
        return kept

    def listed(self, repository: Path) -> list[dict]:
        self.imgsnap(repository, "list")
        return sorted(self.told(), key=lambda stored: stored["number"])

    def restore_newest(self, repository: Path, days: list[Day]) -> Step:
        self.restored.unlink(missing_ok=True)
        self.settle(repository)
        step = self.imgsnap(repository, "restore", "vm@latest", "-o", str(self.restored))
        if Digests(self.restored, self.runner).all() != days[-1].sha256:
            self.wrong.append(f"vm@latest in {repository.name} is not the image of its day")
        self.restored.unlink()
        return step

    # Commands

    def timed(self, command: list[str]) -> Step:
        start = time.perf_counter()
        cpu_seconds, peak_bytes = self.runner.run(command, self.root)
        return Step(time.perf_counter() - start, cpu_seconds, peak_bytes)

    def imgsnap(self, repository: Path, *words: str) -> Step:
        return self.timed(["imgsnap", "-q", "--json", "--repo", str(repository), *words])

    def measured(self, repository: Path, *words: str) -> tuple[Step, dict]:
        """And what it said."""
        return self.imgsnap(repository, *words), self.told()

    def told(self) -> dict:
        return json.loads(self.runner.log.read_text().strip().splitlines()[-1])


def kept_days(days: int) -> list[int]:
    """What the rules are expected to keep: the newest day of each of the last 7 days, 4 weeks and 12 months; and the
    oldest of all, while a rule has not found as many."""
    kept = set()
    for count, period in ((DAILY, "%Y-%m-%d"), (WEEKLY, "%G-%V"), (MONTHLY, "%Y-%m")):
        newest = {(FIRST_DAY + timedelta(days=day)).strftime(period): day for day in range(days + 1)}
        kept.update(sorted(newest.values())[-count:])
        if len(newest) < count:
            kept.add(0)
    return sorted(kept)


def files_of(folder: Path) -> dict[Path, int]:
    """The files below a folder, and their lengths."""
    return {path.relative_to(folder): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def write(options: argparse.Namespace, result: Result) -> None:
    text = figures.markdown(result)
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    if options.json:
        options.json.write_text(figures.as_json(result))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Runs the same work through imgsnap and what a user would use instead, and writes a table. See README.md."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

sys.dont_write_bytecode = True  # leaves no __pycache__ beside the sources

import measure  # noqa: E402
import report  # noqa: E402
from measure import Failed, Interrupted, Measured, Runner  # noqa: E402
from tools import REFERENCE, TOOLS, Tool, commands, restore_commands  # noqa: E402

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
MIB = 1 << 20
PASSWORD = "comparison"


def main() -> int:
    options = parse_options()
    is_ours = not options.dir.exists()
    try:
        if options.install:
            install(options.tools)
        options.dir.mkdir(parents=True, exist_ok=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return complain(str(error))
    try:
        return compare(options)
    finally:
        if is_ours and not any(options.dir.iterdir()):
            options.dir.rmdir()


def compare(options: argparse.Namespace) -> int:
    need, free = room_needed(options.size, options.days), shutil.disk_usage(options.dir).free
    if free < need:
        return complain(f"needs {need / MIB:,.0f} MiB in {options.dir}, and {free / MIB:,.0f} MiB are free")
    root = Path(tempfile.mkdtemp(prefix="compare-", dir=options.dir))
    runner = Runner(environment(root), root / "log")
    try:
        result = Comparison(options, root, runner).run()
        write(options, result)
        return 1 if any(tool.failure for tool in result.tools.values()) else 0
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


def parse_options() -> argparse.Namespace:
    names = [tool.name for tool in TOOLS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=size_in_bytes, default="8G", help="of the guest, as in 8G or 768M [8G]")
    parser.add_argument("--days", type=positive, default=3, help="days that the guest is aged [3]")
    parser.add_argument("--runs", type=positive, default=3, help="repetitions, of which the median counts [3]")
    parser.add_argument("--dir", type=Path, default=PROJECT / "target/compare", help="folder for all scratch files")
    parser.add_argument("--tools", default=",".join(names), help="some of: " + ", ".join(names))
    parser.add_argument("--install", action="store_true", help="install missing Debian packages first, by apt-get")
    parser.add_argument("--imgsnap", type=Path, default=PROJECT / "target/release/imgsnap", help="the program")
    parser.add_argument("--output", type=Path, help="Markdown file to write [standard output]")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    parser.add_argument("--keep", action="store_true", help="do not remove the scratch files")
    options = parser.parse_args()
    unknown = set(options.tools.split(",")) - set(names)
    if unknown:
        parser.error(f"no such tool: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    options.tools = [tool for tool in TOOLS if tool.name in options.tools.split(",")]
    if any(tool.program == "imgsnap" for tool in options.tools) and not options.imgsnap.is_file():
        parser.error(f"no imgsnap at {options.imgsnap}: cargo build --release, or --imgsnap PATH")
    for file in filter(None, (options.output, options.json)):
        if not file.absolute().parent.is_dir():
            parser.error(f"no folder for {file}")
    options.dir = options.dir.absolute()
    return options


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def size_in_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([MG])", text)
    if not match:
        raise argparse.ArgumentTypeError("a size is as in 8G or 768M")
    size = int(match[1]) << {"M": 20, "G": 30}[match[2]]
    if size < 256 * MIB:
        raise argparse.ArgumentTypeError("the guest must have 256M or more")
    return size


def room_needed(size: int, days: int) -> int:
    """At most two fifths of a guest are data. The most at once: the images of all days and the live one, with
    a full copy for each day and the restored one, or with two files that a restore wrote without holes."""
    data = size * 2 // 5
    return data * (days + 2) + max(data * (days + 2), data * 3 + 2 * size)


def complain(text: str) -> int:
    print(f"run.py: {text}", file=sys.stderr)
    return 1


def install(tools: list[Tool]) -> None:
    wanted = {tool.package: tool.program for tool in tools if tool.package}
    wanted["e2fsprogs"] = "mke2fs"
    missing = [package for package, program in wanted.items() if not shutil.which(program, path=search_path())]
    if missing:
        apt = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=apt)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True, env=apt)


def search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def environment(root: Path) -> dict[str, str]:
    """What commands see: nothing of the user's settings, and a home below the scratch folder."""
    home = root / "home"
    return {
        "PATH": f"{root / 'bin'}:{search_path()}",
        "LC_ALL": "C.UTF-8",
        "HOME": str(home),
        "TMPDIR": str(root / "tmp"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "BORG_BASE_DIR": str(home),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "RESTIC_CACHE_DIR": str(home / "cache/restic"),
        "RESTIC_PASSWORD": PASSWORD,
    }


class Comparison:
    """The folders of a comparison, the tools that are there, and what was measured so far."""

    def __init__(self, options: argparse.Namespace, root: Path, runner: Runner) -> None:
        self.options = options
        self.root = root
        self.runner = runner
        self.live = root / "live/vm.img"
        self.repo = root / "repo"
        self.restored = root / "restored"
        for name in ("bin", "tmp", "live", "days"):
            (root / name).mkdir()
        if options.imgsnap.is_file():
            # A copy: a build in between does not change what is measured.
            shutil.copy2(options.imgsnap, root / "bin/imgsnap")
        path = runner.environment["PATH"]
        self.found = [tool for tool in options.tools if shutil.which(tool.program, path=path)]

    def day(self, number: int) -> Path:
        return self.root / f"days/{number}.img"

    def run(self) -> report.Result:
        load = os.getloadavg()[0]
        changed = self.make_guests()
        tools = {tool.name: report.ToolResult() for tool in self.options.tools}
        for tool in self.found:
            tools[tool.name].version = self.version(tool)
        for number in range(self.options.runs):
            turn = number * len(self.found) // self.options.runs
            for tool in self.found[turn:] + self.found[:turn]:
                if not tools[tool.name].failure:
                    self.run_tool(number, tool, tools[tool.name])
        return report.Result(
            date=date.today().isoformat(),
            command=shlex.join(sys.argv),
            machine=report.machine(self.root, load),
            size=self.options.size,
            days=self.options.days,
            runs=self.options.runs,
            guest_bytes=measure.allocated(self.day(self.options.days)),
            changed_bytes=changed,
            smallest_peak=self.runner.smallest_peak(),
            tools=tools,
        )

    def make_guests(self) -> list[int]:
        """The images of all days and the live one; how many bytes each day changed."""
        guest = str(HERE / "guest.sh")
        say("makes the guest")
        self.runner.run([guest, "make", str(self.day(0)), str(self.options.size)], self.root)
        self.copy(self.day(0), self.live)
        changed = []
        for number in range(1, self.options.days + 1):
            say(f"ages it by day {number}")
            self.copy(self.day(number - 1), self.day(number))
            self.runner.run([guest, "age", str(self.day(number)), str(number)], self.root)
            changed.append(self.runner.bring_to(self.live, self.day(number)) * measure.BLOCK)
        return changed

    def copy(self, source: Path, target: Path) -> None:
        self.runner.run(["cp", "--sparse=always", str(source), str(target)], self.root)

    def version(self, tool: Tool) -> str:
        self.runner.run([tool.program, tool.version], self.root)
        said = self.runner.log.read_text(errors="replace")
        match = re.search(r"\d+(\.\d+)+", said) or re.search(r"\d+", said)
        return match[0] if match else "?"

    def run_tool(self, number: int, tool: Tool, result: report.ToolResult) -> None:
        run = report.Run()
        try:
            self.snapshots(tool, run)
            self.restore(tool, run)
        except Failed as error:
            result.failure = str(error).replace(f"{self.root}/", "")
            say(f"run {number + 1} of {self.options.runs}: {tool.name} failed: {result.failure}")
        else:
            result.runs.append(run)
            days = ", ".join(f"{step.seconds:.2f}" for step in run.incremental)
            say(
                f"run {number + 1} of {self.options.runs}: {tool.name}: first {run.first.seconds:.2f} s, "
                f"days {days} s, restore {run.restore.seconds:.2f} s"
            )
        finally:
            for folder in (self.repo, self.restored, self.root / "home"):
                shutil.rmtree(folder, ignore_errors=True)

    def snapshots(self, tool: Tool, run: report.Run) -> None:
        (self.root / "home").mkdir()
        self.repo.mkdir()
        for command in commands(tool.prepare, repo=self.repo):
            self.runner.run(command, self.root)
        for day in range(self.options.days + 1):
            self.runner.bring_to(self.live, self.day(day))
            step = commands(tool.next if day else tool.first, repo=self.repo, live=self.live, day=day, before=day - 1)
            measured = self.measure(step, self.live.parent, durable=self.repo)
            if day:
                run.incremental.append(measured)
            else:
                run.first = measured
            run.repository_bytes.append(measure.allocated(self.repo))

    def restore(self, tool: Tool, run: report.Run) -> None:
        self.restored.mkdir()
        step = restore_commands(tool, str(self.repo), self.options.days)
        run.restore = self.measure(step, self.restored, durable=self.restored)
        file = self.restored / self.live.name
        try:
            self.runner.run(["cmp", str(file), str(self.day(self.options.days))], self.root)
        except Failed as error:
            raise Failed(f"the restored image is not the one that was stored: {error}") from None
        run.restored_bytes = measure.allocated(file)

    def measure(self, step: list[list[str]], folder: Path, durable: Path) -> Measured:
        """Alike for all: what is read is in the page cache, and nothing is left to be written before.

        A copy is made and thrown away: a virtual machine may have given free memory back to its host, and the
        first use of it again costs a second or two for each GiB, whoever happens to be the first.
        """
        self.runner.warm(self.live)
        self.runner.warm(self.repo)
        spare = self.root / "tmp/spare"
        self.copy(self.live, spare)
        spare.unlink()
        self.runner.run(["sync", "-f", str(self.root)], self.root)
        return self.runner.measure(step, folder, durable)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(options: argparse.Namespace, result: report.Result) -> None:
    text = report.markdown(result)
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    if options.json:
        options.json.write_text(report.as_json(result))


if __name__ == "__main__":
    sys.exit(main())

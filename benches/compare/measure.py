"""Running a command and measuring it, and what is done to images between two steps."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
BLOCK = 4096


class Failed(Exception):
    """A command failed; the text says which and how."""


class Interrupted(Exception):
    """Ctrl-C, or another signal that asks to end."""


@dataclass(frozen=True)
class Measured:
    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Runner:
    """Runs commands, and ends the one that runs when it is interrupted.

    A command gets a process group of its own, so that all of it can be ended. The signal handler only takes
    a note and passes the signal on: no exception comes out of the middle of anything.
    """

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment = environment
        self.log = log
        self.interrupted = False
        self.child: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.interrupted = True
        self._end_child()

    def _end_child(self) -> None:
        if self.child is not None:
            try:
                os.killpg(self.child, signal.SIGTERM)
            except ProcessLookupError:
                pass  # it just ended

    def check(self) -> None:
        if self.interrupted:
            raise Interrupted

    def run(self, command: list[str], folder: Path) -> tuple[float, int]:
        """CPU seconds and peak memory, in bytes, of a command and of all that it started and waited for."""
        self.check()
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.child = process.pid
            if self.interrupted:
                self._end_child()
            _, status, usage = os.wait4(process.pid, 0)
            self.child = None
            process.returncode = os.waitstatus_to_exitcode(status)
        self.check()
        if process.returncode != 0:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it said nothing"
            raise Failed(f"`{' '.join(command[:3])} ...` ended with {process.returncode}: {said}")
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024

    def measure(self, commands: list[list[str]], folder: Path, durable: Path) -> Measured:
        """Commands one after the other, and then what makes their files durable."""
        cpu_seconds, peak = 0.0, 0
        start = time.perf_counter()
        for command in commands:
            cpu, memory = self.run(command, folder)
            cpu_seconds += cpu
            peak = max(peak, memory)
        self.run(["sync", "-f", str(durable)], folder)
        return Measured(time.perf_counter() - start, cpu_seconds, peak)

    def smallest_peak(self) -> int:
        """A new process begins with the peak of this one: no smaller one can be told."""
        return self.run(["true"], Path("/"))[1]

    def warm(self, path: Path) -> None:
        """Reads a file, or all files of a folder, so that they are in the page cache; holes are left out."""
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        buffer = bytearray(CHUNK)
        for file in files:
            with file.open("rb", buffering=0) as opened:
                for chunk in data_chunks(opened.fileno()):
                    self.check()
                    os.preadv(opened.fileno(), [buffer], chunk * CHUNK)

    def bring_to(self, live: Path, image: Path) -> int:
        """Writes into the live image the blocks that differ, as a virtual machine does; their number."""
        count = 0
        with live.open("r+b", buffering=0) as target, image.open("rb", buffering=0) as source:
            old, new = bytearray(CHUNK), bytearray(CHUNK)
            chunks = set(data_chunks(target.fileno())) | set(data_chunks(source.fileno()))
            for chunk in sorted(chunks):
                self.check()
                os.preadv(target.fileno(), [old], chunk * CHUNK)
                os.preadv(source.fileno(), [new], chunk * CHUNK)
                if old != new:
                    count += write_difference(target.fileno(), chunk * CHUNK, old, new)
        return count


def write_difference(target: int, offset: int, old: bytearray, new: bytearray) -> int:
    count = 0
    for start in range(0, CHUNK, BLOCK):
        block = new[start : start + BLOCK]
        if block != old[start : start + BLOCK]:
            os.pwrite(target, block, offset + start)
            count += 1
    return count


def data_chunks(file: int) -> list[int]:
    """The numbers of the chunks that are not wholly in a hole."""
    size = os.fstat(file).st_size
    chunks: list[int] = []
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:
            break  # only a hole follows
        end = os.lseek(file, start, os.SEEK_HOLE)
        first = start // CHUNK
        if chunks and first <= chunks[-1]:
            first = chunks[-1] + 1
        chunks.extend(range(first, (end + CHUNK - 1) // CHUNK))
    return chunks


def allocated(path: Path) -> int:
    """Bytes that a file, or all files of a folder, take on disk; a file with two names counts once."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    blocks = {stat.st_ino: stat.st_blocks for stat in map(os.lstat, files)}
    return sum(blocks.values()) * 512

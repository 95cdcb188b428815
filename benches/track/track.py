#!/usr/bin/env python3
"""What tracked snapshots cost on XFS: by the size of the image, by its fragments, against a scan. See README.md."""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
MIB, GIB, BLOCK = 1 << 20, 1 << 30, 4096


def main() -> int:
    options = parse_options()
    if os.geteuid() != 0:
        print("track.py: needs root, to mount file systems", file=sys.stderr)
        return 1
    root = Path(tempfile.mkdtemp(prefix="track-", dir=options.dir))
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: sys.exit(130))
    lab = Lab(root, options)
    try:
        parts = {"size": by_size, "unchanged": unchanged, "cold": cold, "fragments": fragments}
        chosen = options.only or list(parts)
        text = [f"# Tracked snapshots on XFS, {date.today()}", "", machine()]
        for name in chosen:
            part = parts[name](lab, options)
            print("\n".join(["", *part]), file=sys.stderr)
            text += ["", *part]
        text += ["", f"Load average at the end: {os.getloadavg()[0]:.1f}."]
    finally:
        lab.close()
        shutil.rmtree(root)
    print("\n".join(text))
    if options.output:
        options.output.write_text("\n".join(text) + "\n")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, default=PROJECT / "target/release/imgsnap")
    parser.add_argument("--dir", type=Path, default=Path("/tmp"), help="room for 20 GiB")
    parser.add_argument("--large", type=int, default=100, help="GiB of the large image")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", action="append", choices=["size", "unchanged", "cold", "fragments"])
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def machine() -> str:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    load = os.getloadavg()[0]
    return (f"{names[0]}, {len(names)} cores, {memory:.0f} GiB, Linux {os.uname().release}; load average at the start "
            f"{load:.1f}. Medians (smallest to largest).")


class Lab:
    """File systems to work on, undone at the end."""

    def __init__(self, root: Path, options: argparse.Namespace):
        self.root, self.program, self.undo = root, options.program, []
        self.repo = root / "repo"

    def close(self) -> None:
        for command in reversed(self.undo):
            subprocess.run(command, check=False)

    def mount(self, device: str, name: str, *how: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", device)
        run("mount", *how, device, folder)
        self.undo.append(["umount", str(folder)])
        return folder

    def on_disk(self, gib: int) -> Path:
        """An XFS in a sparse file."""
        image = self.root / "disk.xfs"
        with open(image, "wb") as file:
            file.truncate(gib * GIB)
        return self.mount(str(image), "disk", "-o", "loop")

    def in_memory(self, gib: int) -> Path:
        """An XFS on compressed memory, for more data than the disk holds. Its blocks must compress well."""
        number = int(Path("/sys/class/zram-control/hot_add").read_text())
        self.undo.append(["sh", "-c", f"echo {number} > /sys/class/zram-control/hot_remove"])
        Path(f"/sys/block/zram{number}/disksize").write_text(str(gib * GIB))
        return self.mount(f"/dev/zram{number}", "memory")

    def snapshot(self, image: Path, *more: str) -> dict:
        command = [str(self.program), "--repo", str(self.repo), "snapshot", str(image), "--json", *more]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return json.loads(done.stdout)


def run(*command) -> None:
    subprocess.run([str(word) for word in command], check=True)


def fill(path: Path, gib: int, noise: bool) -> None:
    """Distinct blocks: numbers, or half noise and half text."""
    draw = random.Random(1)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for mib in range(gib * 1024):
        if noise:
            piece = (draw.randbytes(32768) + b"text of a file  " * 2048) * 16
        else:
            piece = b"".join(struct.pack("<Q", mib * 256 + block + 1) + bytes(BLOCK - 8) for block in range(256))
        os.pwrite(fd, piece, mib * MIB)
        if mib % 1024 == 1023:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.fsync(fd)
    os.close(fd)


def change(path: Path, places, length: int, seed: int) -> None:
    draw = random.Random(seed)
    fd = os.open(path, os.O_RDWR)
    for place in places:
        os.pwrite(fd, draw.randbytes(length // 2) + bytes(length - length // 2), place)
    os.fsync(fd)
    os.close(fd)
    os.sync()


def scattered(path: Path, count: int, seed: int) -> None:
    blocks = random.Random(seed).sample(range(path.stat().st_size // BLOCK), count)
    change(path, [block * BLOCK for block in sorted(blocks)], BLOCK, seed)


def spread(values: list[float], digits: int = 3) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def by_size(lab: Lab, options: argparse.Namespace) -> list[str]:
    """64 MiB changed in scattered blocks: at 1 GiB and at many. Each run on fresh fragments of its own."""
    folder = lab.in_memory(options.large + 30)
    sizes = (1, options.large)
    rows, medians = [], {}
    for gib in sizes:
        image = folder / f"size{gib}.img"
        fill(image, gib, noise=False)
        lab.snapshot(image)
    for turn in range(options.runs):
        for gib in sizes:
            image = folder / f"size{gib}.img"
            scattered(image, 64 * MIB // BLOCK, turn)
            done = lab.snapshot(image, "--track", "reflink", "--recheck", "0")
            medians.setdefault((turn, gib), done)
    for turn in range(options.runs):
        small, large = (medians[(turn, gib)] for gib in sizes)
        rows.append(
            f"| {turn + 1} | {small['seconds']:.2f} | {small['clone_seconds']:.2f} | {large['seconds']:.2f} | "
            f"{large['clone_seconds']:.2f} | {large['seconds'] / small['seconds']:.2f} |"
        )
    return [
        f"## 64 MiB changed in scattered blocks, at 1 GiB and at {options.large} GiB of data",
        "",
        "`--track reflink --recheck 0`; each turn leaves more extents than the one before.",
        "",
        f"| turn | 1 GiB, s | of it the clone | {options.large} GiB, s | of it the clone | ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def unchanged(lab: Lab, options: argparse.Namespace) -> list[str]:
    """An image that did not change: believed by its times, and touched so that two clones have to tell."""
    folder = lab.root / "memory"
    if folder.exists():
        # One without fragments.
        subprocess.run(["sh", "-c", f"rm -rf {folder}/* {folder}/.imgsnap"], check=True)
    else:
        folder = lab.in_memory(options.large + 30)
    image = folder / "unchanged.img"
    fill(image, options.large, noise=False)
    lab.snapshot(image)
    rows = []
    for touched in (False, True):
        for recheck in ("1 % or 64 MiB", "0"):
            more = ["--recheck", "0"] if recheck == "0" else []
            seconds = []
            for _ in range(options.runs):
                if touched:
                    os.utime(image)
                    os.sync()
                    time.sleep(0.5)
                seconds.append(lab.snapshot(image, *more)["seconds"] * 1000)
            how = "two clones" if touched else "its times"
            rows.append(f"| {how} | {recheck} | {spread(seconds, 0)} |")
    return [
        f"## An unchanged image of {options.large} GiB",
        "",
        "| found by | recheck | ms |",
        "| --- | --- | ---: |",
        *rows,
    ]


def cold(lab: Lab, options: argparse.Namespace) -> list[str]:
    """8 GiB, 1 % changed in eight places, nothing in the page cache."""
    folder = lab.root / "disk"
    if not folder.exists():
        folder = lab.on_disk(40)
    image = folder / "cold.img"
    fill(image, 8, noise=True)
    lab.snapshot(image)
    tracked, full = [], []
    for turn in range(options.runs):
        draw = random.Random(turn)
        change(image, [draw.randrange(8182) * MIB for _ in range(8)], 10 * MIB, turn)
        drop_caches()
        full.append(lab.snapshot(image, "--full-scan", "--track", "none", "--dry-run")["seconds"])
        drop_caches()
        tracked.append(lab.snapshot(image)["seconds"])
    ratios = [one / other for one, other in zip(full, tracked)]
    return [
        "## 8 GiB, 1 % changed in eight places, nothing in the page cache",
        "",
        "| full scan (nothing stored), s | tracked (stored, recheck included), s | times as fast |",
        "| ---: | ---: | ---: |",
        f"| {spread(full, 2)} | {spread(tracked, 2)} | {spread(ratios, 1)} |",
    ]


def fragments(lab: Lab, options: argparse.Namespace) -> list[str]:
    """More and more extents: what auto does, against a full scan without a clone."""
    folder = lab.root / "disk"
    if not folder.exists():
        folder = lab.on_disk(40)
    image = folder / "fragments.img"
    fill(image, 8, noise=True)
    lab.snapshot(image)
    rows = []
    for count in (0, 2_000, 10_000, 50_000, 150_000):
        # Writes to a file that shares its extents break it up; the clone of the last snapshot does that.
        scattered(image, count, count) if count else None
        lab.snapshot(image, "--track", "reflink")
        for is_cold in (True, False):
            ratios, ways = [], set()
            for turn in range(min(options.runs, 3)):
                scattered(image, 1000, turn)
                scan = image_seconds(lab, image, is_cold, "--full-scan", "--track", "none", "--dry-run")
                auto = image_seconds(lab, image, is_cold)
                ratios.append(auto[0] / scan[0])
                ways.add(auto[1])
            what = "cold" if is_cold else "cached"
            rows.append(f"| {extents(image):,} | {what} | {' and '.join(sorted(ways))} | {spread(ratios, 2)} |")
    return [
        "## 8 GiB in more and more extents, 1000 blocks changed: `--track auto` against a full scan that stores nothing",
        "",
        "| extents | page cache | auto | of the time of the scan |",
        "| ---: | --- | --- | ---: |",
        *rows,
    ]


def image_seconds(lab: Lab, image: Path, is_cold: bool, *more: str) -> tuple[float, str]:
    if is_cold:
        drop_caches()
    else:
        run("sh", "-c", f"cat {image} > /dev/null")
    done = lab.snapshot(image, *more)
    return done["seconds"], "tracked" if done["hint"] else "scanned"


def extents(image: Path) -> int:
    done = subprocess.run(["xfs_io", "-r", "-c", "stat", str(image)], check=True, stdout=subprocess.PIPE, text=True)
    return next(int(line.split("=")[1]) for line in done.stdout.splitlines() if "nextents" in line)


if __name__ == "__main__":
    sys.exit(main())

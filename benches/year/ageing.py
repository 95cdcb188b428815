"""What a day changes in the guest of the year: blocks of 4 KiB, written into the raw image without a mount.

Day 0 is the guest of the comparison (../compare/guest.sh), and the bytes that a day writes are made by its
parts. Where they go is decided here, by a seed and the day: the file system of the guest is not told.

    ageing.py IMAGE SIZE SEED    reads numbers of days, one in a line, and makes each of them; tells in a line which
                                 chunks (of measure.CHUNK) were written to
"""

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "compare"))

import guest_content  # noqa: E402
from guest_content import DATABASE, DAY_SECONDS, MAX_NEW_BYTES, Guest, log_line, new_version, note  # noqa: E402
from measure import BLOCK, CHUNK  # noqa: E402

Extent = tuple[int, int]  # first block, number of blocks

# Amounts are those of a guest of 8 GiB, and scale with its size.
DATABASE_PAGES = (500, 2000)  # that a day changes; half of them at a weekend
DATABASE_GROWTH = 5_000  # pages, every GROWTH_DAYS
GROWTH_DAYS = 30
JOURNAL_BLOCKS = 4096  # of the database, written around
INODE_BLOCKS = 150
LOG_LINES = 40_000
LOG_BLOCKS = 65_536  # written around
UPGRADE_BYTES = (20_000_000, 40_000_000)
UPGRADE_DAYS = 7
UPLOADS = 24
UPLOAD_DAYS = 60  # after which all but a tenth are deleted
DELETIONS = 4  # files of the system

FLEX_GROUP = 16 * 32_768  # blocks, at the beginning of which ext4 has bitmaps and inodes
METADATA_BLOCKS = 2048
SMALLEST_FREE = 16  # blocks; what is smaller is left alone


class Ring:
    """Blocks that are written around."""

    def __init__(self, blocks: list[int]) -> None:
        self.blocks = blocks
        self.next = 0

    def take(self) -> int:
        block = self.blocks[self.next % len(self.blocks)]
        self.next += 1
        return block


class Space:
    """What is free. Half of what is asked for comes from what was freed before, the rest is fresh."""

    def __init__(self, fresh: list[Extent]) -> None:
        self.fresh = fresh  # in the order of their places
        self.freed: list[Extent] = []
        self.untrimmed: list[Extent] = []

    def free(self, extents: list[Extent]) -> None:
        self.untrimmed += extents

    def trim(self) -> list[Extent]:
        """What was freed since the last time; it can be used again."""
        extents, self.untrimmed = self.untrimmed, []
        self.freed += extents
        return extents

    def allocate(self, count: int, pick: random.Random) -> list[Extent]:
        extents = []
        while count > 0:
            if not self.freed and not self.fresh:
                raise RuntimeError("the guest is full")
            is_fresh = not self.freed or (self.fresh and pick.random() < 0.5)
            pool, at = (self.fresh, 0) if is_fresh else (self.freed, pick.randrange(len(self.freed)))
            first, length = pool.pop(at)
            taken = min(length, count)
            if taken < length:
                pool.insert(at, (first + taken, length - taken))
            extents.append((first, taken))
            count -= taken
        return extents


class Disk:
    """The raw image, and where in it things are."""

    def __init__(self, image: Path, size: int, seed: str) -> None:
        self.guest = Guest(Path("/"), size, 0, seed)
        self.seed = seed
        self.image = image
        self.file = -1  # open during a day's work only: nobody takes a snapshot of a file that is being written
        self.dirty: set[int] = set()  # chunks
        pick = self.guest.random
        database = blocks_of(image, DATABASE)
        data, holes = layout(image)
        self.space = Space(holes)
        self.metadata = [block for block in numbers(data) if 0 < block % FLEX_GROUP < METADATA_BLOCKS]
        self.files = cut_into_files(data, set(database) | set(self.metadata), pick)
        self.database = database
        scaled = self.guest.scaled
        self.journal = Ring(numbers(self.space.allocate(scaled(JOURNAL_BLOCKS), pick)))
        self.log = Ring(numbers(self.space.allocate(scaled(LOG_BLOCKS), pick)))
        self.log_block, self.log_text = self.log.take(), b""  # the last one, which is not full
        self.uploads: dict[int, list[list[Extent]]] = {}

    def read(self, extents: list[Extent]) -> bytes:
        return b"".join(os.pread(self.file, count * BLOCK, first * BLOCK) for first, count in extents)

    def write(self, extents: list[Extent], data: bytes | bytearray) -> None:
        """The last block is filled up with zeros."""
        start = 0
        for first, count in extents:
            part = data[start : start + count * BLOCK].ljust(count * BLOCK, b"\0")
            os.pwrite(self.file, part, first * BLOCK)
            self.dirty.update(range(first * BLOCK // CHUNK, (first + count - 1) * BLOCK // CHUNK + 1))
            start += count * BLOCK

    def store(self, data: bytes) -> list[Extent]:
        """Writes data where there is room."""
        extents = self.space.allocate(-(-len(data) // BLOCK), self.guest.random)
        self.write(extents, data)
        return extents

    def age(self, day: int) -> set[int]:
        """A day's work. Gives the chunks that were written to."""
        guest = self.guest
        guest.day = day
        guest.now = guest_content.DAY_ZERO + day * DAY_SECONDS
        guest.random = random.Random(f"{self.seed}/year/{day}")
        self.dirty = set()
        self.file = os.open(self.image, os.O_RDWR)
        self.update_database(is_weekend=day % 7 in (5, 6))
        self.append_log()
        self.touch_inodes()
        self.delete_files()
        self.replace_uploads()
        if day % UPGRADE_DAYS == 0:
            self.upgrade_package()
            for extent in self.space.trim():
                self.write([extent], b"")
        if day % GROWTH_DAYS == 0:
            self.grow_database()
        os.close(self.file)
        return self.dirty

    def update_database(self, is_weekend: bool) -> None:
        """Zipf's law: the page of rank n is changed about 1/n as often as the first. Each goes to the journal too."""
        guest = self.guest
        count = len(self.database)
        low, high = DATABASE_PAGES
        wanted = min(guest.scaled(guest.random.randint(low, high) // (2 if is_weekend else 1)), count // 2)
        # Hot ones are all over the file; the same on all days.
        step = coprime(count)
        pages: set[int] = set()
        while len(pages) < wanted:
            rank = int(count ** guest.random.random()) - 1
            pages.add(rank * step % count)
        for page in sorted(pages):
            extent = (self.database[page], 1)
            data = bytearray(self.read([extent]))
            for _ in range(guest.random.randint(1, 4)):
                text = note(guest).encode()
                at = guest.random.randrange(BLOCK - len(text))
                data[at : at + len(text)] = text
            self.write([extent], data)
            self.write([(self.journal.take(), 1)], data)

    def grow_database(self) -> None:
        guest = self.guest
        for block in numbers(self.space.allocate(guest.scaled(DATABASE_GROWTH), guest.random)):
            rows = (f"{guest.random.getrandbits(128):032x}{note(guest)}" for _ in range(16))
            self.write([(block, 1)], "".join(rows).encode()[:BLOCK])
            self.database.append(block)

    def append_log(self) -> None:
        guest = self.guest
        lines = guest.scaled(LOG_LINES)
        times = (guest.now + number * DAY_SECONDS // lines for number in range(lines))
        text = self.log_text + "".join(log_line(guest, time) for time in times).encode()
        self.write([(self.log_block, 1)], text[:BLOCK])
        while len(text) > BLOCK:
            text = text[BLOCK:]
            self.log_block = self.log.take()
            self.write([(self.log_block, 1)], text[:BLOCK])
        self.log_text = text

    def touch_inodes(self) -> None:
        """Times and sizes of some files, in blocks of inodes that are used often."""
        guest = self.guest
        for _ in range(guest.scaled(INODE_BLOCKS)):
            block = self.metadata[int(len(self.metadata) ** guest.random.random()) - 1]
            data = bytearray(self.read([(block, 1)]))
            for _ in range(guest.random.randint(1, 6)):
                at = guest.random.randrange(BLOCK // 256) * 256
                data[at + 4 : at + 20] = guest.random.randbytes(4) + guest.now.to_bytes(4, "little") * 3
            self.write([(block, 1)], data)

    def upgrade_package(self) -> None:
        """New versions of random files of the system, written aside; the old ones are free then."""
        guest = self.guest
        room = guest.scaled(guest.random.randint(*UPGRADE_BYTES))
        while room > 0 and self.files:
            at = guest.random.randrange(len(self.files))
            old = self.files[at]
            data = new_version(guest, self.read(old))
            self.files[at] = self.store(data)
            self.space.free(old)
            room -= len(data)

    def delete_files(self) -> None:
        guest = self.guest
        for _ in range(min(guest.scaled(DELETIONS), len(self.files) - 1)):
            at = guest.random.randrange(len(self.files))
            self.space.free(self.files[at])
            self.files[at] = self.files[-1]
            self.files.pop()

    def replace_uploads(self) -> None:
        """Half of them text, half as if they were compressed already."""
        guest = self.guest
        fresh = []
        for _ in range(guest.scaled(UPLOADS)):
            length = int(MAX_NEW_BYTES ** guest.random.uniform(0.5, 1))
            if guest.random.random() < 0.5:
                data = guest.random.randbytes(length)
            else:
                data = "\n".join(note(guest) for _ in range(1 + length // 250)).encode()
            fresh.append(self.store(data))
        self.uploads[guest.day] = fresh
        for extents in self.uploads.pop(guest.day - UPLOAD_DAYS, []):
            if guest.random.random() < 0.9:
                self.space.free(extents)


def layout(image: Path) -> tuple[list[Extent], list[Extent]]:
    """Data of a sparse file, and its larger holes."""
    data, holes = [], []
    size, end = image.stat().st_size, 0
    file = os.open(image, os.O_RDONLY)
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:
            start = size  # only a hole follows
        if start > end:
            holes.append((end // BLOCK, (start - end) // BLOCK))
        if start == size:
            break
        end = os.lseek(file, start, os.SEEK_HOLE)
        data.append((start // BLOCK, -(-(end - start) // BLOCK)))
    os.close(file)
    return data, [hole for hole in holes if hole[1] >= SMALLEST_FREE]


def numbers(extents: list[Extent]) -> list[int]:
    return [block for first, count in extents for block in range(first, first + count)]


def cut_into_files(data: list[Extent], others: set[int], pick: random.Random) -> list[list[Extent]]:
    """Where files begin and end is not asked: lengths from 4 KiB to 4 MiB, small ones as many as large ones."""
    files = []
    start, length = None, 0
    for first, count in data:
        for block in range(first, first + count + 1):
            if start is not None and (block in others or block == first + count or block - start >= length):
                files.append([(start, block - start)])
                start = None
            if start is None and block < first + count and block not in others:
                start, length = block, int(1024 ** pick.random())
    return files


def blocks_of(image: Path, file: str) -> list[int]:
    """The blocks of a file of the guest, in order; without those that only say where the others are."""
    command = ["debugfs", "-R", f"dump_extents -l {file}", str(image)]
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": path, "LC_ALL": "C"}).stdout
    # Level/of, entry/of, logical blocks, physical blocks, length
    found = re.findall(r"^ *\d+/ *\d+ +\d+/ *\d+ +(\d+) - +\d+ +(\d+) - +(\d+)", said, re.MULTILINE)
    if not found:
        raise RuntimeError(f"debugfs does not find {file} in {image}")
    extents = sorted(tuple(map(int, numbers)) for numbers in found)
    return [block for _, first, last in extents for block in range(first, last + 1)]


def coprime(count: int) -> int:
    step = int(count * 0.618) | 1
    while math.gcd(step, count) != 1:
        step += 2
    return step


def main() -> None:
    image, size, seed = sys.argv[1:]
    disk = Disk(Path(image), int(size), seed)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(sorted(disk.age(int(line)))), flush=True)


if __name__ == "__main__":
    main()

"""What is in the guest of the comparison, and what a day changes. Called by guest.sh with a mounted guest.

Every choice (which files, which rows, which bytes) comes from the seed and the day. What the kernel adds is
noise: times, and where in the file system it puts things. Amounts are those of a guest of 8 GiB, and scale
with its size.
"""

import gzip
import os
import random
import shutil
import sqlite3
import sys
from glob import glob
from pathlib import Path
from typing import Iterator

REFERENCE_BYTES = 8 << 30
SYSTEM_SHARE = 4  # the system's files fill at most a quarter of the guest
ROWS = 1_500_000
UPDATES = 20_000
LOG_LINES = 200_000
UPGRADE_BYTES = 80_000_000
DELETIONS = 40
NEW_FILES = 40
ROTATE_EVERY = 2  # days
MAX_NEW_BYTES = 1 << 20

DAY_ZERO = 1_767_225_600  # the clock of the guest: seconds since 1970
DAY_SECONDS = 86_400
DATABASE = "srv/shop/orders.sqlite"
LOG = "var/log/web.log"


class Guest:
    """A mounted guest, the random numbers of this day, and the amounts for its size."""

    def __init__(self, root: Path, size: int, day: int, seed: str) -> None:
        self.root = root
        self.size = size
        self.day = day
        self.now = DAY_ZERO + day * DAY_SECONDS
        self.random = random.Random(f"{seed}/{day}")
        # The same on all days: the words of which rows and lines are made.
        words = random.Random(f"{seed}/words")
        self.phrases = [phrase(words) for _ in range(20_000)]

    def scaled(self, amount: int) -> int:
        return max(1, amount * self.size // REFERENCE_BYTES)


def phrase(words: random.Random) -> str:
    letters = "etaoinshrdlucmfwypvbgk"
    return " ".join("".join(words.choices(letters, k=words.randint(2, 9))) for _ in range(words.randint(6, 14)))


# Day 0


def copy_system(guest: Guest) -> None:
    """Copies files of this machine; if there are too many, a random choice, in the order of their folders."""
    tops = ["/usr/bin", "/usr/share", *sorted(glob("/usr/lib/*-linux-gnu"))]
    files = [path for top in tops for path in files_below(Path(top))]
    shuffled = files.copy()
    guest.random.shuffle(shuffled)
    room = guest.size // SYSTEM_SHARE
    chosen = set()
    for path in shuffled:
        length = path.stat().st_size
        if length <= room:
            room -= length
            chosen.add(path)
    for path in files:
        if path in chosen:
            target = guest.root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def files_below(top: Path) -> Iterator[Path]:
    """All regular files, sorted, no links followed."""
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def make_database(guest: Guest) -> None:
    path = guest.root / DATABASE
    path.parent.mkdir(parents=True)
    database = sqlite3.connect(path)
    database.execute("PRAGMA page_size = 4096")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, token TEXT, balance INTEGER, changed INTEGER, note TEXT)"
    )
    with database:
        rows = (new_row(guest, number) for number in range(guest.scaled(ROWS)))
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", rows)
        database.execute("CREATE INDEX orders_by_token ON orders (token)")
    database.close()


def new_row(guest: Guest, number: int) -> tuple[int, str, int, int, str]:
    return (number, f"{guest.random.getrandbits(128):032x}", guest.random.randrange(10**6), guest.now, note(guest))


def note(guest: Guest) -> str:
    return ". ".join(guest.random.choices(guest.phrases, k=4))


# A day


def update_rows(guest: Guest) -> None:
    """Random rows, a hundred in each transaction."""
    database = sqlite3.connect(guest.root / DATABASE)
    (count,) = database.execute("SELECT count(*) FROM orders").fetchone()
    ids = [guest.random.randrange(count) for _ in range(guest.scaled(UPDATES))]
    for start in range(0, len(ids), 100):
        with database:
            for place, number in enumerate(ids[start : start + 100], start):
                database.execute(
                    "UPDATE orders SET balance = ?, changed = ?, note = ? WHERE id = ?",
                    (guest.random.randrange(10**6), guest.now + place, note(guest), number),
                )
    database.close()


def append_log(guest: Guest) -> None:
    path = guest.root / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = guest.scaled(LOG_LINES)
    with path.open("a") as log:
        for number in range(lines):
            log.write(log_line(guest, guest.now + number * DAY_SECONDS // lines))


def log_line(guest: Guest, time: int) -> str:
    pick = guest.random
    address = f"10.{pick.randrange(4)}.{pick.randrange(256)}.{pick.randrange(256)}"
    page = pick.choice(guest.phrases).replace(" ", "/")[:40]
    status = pick.choice((200, 200, 200, 200, 304, 404, 500))
    return f"{time} web[{pick.randrange(8)}] {address} GET /{page} {status} {pick.randrange(90_000)} bytes\n"


def rotate_log(guest: Guest) -> None:
    path = guest.root / LOG
    with path.open("rb") as log, open(f"{path}.{guest.day}.gz", "wb") as file:
        with gzip.GzipFile("web.log", "wb", fileobj=file, mtime=guest.now) as packed:
            shutil.copyfileobj(log, packed)
    path.unlink()


def upgrade_package(guest: Guest, files: list[Path]) -> None:
    """New versions of random files, written under a temporary name and renamed, as dpkg does it."""
    room = guest.scaled(UPGRADE_BYTES)
    for path in guest.random.sample(files, len(files)):
        length = path.stat().st_size
        if not 0 < length <= room:
            continue
        room -= length
        fresh = path.with_name(path.name + ".dpkg-new")
        fresh.write_bytes(new_version(guest, path.read_bytes()))
        shutil.copystat(path, fresh)
        fresh.rename(path)
        if room < 4096:
            return


def new_version(guest: Guest, content: bytes) -> bytes:
    """A few bytes changed in most pages, and in every second file some more in the middle."""
    data = bytearray(content)
    for _ in range(1 + len(data) // 4096):
        data[guest.random.randrange(len(data))] = guest.random.randrange(256)
    if guest.random.random() < 0.5:
        place = guest.random.randrange(len(data))
        data[place:place] = guest.random.choice(guest.phrases).encode()
    return bytes(data)


def delete_files(guest: Guest, files: list[Path]) -> None:
    for path in guest.random.sample(files, min(len(files), guest.scaled(DELETIONS))):
        path.unlink()


def add_files(guest: Guest) -> None:
    """What users upload: half of it text, half as if it were compressed already."""
    folder = guest.root / f"srv/uploads/{guest.day}"
    folder.mkdir(parents=True)
    for number in range(guest.scaled(NEW_FILES)):
        length = int(MAX_NEW_BYTES ** guest.random.uniform(0.5, 1))
        if number % 2:
            content = guest.random.randbytes(length)
        else:
            content = "\n".join(note(guest) for _ in range(1 + length // 250)).encode()
        (folder / f"{number}").write_bytes(content)


def make(guest: Guest) -> None:
    copy_system(guest)
    make_database(guest)
    append_log(guest)


def age(guest: Guest) -> None:
    if not (guest.root / DATABASE).is_file():
        sys.exit("guest_content.py: this is not a guest that guest.sh made")
    update_rows(guest)
    if guest.day % ROTATE_EVERY == 0:
        rotate_log(guest)
    append_log(guest)
    upgrade_package(guest, list(files_below(guest.root / "usr")))
    delete_files(guest, list(files_below(guest.root / "usr")))
    add_files(guest)


def main() -> None:
    verb, root, size, day, seed = sys.argv[1:]
    guest = Guest(Path(root), int(size), int(day), seed)
    {"make": make, "age": age}[verb](guest)


if __name__ == "__main__":
    main()

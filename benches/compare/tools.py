"""The tools that are compared: what each is asked to do, as command lines.

A step is one or more commands, a line each. In them, {repo} is a folder of the tool's own that is empty at
first, {live} the image, {day} the day (0 is the first) and {before} the one before it. Snapshots are taken in
the folder of the image, whose name is vm.img there; restores in an empty folder, in which they make a vm.img.
"""

import shlex
from dataclasses import dataclass

YES = "yes"
FULL = "full copies"
NO = "no"


@dataclass(frozen=True)
class Tool:
    name: str
    program: str
    package: str  # of Debian
    history: str
    note: str
    first: str
    next: str  # the days after the first
    restore: str = ""
    replay: str = ""  # instead of `restore`: makes {new} of {old}, once for each day, beginning with {repo}/base
    prepare: str = ""  # makes an empty repository; not timed
    version: str = "--version"


def commands(step: str, **values: object) -> list[list[str]]:
    return [[word.format(**values) for word in shlex.split(line)] for line in step.strip().splitlines()]


def restore_commands(tool: Tool, repo: str, day: int) -> list[list[str]]:
    if not tool.replay:
        return commands(tool.restore, repo=repo, day=day)
    steps = []
    old = f"{repo}/base"
    for number in range(1, day + 1):
        new = "vm.img" if number == day else f"day{number}"
        steps += commands(tool.replay, repo=repo, day=number, old=old, new=new)
        if number > 1:
            steps.append(["rm", old])
        old = new
    return steps


def imgsnap(compression: str) -> Tool:
    snapshot = "imgsnap -q --repo {repo} snapshot vm.img"
    return Tool(
        name=f"imgsnap-{compression}",
        program="imgsnap",
        package="",
        history=YES,
        note="a restore checks each block and the whole image",
        prepare="imgsnap -q --repo {repo} init --compression " + compression,
        first=snapshot,
        next=snapshot,
        restore="imgsnap -q --repo {repo} restore vm@latest -o vm.img",
    )


def borg(name: str, chunk: int) -> Tool:
    create = f"borg create --sparse --chunker-params fixed,{chunk} --compression lz4 {{repo}}::day{{day}} vm.img"
    return Tool(
        name=name,
        program="borg",
        package="borgbackup",
        history=YES,
        note="also deduplicates over images and machines; could encrypt, which is off here",
        prepare="borg init --encryption none {repo}",
        first=create,
        next=create,
        restore="borg extract --sparse {repo}::day{day}",
    )


RESTIC_BACKUP = "restic --quiet --repo {repo} backup vm.img"
RESTIC = Tool(
    name="restic",
    program="restic",
    package="restic",
    history=YES,
    note="also deduplicates over images and machines, and always encrypts; chunks of about 1 MiB",
    prepare="restic --quiet --repo {repo} init",
    first=RESTIC_BACKUP,
    next=RESTIC_BACKUP,
    restore="restic --quiet --repo {repo} restore latest --target .",
    version="version",
)

CASYNC_MAKE = "casync make --store={repo}/store.castr {repo}/day{day}.caibx vm.img"
CASYNC = Tool(
    name="casync",
    program="casync",
    package="casync",
    history=YES,
    note="also deduplicates over images; made for distribution over HTTP; chunks of about 64 KiB, zstd",
    first=CASYNC_MAKE,
    next=CASYNC_MAKE,
    restore="casync extract --store={repo}/store.castr {repo}/day{day}.caibx vm.img",
)

RDIFF_SIGNATURE = "rdiff --force --block-size=4096 signature vm.img {repo}/signature"
RDIFF = Tool(
    name="rdiff",
    program="rdiff",
    package="rdiff",
    history=YES,
    note="a sparse copy, a signature of the newest day, and a delta for each day; not compressed. "
    "The restore replays every delta, each into a whole new file",
    first="cp --sparse=always vm.img {repo}/base\n" + RDIFF_SIGNATURE,
    next="rdiff delta {repo}/signature vm.img {repo}/delta{day}\n" + RDIFF_SIGNATURE,
    replay="rdiff patch {old} {repo}/delta{day} {new}",
)

XDELTA3 = Tool(
    name="xdelta3",
    program="xdelta3",
    package="xdelta3",
    history=YES,
    note="a sparse copy of the first day, another of the newest, from which the next delta is made (it counts as "
    "added on day 1), and a delta for each day. The restore replays every delta, each into a whole new file "
    "(the newest day alone could be copied)",
    first="cp --sparse=always vm.img {repo}/base\nln {repo}/base {repo}/newest",
    next="xdelta3 -e -s {repo}/newest vm.img {repo}/delta{day}\n"
    "cp --sparse=always --remove-destination vm.img {repo}/newest",
    replay="xdelta3 -d -s {old} {repo}/delta{day} {new}",
    version="-V",
)

RSYNC_COPY = "rsync --inplace --no-whole-file --sparse --times vm.img {repo}/"
RSYNC = Tool(
    name="rsync",
    program="rsync",
    package="rsync",
    history=NO,
    note="one copy, brought up to date in place: each day overwrites the one before",
    first=RSYNC_COPY,
    next=RSYNC_COPY,
    restore="cp --sparse=always {repo}/vm.img vm.img",
)

QEMU_RESTORE = "qemu-img convert -f qcow2 -O raw {repo}/day{day}.qcow2 vm.img"
QEMU_OVERLAY = Tool(
    name="qemu-img-overlay",
    program="qemu-img",
    package="qemu-utils",
    history=YES,
    note="a qcow2, and for each day an overlay: an empty one over the live image, rebased onto the day before, "
    "takes up the clusters of 64 KiB that differ; not compressed",
    first="qemu-img convert -f raw -O qcow2 vm.img {repo}/day0.qcow2",
    next="qemu-img create -q -f qcow2 -F raw -b {live} {repo}/day{day}.qcow2\n"
    "qemu-img rebase -f qcow2 -F qcow2 -b {repo}/day{before}.qcow2 {repo}/day{day}.qcow2",
    restore=QEMU_RESTORE,
)

QEMU_CONVERT = "qemu-img convert -c -f raw -O qcow2 vm.img {repo}/day{day}.qcow2"
QEMU_FULL = Tool(
    name="qemu-img-full",
    program="qemu-img",
    package="qemu-utils",
    history=FULL,
    note="a compressed qcow2 each day",
    first=QEMU_CONVERT,
    next=QEMU_CONVERT,
    restore=QEMU_RESTORE,
)

ZSTD_COMPRESS = "zstd -q -1 -T0 vm.img -o {repo}/day{day}.zst"
ZSTD = Tool(
    name="zstd",
    program="zstd",
    package="zstd",
    history=FULL,
    note="a compressed file each day",
    first=ZSTD_COMPRESS,
    next=ZSTD_COMPRESS,
    restore="zstd -q -d --sparse {repo}/day{day}.zst -o vm.img",
)

CP_COPY = "cp --sparse=always vm.img {repo}/day{day}"
CP = Tool(
    name="cp",
    program="cp",
    package="coreutils",
    history=FULL,
    note="a sparse copy each day",
    first=CP_COPY,
    next=CP_COPY,
    restore="cp --sparse=always {repo}/day{day} vm.img",
)

REFERENCE = imgsnap("lz4")  # what the others are compared with

TOOLS = [
    REFERENCE,
    imgsnap("zstd"),
    borg("borg-64k", 65_536),
    borg("borg-4m", 4_194_304),
    RESTIC,
    CASYNC,
    RDIFF,
    XDELTA3,
    RSYNC,
    QEMU_OVERLAY,
    QEMU_FULL,
    ZSTD,
    CP,
]

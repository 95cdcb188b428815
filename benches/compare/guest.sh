#!/usr/bin/env bash
# Makes a realistic guest, and ages it by a day at a time.
#
#   guest.sh make IMAGE SIZE [SEED]   a new ext4 image: a system's files, a database, a log
#   guest.sh age IMAGE DAY [SEED]     one day's work in it, in place
#
# SIZE is as in 8G or 768M. What is put in and what a day changes grows with it (see guest_content.py).
# The image is looped and mounted in a mount namespace of its own, beside itself, and never stays so.
# Exit codes: 0 done, 1 failed, 2 cannot run here or the command line makes no sense, 130 interrupted.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)

refuse() {
    echo "guest.sh: $*" >&2
    exit 2
}

usage() {
    refuse "use: guest.sh make IMAGE SIZE [SEED] | guest.sh age IMAGE DAY [SEED]"
}

if [ $# -lt 3 ] || [ $# -gt 4 ]; then usage; fi
verb=$1 image=$2 seed=${4:-1} size= day=0
case $verb in
make)
    size=$(numfmt --from=iec "$3" 2>/dev/null) || refuse "not a size: $3"
    [ "$size" -ge $((256 << 20)) ] || refuse "the guest must have 256M or more"
    [ ! -e "$image" ] || refuse "$image exists"
    ;;
age)
    day=$3
    [[ $day =~ ^[1-9][0-9]*$ ]] || refuse "not a day: $day"
    [ -f "$image" ] || refuse "$image is not there"
    ;;
*) usage ;;
esac

[ "$(id -u)" = 0 ] || refuse "needs root, to mount the image"
for pair in mke2fs:e2fsprogs e2fsck:e2fsprogs mount:mount losetup:mount unshare:util-linux setpriv:util-linux \
    python3:python3; do
    command -v "${pair%%:*}" >/dev/null || refuse "${pair%%:*} is missing (package ${pair##*:})"
done
python3 -c 'import sqlite3' 2>/dev/null || refuse "python3 lacks its module sqlite3 (package libpython3-stdlib)"
losetup --find >/dev/null 2>&1 || refuse "no loop device can be had"

# In a mount namespace of its own the mount ends with this process, even by kill -9, and the loop device with it.
if [ -z "${GUEST_OWN_MOUNTS:-}" ]; then
    GUEST_OWN_MOUNTS=yes exec unshare --mount --propagation private "$0" "$@"
fi

folder=$image.mounted
child=
state=untouched

detach() {
    if mountpoint -q "$folder"; then
        umount "$folder" || { sleep 1; umount "$folder"; }
    fi
    if [ -d "$folder" ]; then rmdir "$folder"; fi
    # The kernel detaches the loop device by itself, perhaps a moment later.
    for _ in $(seq 50); do
        [ -n "$(losetup --associated "$image" 2>/dev/null)" ] || return 0
        sleep 0.1
    done
    losetup --associated "$image" --noheadings --output NAME | xargs --no-run-if-empty losetup --detach
}

clean_up() {
    trap '' INT TERM HUP
    set +e
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null
        wait "$child" 2>/dev/null
    fi
    detach
    if [ "$state" = begun ] && [ "$verb" = make ]; then rm -f "$image"; fi
    if [ "$state" = begun ] && [ "$verb" = age ]; then echo "guest.sh: $image is left between two days" >&2; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

if [ "$verb" = make ]; then
    state=begun
    truncate --size "$size" "$image"
    # Everything that would be chosen at random, or written later by the kernel at its leisure, is fixed here.
    mke2fs -q -F -t ext4 -b 4096 -I 256 -i 16384 -m 1 \
        -U 6a0e1f52-93c4-4b7d-8e21-5d0c7b3f9a64 \
        -E hash_seed=c2f7d6b8-15e3-4d0a-9f46-71b8a3e5d290,lazy_itable_init=0,lazy_journal_init=0 "$image"
fi

mkdir -p "$folder"
mount -o loop,nosuid,nodev,noexec -t ext4 "$image" "$folder" || refuse "cannot mount $image over a loop device"
state=begun
size=$(stat --format %s "$image")
# In the background, so that a signal ends the wait at once; and it never outlives this script.
setpriv --pdeathsig KILL python3 "$here/guest_content.py" "$verb" "$folder" "$size" "$day" "$seed" &
child=$!
wait "$child"
child=
detach

report=$(e2fsck -fn "$image" 2>&1) || {
    echo "$report" >&2
    echo "guest.sh: e2fsck does not find $image clean" >&2
    exit 1
}
state=done

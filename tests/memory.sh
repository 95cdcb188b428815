#!/usr/bin/env bash
# The unit tests, and every verb that maps files, under valgrind, or built with AddressSanitizer:
#
#     tests/memory.sh valgrind|address
#
# A finding ends it with an error. What is not to be had is said, and skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=${1:?valgrind or address}
target=${CARGO_TARGET_DIR:-target}
case $tool in
valgrind)
    command -v valgrind >/dev/null || { echo "skipped: no valgrind here"; exit 0; }
    # Definite leaks, too. It does not know cachestat and says so: that is no error.
    run=(valgrind -q --error-exitcode=9 --trace-children=yes --leak-check=full
        --errors-for-leak-kinds=definite --show-leak-kinds=definite)
    build=(cargo)
    folder=$target/debug
    ;;
address)
    rustc +nightly --version >/dev/null 2>&1 || { echo "skipped: no nightly toolchain here"; exit 0; }
    host=$(rustc -vV | sed -n 's/^host: //p')
    run=(env ASAN_OPTIONS=exitcode=9:detect_stack_use_after_return=1:strict_string_checks=1)
    export RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$target/address CARGO_BUILD_TARGET=$host
    build=(cargo +nightly)
    folder=$CARGO_TARGET_DIR/$host/debug
    ;;
*) echo "valgrind or address?" >&2; exit 2 ;;
esac

"${build[@]}" build --quiet
unit=$("${build[@]}" test --lib --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
echo "unit tests: $unit"
# One that measures the page cache finds what the tool itself has put there.
"${run[@]}" "$unit" --test-threads 1 --skip the_page_cache_is_left

work=$(mktemp -d)
mounted=
trap '[ -z "$mounted" ] || umount "$mounted"; rm -rf "$work"' EXIT
cp "$folder/imgsnap" "$work/imgsnap"
chmod 755 "$work"

# Runs imgsnap, which must end as it is told: 0, or another code.
ends() {
    local wanted=$1 code=0
    shift
    "${run[@]}" "$work/imgsnap" "$@" >"$work/out" 2>"$work/err" || code=$?
    echo "$code: imgsnap ${*//$work\//}"
    if [[ " $wanted " != *" $code "* ]] || grep -qE 'Sanitizer|^==[0-9]+== [A-Z]' "$work/err"; then
        cat "$work/err"
        exit 1
    fi
}

cold() { sync "$1"; dd of="$1" oflag=nocache conv=notrunc,fdatasync count=0 status=none; }
scatter() {
    for block in 3 100 101 102 900 2047; do
        dd if=/dev/urandom of="$1" bs=4096 seek=$block count=2 conv=notrunc status=none
    done
}

# All verbs on an image in that folder.
verbs() {
    export IMGSNAP_REPO=$1/repo
    local image=$1/vm.img
    head -c 12000000 /dev/urandom >"$image"
    truncate -s 20M "$image"
    ends 0 snapshot "$image"
    scatter "$image"
    cold "$image"
    ends 0 snapshot "$image" --compression zstd
    ends 0 snapshot "$image" --skip-unchanged
    scatter "$image"
    ends 0 snapshot "$image" --full-scan --label scanned
    truncate -s 9000001 "$image"
    ends 0 snapshot "$image"
    ends 0 restore vm@2 -o "$1/restored"
    ends 0 restore vm@2 -o - --range 1M+64K
    ends 0 rollback vm --to @1
    ends 0 rollback vm --to @3 --prove
    ends 0 diff vm@1 vm@4
    ends 0 diff vm@1 "$image"
    ends 0 verify
    ends 0 stats vm
    ends 0 flatten vm@2
    ends 0 export vm@1 -o "$1/full"
    ends 0 export vm@3 --since @1 -o "$1/day"
    ends 0 apply "$1/full" "$1/day" -o "$1/applied"
    ends 0 prune vm --keep-last 2 --compact
    ends 0 verify
    dd if=/dev/zero of="$(ls "$1"/repo/vm/*.delta | head -1)" bs=1 seek=2000 count=8 conv=notrunc status=none
    ends 3 verify
    ends 0 remove vm --yes
}

mkdir "$work/here"
verbs "$work/here"

# Tracked, by clones.
if [ "$(id -u)" = 0 ] && command -v mkfs.xfs >/dev/null; then
    truncate -s 400M "$work/disk"
    mkfs.xfs -q -m reflink=1 "$work/disk"
    mkdir "$work/mnt"
    mount -o loop "$work/disk" "$work/mnt"
    mounted=$work/mnt
    mkdir "$work/mnt/xfs"
    verbs "$work/mnt/xfs"
    image=$work/mnt/xfs/vm.img
    ends 0 snapshot "$image" --track reflink
    scatter "$image"
    ends 0 snapshot "$image" --track reflink --recheck 50%
    # In use: the clone is read.
    exec 7<>"$image"
    ends 0 snapshot "$image" --track reflink
    exec 7>&-
    ends 0 rollback vm --to @1
    ends 0 untrack vm
else
    echo "skipped: tracking, which needs root and mkfs.xfs"
fi

# Truncated while it is mapped, by somebody who cannot be held off: the owner, by a reader without a lease.
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
    run=(setpriv --reuid 65534 --regid 65534 --clear-groups "${run[@]}")
    mkdir "$work/cut"
    export IMGSNAP_REPO=$work/cut/repo HOME=$work/cut
    chown 65534:65534 "$work/cut"
    image=$work/cut.img
    for wait in 0.02 0.1 0.3 0.6 0.8 1.0 1.2 1.6; do
        head -c 50000000 /dev/zero | tr '\0' 'x' >"$image"
        chmod 644 "$image"
        (sleep "$wait"; truncate -s 4096 "$image") &
        # Done before, changed while it was read, or in use.
        ends "0 1 4" snapshot "$image" --full-scan --threads 2
        wait
    done
    ends 0 verify
else
    echo "skipped: truncation under a window, which needs root and setpriv"
fi
echo "nothing found by $tool"

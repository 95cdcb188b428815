#!/usr/bin/env bash
# Encrypted repositories against plain ones, by turns, on the same image and changes; and borg and restic beside them, where they are.
# benches/sealed/run.sh [MIB [ROUNDS]]      IMGSNAP=program, TMPDIR=where
set -euo pipefail
mib=${1:-1024} rounds=${2:-5}
program=${IMGSNAP:-target/release/imgsnap}
program=$(realpath "$program")
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
cd "$folder"
export IMGSNAP_CACHE=$folder/cache BORG_BASE_DIR=$folder/borg-base RESTIC_CACHE_DIR=$folder/restic-cache
export BORG_PASSPHRASE=bench RESTIC_PASSWORD=bench
head -c 32 /dev/urandom >key
grep -m1 'model name' /proc/cpuinfo
python3 - "$mib" <<'P'
import os, random, sys
some = random.Random(1)
with open("vm.img", "wb") as image:
    for _ in range(int(sys.argv[1])):
        image.write(os.urandom(512 << 10))
        image.write(bytes(some.choices(b"abcdefgh    ", k=4096)) * 128)
P
cp vm.img first.img
# Each of them once, with all in the page cache, and the disk at rest.
timed() {
    sync
    local begin end
    begin=$(date +%s%N)
    "${@:2}" >/dev/null 2>log || { cat log; exit 1; }
    end=$(date +%s%N)
    printf '%-22s %8.3f s\n' "$1" "$(((end - begin) / 1000000))e-3"
}
change() {
    cp first.img vm.img
    python3 - "$1" "$mib" <<'P'
import os, random, sys
some = random.Random(int(sys.argv[1]))
with open("vm.img", "r+b") as image:
    blocks = int(sys.argv[2]) * 256
    for _ in range(blocks // 100):
        image.seek(some.randrange(blocks) * 4096)
        image.write(os.urandom(4096))
P
}
for ((round = 1; round <= rounds; round++)); do
    kinds=(plain sealed)
    ((round % 2)) || kinds=(sealed plain)
    for kind in "${kinds[@]}"; do
        if [ "$kind" = sealed ]; then export IMGSNAP_KEY_FILE=$folder/key; else unset IMGSNAP_KEY_FILE; fi
        export IMGSNAP_REPO=$folder/$kind IMGSNAP_STATE=$folder/state-$kind
        rm -rf "$IMGSNAP_REPO" "$IMGSNAP_STATE" out.img
        cp first.img vm.img
        timed "$kind base" "$program" snapshot vm.img --track none
        change "$round"
        timed "$kind increment" "$program" snapshot vm.img --track none
        timed "$kind restore" "$program" restore vm@latest -o out.img
        timed "$kind verify" "$program" verify
        cmp -s out.img vm.img
    done
    if command -v borg >/dev/null; then
        rm -rf borg out && mkdir out
        borg init -e repokey-aes-ocb borg 2>/dev/null || borg init -e repokey borg 2>/dev/null
        cp first.img vm.img
        timed "borg base" borg create --compression lz4 borg::1 vm.img
        change "$round"
        timed "borg increment" borg create --compression lz4 borg::2 vm.img
        (cd out && timed "borg restore" borg extract ../borg::2)
    fi
    if command -v restic >/dev/null; then
        rm -rf restic out && restic init -q -r restic
        cp first.img vm.img
        timed "restic base" restic -q -r restic backup vm.img
        change "$round"
        timed "restic increment" restic -q -r restic backup vm.img
        timed "restic restore" restic -q -r restic restore latest --target out
    fi
done
du -sm plain sealed borg restic 2>/dev/null || true

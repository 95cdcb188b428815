#!/usr/bin/env bash
# What snapshots in parts cost, and what they save, as ratios within one run (DESIGN.md, "Layers of parts").
# Usage: benches/parts/run.sh [FOLDER]   (10 GiB free there; /usr/bin/time, openssl)
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --quiet
program=$PWD/target/release/imgsnap
folder=$(mktemp -d "${1:-/tmp}/imgsnap-parts-XXXXXX")
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export IMGSNAP_STATE=$folder/state IMGSNAP_REPO
grep -m1 'model name' /proc/cpuinfo; nproc

# Seconds, seconds of all processors, KiB of memory of a command.
timed() { /usr/bin/time -o time -f '%e %U %S %M' "$@" >out 2>&1; awk '{print $1, $2 + $3, $4}' time; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }
stored() { du -sb "$IMGSNAP_REPO"/*/ | awk '{print $1}'; }
fresh() { IMGSNAP_REPO=$folder/$1; rm -rf "$IMGSNAP_REPO"; "$program" init >/dev/null; }
noise() { openssl enc -aes-128-ctr -pass pass:"$1" -nosalt -pbkdf2 </dev/zero 2>/dev/null | head -c "$2" || true; }

# 4 GiB, of each 256 MiB a quarter noise, half text, a quarter zeros.
truncate -s 4G vm.img
for cell in $(seq 0 15); do
    noise "n$cell" $((64 << 20)) | dd of=vm.img bs=1M seek=$((cell * 256)) conv=notrunc status=none
    noise "t$cell" $((96 << 20)) | base64 -w 0 | head -c $((128 << 20)) |
        dd of=vm.img bs=1M seek=$((cell * 256 + 64)) conv=notrunc status=none
done
sync; cat vm.img >/dev/null

for round in 1 2 3; do
    fresh plain; read -r plain plain_cpu plain_memory <<<"$(timed "$program" snapshot vm.img --part-size 256M)"
    fresh one; read -r one one_cpu one_memory <<<"$(timed "$program" snapshot vm.img)"
    fresh tasks
    tasks() {
        plan=$("$program" plan vm.img --part-size 256M --source-held bench --json)
        id=$(grep -o '"plan":"[^"]*"' <<<"$plan" | head -1 | cut -d'"' -f4)
        seq 16 | xargs -P 2 -n 1 "$program" --threads 1 part "$id"
        "$program" join "$id"
    }
    export -f tasks; export program
    read -r work work_cpu _ <<<"$(timed bash -c tasks)"
    echo "round $round: parts $plain s, $plain_cpu s of processors, $((plain_memory >> 10)) MiB; one file $one s, $one_cpu s," \
        "$((one_memory >> 10)) MiB; 16 tasks $work s, $work_cpu s"
    echo "  tasks / plain verb: time $(ratio "$work" "$plain"), processors $(ratio "$work_cpu" "$plain_cpu");" \
        "parts / one file: time $(ratio "$plain" "$one"), processors $(ratio "$plain_cpu" "$one_cpu")"
done
"$program" restore vm@1 -o restored.img >/dev/null; cmp restored.img vm.img; rm restored.img

# kill -9 when 90 % is stored.
whole=$(stored)
fresh killed
"$program" snapshot vm.img --part-size 256M >/dev/null 2>&1 &
child=$!
while kill -0 "$child" 2>/dev/null && [ "$(stored 2>/dev/null || echo 0)" -lt $((whole * 9 / 10)) ]; do sleep 0.02; done
kill -9 "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true
strace -f -o writes -e trace=write,pwrite64,writev,pwritev2 "$program" snapshot vm.img --part-size 256M >/dev/null
written=$(awk -F'= ' '/ = [0-9]+$/ {s += $NF} END {print s + 0}' writes)
echo "killed at 90 %: the second run writes $(ratio "$written" "$whole") of the bytes"
"$program" verify >/dev/null

# A prune with changes in 3 of 64 parts.
fresh pruned; "$program" snapshot vm.img --part-size 64M >/dev/null
base=$(stored)
for cell in 5 22 49; do
    noise "c$cell" 1000000 | dd of=vm.img bs=1M seek=$((cell * 64 + 3)) conv=notrunc status=none
done
"$program" snapshot vm.img >/dev/null
strace -f -o writes -e trace=write,pwrite64,writev,pwritev2 "$program" prune vm --keep-last 1 --compact >/dev/null
written=$(awk -F'= ' '/ = [0-9]+$/ {s += $NF} END {print s + 0}' writes)
echo "prune with changes in 3 of 64 parts: writes $(ratio "$written" "$base") of the base"
"$program" verify >/dev/null; rm vm.img

# A base of 1,000 parts under a hundred deltas, against one file each.
make() {
    fresh "$1"; noise many $((250 << 20)) >many.img
    "$program" snapshot many.img --part-size "$2" >/dev/null
    for delta in $(seq 99); do
        noise "d$delta" 40000 | dd of=many.img bs=4k seek=$((delta * 600)) conv=notrunc status=none
        "$program" snapshot many.img --track none >/dev/null
    done
}
make thousand 256K; make single 8G
for round in 1 2 3; do
    for verb in "list many" "restore many@latest -o restored.img --force" "snapshot many.img --track none --full-scan --dry-run" verify; do
        IMGSNAP_REPO=$folder/thousand; read -r a _ memory <<<"$(timed "$program" $verb)"
        IMGSNAP_REPO=$folder/single; read -r b _ _ <<<"$(timed "$program" $verb)"
        echo "1,000 parts, chain of 100: $verb: $a s against $b s, $(ratio "$a" "$b"); $((memory >> 10)) MiB"
    done
done

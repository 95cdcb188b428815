#!/usr/bin/env bash
# A chain of many layers on Ceph's gateway: how long it takes to open, and random reads of 4 KiB beside those of its base.
#
# benches/stores/chain.sh [LAYERS] [IMAGE_MIB]        IMGSNAP names the binary
#
# Each layer has 0.1 % of the blocks, scattered. Sequential round trips are counted by tests/stores/requests.rs.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
layers=${1:-1000} size=${2:-256}
imgsnap=${IMGSNAP:-$here/target/release/imgsnap}
servers=$here/tests/servers
work=$(mktemp -d)
stop() {
    [ ! -d "$work/radosgw" ] || "$servers/radosgw.sh" stop "$work/radosgw" || true
    rm -rf "$work"
}
trap stop EXIT
"$servers/radosgw.sh" start "$work/radosgw"
"$servers/radosgw.sh" bucket "$work/radosgw" bench
set -a; . "$work/radosgw/env"; set +a
export IMGSNAP_REPO=s3://bench/chain IMGSNAP_STATE=$work/state IMGSNAP_CACHE=$work/cache
echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores; $size MiB, $layers layers"
begun=$SECONDS
python3 - "$work/disk.img" "$size" "$layers" "$imgsnap" <<'PY'
import os, random, subprocess, sys
path, size, layers, imgsnap = sys.argv[1], int(sys.argv[2]) << 20, int(sys.argv[3]), sys.argv[4]
random.seed(1)
with open(path, "wb") as image: image.write(os.urandom(size))
for _ in range(layers):
    subprocess.run([imgsnap, "-q", "snapshot", path, "--name", "disk"], check=True, stdout=subprocess.DEVNULL)
    with open(path, "r+b") as image:
        for block in random.sample(range(size // 4096), max(1, size // 4096 // 1000)):
            image.seek(block * 4096); image.write(os.urandom(4096))
PY
echo "made in $((SECONDS - begun)) s"
for cache in cold warm; do
    [ $cache = warm ] || rm -rf "$work/cache"
    begun=$(date +%s%N)
    "$imgsnap" -q restore disk@latest --range 0+4K -o "$work/part" --force >/dev/null
    echo "4 KiB by the program, $cache: $(( ($(date +%s%N) - begun) / 1000000 )) ms"
done
cd "$here" && cargo bench -q -p imgsnap-benches --bench chains

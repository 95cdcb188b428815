#!/usr/bin/env bash
# Repositories on servers beside what these servers do by themselves: Ceph's gateway (tests/servers/radosgw.sh) and sshd, on this host.
#
# benches/stores/run.sh [SIZE_MIB] [ROUNDS]        IMGSNAP names the binary; the ratio of each round is printed, and the processor
#
# What stands beside it: boto3's transfers (8 MiB parts, four at a time), `cat | ssh cat`, a repository in a local folder.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
size=${1:-2048} rounds=${2:-3}
imgsnap=${IMGSNAP:-$here/target/release/imgsnap}
servers=$here/tests/servers
python=${IMGSNAP_TEST_CACHE:-$HOME/.cache/imgsnap-tests}/moto-5.2.5/bin/python3
work=$(mktemp -d)
stop() {
    for server in radosgw sshd; do [ ! -d "$work/$server" ] || "$servers/$server.sh" stop "$work/$server" || true; done
    rm -rf "$work"
}
trap stop EXIT
# What is deleted is not free at once.
"$servers/radosgw.sh" start "$work/radosgw" $((4 + (size >> 10) * 3 * rounds))
"$servers/radosgw.sh" bucket "$work/radosgw" bench
"$servers/sshd.sh" start "$work/sshd"
set -a; . "$work/radosgw/env"; . "$work/sshd/env"; set +a
export IMGSNAP_STATE=$work/state IMGSNAP_CACHE=$work/cache IMGSNAP_SSH="ssh -F $IMGSNAP_TEST_SSH_CONFIG" IMGSNAP_SSH_PROGRAM=$imgsnap
image=$work/disk.img
cat >"$work/boto.py" <<'PY'
import sys, boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4)
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
verb, file, key = sys.argv[1:]
if verb == "put": s3.upload_file(file, "bench", key, Config=config)
else: s3.download_file("bench", key, file, Config=config)
PY
seconds() { local begun; begun=$(date +%s%N); "$@" >/dev/null; awk -v a="$begun" -v b="$(date +%s%N)" 'BEGIN { printf "%.2f", (b - a) / 1e9 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
drop() { sync; echo 3 2>/dev/null >/proc/sys/vm/drop_caches || true; }

echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores; $size MiB, $rounds rounds"
head -c "${size}M" /dev/urandom >"$image"
for round in $(seq "$rounds"); do
    s3=s3://bench/r$round local=$work/local$round ssh=ssh://test$work/ssh$round
    boto=$(seconds "$python" "$work/boto.py" put "$image" "plain$round")
    base=$(seconds "$imgsnap" -q --repo "$s3" snapshot "$image" --compression none)
    echo "round $round: base to S3 $base s, boto3 $boto s: throughput $(ratio "$boto" "$base") of it (at least 0.8)"
    "$imgsnap" -q --repo "$local" snapshot "$image" --compression none >/dev/null
    # One percent of the blocks, scattered.
    python3 - "$image" "$round" <<'PY'
import os, random, sys
random.seed(int(sys.argv[2])); size = os.path.getsize(sys.argv[1])
with open(sys.argv[1], "r+b") as image:
    for block in random.sample(range(size // 4096), size // 4096 // 100):
        image.seek(block * 4096); image.write(os.urandom(4096))
PY
    near=$(seconds "$imgsnap" -q --repo "$local" snapshot "$image")
    far=$(seconds "$imgsnap" -q --repo "$s3" snapshot "$image")
    delta=$(ls -t "$local"/disk/*.delta | head -1)
    # Without the time that Python takes to begin.
    "$python" - "$delta" "d$round" >"$work/sent" <<'PY'
import sys, time, boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4)
begun = time.time(); s3.upload_file(sys.argv[1], "bench", sys.argv[2], Config=config); print(round(time.time() - begun, 2))
PY
    sent=$(cat "$work/sent")
    echo "round $round: 1 % to S3 $far s; local $near s and the plain upload of $(stat -c %s "$delta") bytes $sent s: $(awk -v a="$far" -v b="$near" -v c="$sent" 'BEGIN { printf "%.2f", a / (b + c) }') (at most 1.3)"
    drop
    plain=$(seconds "$python" "$work/boto.py" get "$work/plain" "plain$round")
    rm -f "$work/plain"; drop
    back=$(seconds "$imgsnap" -q --repo "$s3" restore disk@1 -o "$work/back")
    echo "round $round: restore from S3 $back s, boto3 $plain s: throughput $(ratio "$plain" "$back") of it (at least 0.8)"
    rm -f "$work/back"
    cat=$(seconds sh -c "cat '$image' | $IMGSNAP_SSH test 'cat >$work/there'")
    rm -f "$work/there"
    over=$(seconds "$imgsnap" -q --repo "$ssh" snapshot "$image" --compression none)
    echo "round $round: base over ssh $over s, cat | ssh cat $cat s: throughput $(ratio "$cat" "$over") of it (at least 0.8)"
    rm -rf "$local" "$work/ssh$round"
done

#!/usr/bin/env bash
# A guest's first day, its second, and its return, by imgsnap, restic and borg, on the same servers: Ceph's gateway and sshd, on this host.
#
# benches/stores/compare.sh [SIZE]        needs root (benches/compare/guest.sh makes the guest), restic and borg; IMGSNAP names the binary
#
# Requests are those that the gateway logs, bytes what the server has in the end, seconds those of the command.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
size=${1:-2G}
imgsnap=${IMGSNAP:-$here/target/release/imgsnap}
servers=$here/tests/servers
work=$(mktemp -d)
stop() {
    for server in radosgw sshd; do [ ! -d "$work/$server" ] || "$servers/$server.sh" stop "$work/$server" || true; done
    rm -rf "$work"
}
trap stop EXIT
"$servers/radosgw.sh" start "$work/radosgw" 24
for bucket in imgsnap restic; do "$servers/radosgw.sh" bucket "$work/radosgw" $bucket; done
"$servers/sshd.sh" start "$work/sshd"
set -a; . "$work/radosgw/env"; . "$work/sshd/env"; set +a
export IMGSNAP_STATE=$work/state IMGSNAP_CACHE=$work/cache IMGSNAP_SSH="ssh -F $IMGSNAP_TEST_SSH_CONFIG" IMGSNAP_SSH_PROGRAM=$imgsnap
export RESTIC_PASSWORD=x RESTIC_CACHE_DIR=$work/restic-cache RESTIC_PROGRESS_FPS=0.1
export BORG_RSH=$IMGSNAP_SSH BORG_BASE_DIR=$work/borg-base BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
image=$work/disk.img
requests() { grep -c 'beast: .*HTTP/1.1"' "$work/radosgw/log/client.rgw.a" || true; }
held() {
    case $1 in
    */) du -sb "$1" | cut -f 1 ;;
    # What a bucket has, page by page.
    *) python3 - "$1" "$servers/radosgw.sh" "$work/radosgw" <<'PY'
import re, subprocess, sys
bucket, script, place = sys.argv[1:]
total, last = 0, ""
while True:
    text = subprocess.run([script, "s3", place, "GET", f"/{bucket}?list-type=2&start-after={last}"], check=True, capture_output=True, text=True).stdout
    keys, sizes = re.findall("<Key>(.*?)</Key>", text), re.findall("<Size>(.*?)</Size>", text)
    total += sum(map(int, sizes))
    if "<IsTruncated>true" not in text: break
    last = keys[-1]
print(total)
PY
    ;;
    esac
}
# step TOOL WHAT PLACE COMMAND...
step() {
    local tool=$1 what=$2 place=$3 begun before
    shift 3
    before=$(requests) begun=$(date +%s%N)
    "$@" >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
    awk -v t="$tool" -v w="$what" -v a="$begun" -v b="$(date +%s%N)" -v r="$(($(requests) - before))" -v h="$(held "$place")" \
        'BEGIN { printf "| %s | %s | %.1f | %.0f | %d |\n", t, w, (b - a) / 1e9, h / 1048576, r }'
}
back() { cmp "$image" "$1" && rm -f "$1"; }

echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores; a guest of $size"
echo "$("$imgsnap" --version), $(restic version | cut -d ' ' -f 1,2), $(borg --version)"
"$here/benches/compare/guest.sh" make "$image" "$size" >/dev/null
echo '| | | seconds | MiB there | requests |'
echo '| --- | --- | --- | --- | --- |'
s3=(--repo s3://imgsnap/r) ssh=(--repo "ssh://test$work/imgsnap") restic=(-r "s3:$AWS_ENDPOINT_URL/restic/r") borg=ssh://test$work/borg
"$imgsnap" -q "${s3[@]}" init >/dev/null
"$imgsnap" -q "${ssh[@]}" init >/dev/null
restic "${restic[@]}" init >/dev/null
borg init -e none "$borg"
for day in 1 2; do
    [ $day = 1 ] || "$here/benches/compare/guest.sh" age "$image" 2 >/dev/null
    step "imgsnap, S3" "day $day" imgsnap "$imgsnap" "${s3[@]}" snapshot "$image"
    step "restic, S3" "day $day" restic restic "${restic[@]}" backup "$image"
    step "imgsnap, ssh" "day $day" "$work/imgsnap/" "$imgsnap" "${ssh[@]}" snapshot "$image"
    step "borg, ssh" "day $day" "$work/borg/" borg create --chunker-params fixed,65536 "$borg::day$day" "$image"
done
step "imgsnap, S3" back imgsnap "$imgsnap" "${s3[@]}" restore disk@2 -o "$work/back"
back "$work/back"
step "restic, S3" back restic restic "${restic[@]}" restore latest --target "$work/restored"
back "$work/restored$image"
step "imgsnap, ssh" back "$work/imgsnap/" "$imgsnap" "${ssh[@]}" restore disk@2 -o "$work/back"
back "$work/back"
cd "$work"
step "borg, ssh" back "$work/borg/" borg extract --sparse "$borg::day2"
back "$work/${image#/}"

#!/usr/bin/env bash
# A domain's first snapshot, three increments and its return, by imgsnap and virtnbdbackup, of the same disk and changes.
#
# benches/libvirt/compare.sh [SIZE]     needs root, virtnbdbackup and e2fsprogs; IMGSNAP names the binary
#
# The domain stands still and writes what QEMU is told to. Half of its disk is ext4 with text and noise; 1 % is written in between, in runs
# of 64 KiB. Each tool takes the same states, in turn. Bytes are those of its folder.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
size=${1:-2G}
imgsnap=${IMGSNAP:-$here/target/release/imgsnap}
work=$(mktemp -d)
chmod 711 "$work"
stop() {
    [ ! -d "$work/libvirt" ] || "$here/tests/servers/libvirt.sh" stop "$work/libvirt" || true
    rm -rf "$work"
}
trap stop EXIT
"$here/tests/servers/libvirt.sh" start "$work/libvirt"
set -a; . "$work/libvirt/env"; set +a
export IMGSNAP_STATE=$work/state IMGSNAP_REPO=$work/imgsnap
mkdir -p "$work/root/data" "$work/vnb"
for n in {1..200}; do
    find /usr/share/doc /usr/lib/python3 -type f -print0 2>/dev/null | head -z -n 4000 | tail -z -n $((n * 7)) | xargs -0 cat 2>/dev/null |
        head -c 3M >"$work/root/data/text-$n" || true
    head -c 1M /dev/urandom >"$work/root/data/noise-$n"
done
truncate -s "$size" "$work/raw.img"
mke2fs -q -F -t ext4 -d "$work/root" "$work/raw.img"
# Each has a domain of its own: virtnbdbackup refuses one with checkpoints of others.
for vm in ours theirs; do
    qemu-img convert -O qcow2 "$work/raw.img" "$work/$vm.qcow2"
    cat >"$work/vm.xml" <<XML
<domain type='qemu'><name>$vm</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$work/$vm.qcow2'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>
XML
    virsh -q define "$work/vm.xml"
    virsh -q start "$vm" --paused
done
bytes=$(stat -c %s "$work/raw.img")
# write COUNT: that many runs of 64 KiB, behind what the file system holds and in it.
write() {
    local n
    for ((n = 0; n < $1; n++)); do
        echo "qemu-io -d virtio-disk0/virtio-backend \"write -P $((n % 250 + 1)) $((bytes / 2 + n * 65536 * 3)) 65536\""
    done | while read -r line; do
        for vm in ours theirs; do virsh -q qemu-monitor-command "$vm" --hmp "$line" >/dev/null; done
    done
}
# step TOOL WHAT FOLDER COMMAND...
step() {
    local tool=$1 what=$2 place=$3 begun
    shift 3
    begun=$(date +%s%N)
    "$@" >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
    awk -v t="$tool" -v w="$what" -v a="$begun" -v b="$(date +%s%N)" -v h="$(du -sb "$place" | cut -f 1)" \
        'BEGIN { printf "| %s | %s | %.2f | %.1f |\n", t, w, (b - a) / 1e9, h / 1048576 }'
}
# It wants a password for a socket that is named.
space=/proc/$(sed -n 's/^space //p' "$work/libvirt/pids")/ns
inside() { nsenter --mount="$space/mnt" --pid="$space/pid_for_children" "$@"; }
vnb() { inside virtnbdbackup -U qemu:///system -d theirs -l "$1" -o "$work/vnb" -f "$work/libvirt/tmp/vnb.sock" -S "$work/libvirt/tmp" "${@:2}"; }
chmod 777 "$work/libvirt/tmp" "$work/vnb"
echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores; a disk of $size"
echo "$("$imgsnap" --version), virtnbdbackup $(virtnbdbackup --version), libvirt $(libvirtd --version | grep -o '[0-9.]*$')"
echo '| | | seconds | MiB there |'
echo '| --- | --- | --- | --- |'
step imgsnap first "$work/imgsnap" "$imgsnap" snapshot libvirt:ours
step 'virtnbdbackup -z' first "$work/vnb" vnb full -z
for turn in 1 2 3; do
    write $((bytes / 100 / 65536))
    step imgsnap "increment $turn" "$work/imgsnap" "$imgsnap" snapshot libvirt:ours
    step 'virtnbdbackup -z' "increment $turn" "$work/vnb" vnb inc -z
done
for vm in ours theirs; do virsh -q destroy "$vm"; done
qemu-img convert -O raw "$work/ours.qcow2" "$work/now.img"
qemu-img compare -q "$work/now.img" "$work/theirs.qcow2"
step imgsnap return "$work/imgsnap" "$imgsnap" restore ours-vda@latest -o "$work/back.img"
cmp "$work/now.img" "$work/back.img"
rm "$work/back.img"
mkdir "$work/back"
step 'virtnbdbackup' return "$work/vnb" inside virtnbdrestore -U qemu:///system -i "$work/vnb" -a restore -o "$work/back" -f "$work/libvirt/tmp/vnb2.sock"
# Its qemu-nbd may be there still.
qemu-img compare -q -U "$work/now.img" "$work/back/"*.qcow2

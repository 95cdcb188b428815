#!/usr/bin/env bash
# A domain's first snapshot, an increment, its return, and a file out of it, by imgsnap and virtnbdbackup, of the same domain and changes.
#
# benches/libvirt/compare.sh [SIZE]     needs root, virtnbdbackup and e2fsprogs; IMGSNAP names the binary
#
# The domain stands still and writes what QEMU is told to. Half of its disk is ext4 with text and noise; 1 % is written in between, in runs
# of 64 KiB. Each tool takes the same three states, in turn. Bytes are those of its folder.
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
qemu-img convert -O qcow2 "$work/raw.img" "$work/disk.qcow2"
cat >"$work/vm.xml" <<XML
<domain type='qemu'><name>vm</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$work/disk.qcow2'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>
XML
virsh -q define "$work/vm.xml"
virsh -q start vm --paused
bytes=$(stat -c %s "$work/raw.img")
# write COUNT: that many runs of 64 KiB, behind what the file system holds and in it.
write() {
    local n
    for ((n = 0; n < $1; n++)); do
        echo "qemu-io -d virtio-disk0/virtio-backend \"write -P $((n % 250 + 1)) $((bytes / 2 + n * 65536 * 3)) 65536\""
    done | while read -r line; do virsh -q qemu-monitor-command vm --hmp "$line" >/dev/null; done
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
vnb() { virtnbdbackup -U "$LIBVIRT_DEFAULT_URI" -d vm -l "$1" -o "$work/vnb" -f "$work/vnb.sock" -S "$work/libvirt/tmp" "${@:2}"; }
file_of_imgsnap() {
    "$imgsnap" restore vm-vda@latest -o "$work/one.img"
    debugfs -R "dump /data/text-7 $work/one" "$work/one.img"
    cmp "$work/one" "$work/root/data/text-7"
    rm "$work/one.img"
}
chmod 777 "$work/libvirt/tmp" "$work/vnb"
echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores; a disk of $size"
echo "$("$imgsnap" --version), virtnbdbackup $(virtnbdbackup --version), libvirt $(libvirtd --version | grep -o '[0-9.]*$')"
echo '| | | seconds | MiB there |'
echo '| --- | --- | --- | --- |'
step imgsnap first "$work" "$imgsnap" snapshot libvirt:vm
step 'virtnbdbackup -z' first "$work/vnb" vnb full -z
for turn in 1 2 3; do
    write $((bytes / 100 / 65536))
    step imgsnap "increment $turn" "$work/imgsnap" "$imgsnap" snapshot libvirt:vm
    step 'virtnbdbackup -z' "increment $turn" "$work/vnb" vnb inc -z
done
virsh -q destroy vm
qemu-img convert -O raw "$work/disk.qcow2" "$work/now.img"
step imgsnap return "$work/imgsnap" "$imgsnap" restore vm-vda@latest -o "$work/back.img"
cmp "$work/now.img" "$work/back.img"
rm "$work/back.img"
mkdir "$work/back"
step 'virtnbdbackup' return "$work/vnb" virtnbdrestore -U "$LIBVIRT_DEFAULT_URI" -i "$work/vnb" -a restore -o "$work/back" -f "$work/vnb2.sock"
qemu-img compare -q "$work/now.img" "$work/back/"*vda* || qemu-img compare -q "$work/now.img" "$work/back/disk.qcow2"
step imgsnap 'a file' "$work/imgsnap" file_of_imgsnap

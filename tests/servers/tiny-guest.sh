#!/usr/bin/env bash
# Builds DIR/disk.img, a Linux disk of 96 MiB that boots by itself (MBR, GRUB, Debian's cloud kernel, busybox, qemu-guest-agent,
# tiny-guest.c), without mounting anything, and DIR/vmlinuz and DIR/initrd.gz, with which it boots faster. Installs what is missing, if
# it may; keeps the kernel that it downloads in DIR; does nothing if the disk is there and was built by these very files. Says nothing,
# unless something fails.
#
# The guest prints GUEST-UP on ttyS0, and runs each line that it is sent there, beside all others: `work files /data 100 50`.
# The guest agent is started again whenever it ends, and knows then whether it had frozen the file systems.
#
# usage: tiny-guest.sh DIR
# boot:  qemu-system-x86_64 -accel tcg -cpu max -m 256 -nographic -drive file=DIR/disk.img,format=raw,if=virtio
#        or with -kernel DIR/vmlinuz -initrd DIR/initrd.gz -append "console=ttyS0 quiet panic=5"
# agent: -chardev socket,path=ga.sock,server=on,wait=off,id=ga -device virtio-serial \
#        -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?DIR}"
cd "$1"
PATH=$PATH:/usr/sbin:/sbin
# Several may want it at once.
exec 9>lock
flock 9
stamp=$(cat "$here"/tiny-guest.* | sha256sum)
if [ "$(cat stamp 2>/dev/null)" = "$stamp" ] && [ -f disk.img ]; then exit 0; fi
rm -f stamp

grub=/usr/lib/grub/i386-pc
missing=()
for pair in busybox:busybox-static cpio:cpio mke2fs:e2fsprogs sfdisk:fdisk qemu-ga:qemu-guest-agent grub-mkimage:grub-common; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ -f "$grub/boot.img" ] || missing+=(grub-pc-bin)
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "a guest cannot be built here without ${missing[*]}" >&2
        exit 1
    fi
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >apt.log 2>&1 </dev/null ||
        { echo "not installed: ${missing[*]}: $(tail -n 1 apt.log)" >&2; exit 1; }
fi
if [ ! -d kernel ]; then
    # Only downloaded and unpacked, so that this machine gets no other kernel.
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    rm -rf kernel.new ./*.deb
    apt-get download -qq "${package:?no linux-image-cloud-amd64}" >apt.log 2>&1 </dev/null ||
        { echo "no kernel: $(tail -n 1 apt.log)" >&2; exit 1; }
    dpkg -x ./*.deb kernel.new
    rm ./*.deb
    mv kernel.new kernel
fi

rm -rf initrd root disk.img disk.new
mkdir -p initrd/{bin,lib/m,proc,sys,dev,mnt}
mkdir -p root/{bin,sbin,etc,proc,sys,dev,run,tmp,data,boot/grub,usr/sbin,lib64,lib}

# The initial RAM disk: what it takes to mount the root.
busybox=$(command -v busybox)
cp "$busybox" initrd/bin/busybox
modules=(kernel/lib/modules/*/kernel)
for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev \
    drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci drivers/block/virtio_blk drivers/char/virtio_console; do
    cp "${modules[0]}/$module".ko* initrd/lib/m/
done
cat >initrd/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console; do
    insmod /lib/m/$m.ko
done
i=0; while [ ! -b /dev/vda1 ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i+1)); done
mount -t ext4 /dev/vda1 /mnt || exec sh
mount --move /dev /mnt/dev; mount --move /proc /mnt/proc; mount --move /sys /mnt/sys
exec switch_root /mnt /init
INIT
chmod +x initrd/init
(cd initrd && find . | cpio -o -H newc --quiet | gzip -1) >initrd.gz

# The root.
cp "$busybox" root/bin/busybox
for name in sh mount sync dd sleep cat echo mkdir ls poweroff mv rm cp kill ps df grep stty dmesg; do
    ln -s busybox "root/bin/$name"
done
cc -O2 -static -o root/bin/work "$here/tiny-guest.c"
agent=$(command -v qemu-ga)
cp "$agent" root/usr/sbin/qemu-ga
for library in $(ldd "$agent" | grep -o '/[^ ]*\.so[^ ]*'); do
    mkdir -p "root/$(dirname "$library")"
    cp -L "$library" "root/$library"
done
cat >root/init <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin:/usr/sbin
stty -echo </dev/ttyS0
mount -t tmpfs t /run; mount -t tmpfs t /tmp; mkdir /run/qga
# The device of a port, by its name.
port() {
    for p in /sys/class/virtio-ports/*; do
        read -r name <$p/name && [ "$name" = "$1" ] && echo /dev/${p##*/}
    done 2>/dev/null
}
agent=$(port org.qemu.guest_agent.0)
# Nothing here writes to the disk, so it goes on while that is frozen.
[ -n "$agent" ] && while :; do
    qemu-ga -m virtio-serial -p $agent -t /run/qga -l /run/qga.log &
    echo $! >/run/qga.pid
    wait $!
    sleep 0.2
done >/dev/null 2>&1 &
# Ends the agent as nobody should.
kill_agent() { read -r pid </run/qga.pid && kill -9 $pid && echo AGENT-KILLED; }
read -r up rest </proc/uptime
echo "GUEST-UP after $up s"
while read -r line; do
    (eval "$line") &
done </dev/ttyS0
exec sleep 1000000
INIT
chmod +x root/init
cp kernel/boot/vmlinuz-* vmlinuz
cp vmlinuz initrd.gz root/boot/
cat >root/boot/grub/grub.cfg <<'GRUB'
set timeout=0
menuentry a { linux /boot/vmlinuz console=ttyS0 quiet panic=5 ; initrd /boot/initrd.gz }
GRUB

# The disk: boot sector, GRUB between that and the first MiB, one partition.
truncate -s 96M disk.new
rm -f partition
truncate -s 95M partition
mke2fs -q -t ext4 -b 4096 -d root -L guest partition
printf '2048,,83,*\n' | sfdisk -q disk.new
cat >early.cfg <<'GRUB'
serial --unit=0
set root=(hd0,msdos1)
set prefix=(hd0,msdos1)/boot/grub
configfile /boot/grub/grub.cfg
GRUB
grub-mkimage -d "$grub" -O i386-pc -p '(hd0,msdos1)/boot/grub' -c early.cfg -o core.img \
    biosdisk part_msdos ext2 linux normal configfile serial
dd if="$grub/boot.img" of=disk.new bs=440 count=1 conv=notrunc status=none
dd if=core.img of=disk.new bs=512 seek=1 conv=notrunc status=none
dd if=partition of=disk.new bs=1M seek=1 conv=notrunc,sparse status=none
rm -rf partition core.img early.cfg initrd root
mv disk.new disk.img
echo "$stamp" >stamp

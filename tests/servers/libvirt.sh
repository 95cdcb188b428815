#!/usr/bin/env bash
# libvirtd with QEMU (TCG), as root and without systemd, beside one that the machine may have: in a mount namespace it sees folders of
# DIR in the place of /etc/libvirt, /run/libvirt, /var/cache/libvirt, /var/lib/libvirt and /var/log/libvirt. Machines run as `nobody`.
#
# libvirt.sh start|stop DIR         stop ends its machines, too
# libvirt.sh kill DIR libvirtd [SIGNAL]    (machines live on)
# libvirt.sh restart DIR libvirtd
. "$(dirname "$0")/common.sh"
daemons=(space libvirtd)

# Whatever runs in our namespace is ours: QEMU gets an environment and a log from libvirt.
eval "$(declare -f ours | sed '1s/ours/marked/')"
ours() {
    local all space
    all=$(marked)
    space=$(sed -n 's/^space //p' pids 2>/dev/null) || true
    {
        echo "$all"
        if [ -n "$space" ] && grep -qx "$space" <<<"$all"; then
            space=$(readlink "/proc/$space/ns/mnt") || true
            [ "$space" = "$(readlink /proc/self/ns/mnt)" ] ||
                find /proc/[0-9]*/ns/mnt -lname "mnt:\\[${space//[^0-9]/}\\]" 2>/dev/null | cut -d / -f 3 || true
        fi
    } | { grep . || true; } | sort -u
}

prepare() {
    [ "$(id -u)" = 0 ] || skip "libvirtd as a service of the system needs root"
    need libvirtd=libvirt-daemon virsh=libvirt-clients qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils
    # Which is in no path.
    [ -e /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so ] || need libvirt_driver_qemu.so=libvirt-daemon-driver-qemu
    unshare --mount true || skip "no mount namespaces here"
    mkdir etc run cache lib
    # The user that libvirt was compiled with must be there, though another one runs the machines.
    { cat /etc/passwd; echo 'libvirt-qemu:x:64055:65534::/nonexistent:/usr/sbin/nologin'; } >passwd
    { cat /etc/group; echo 'libvirt-qemu:x:64055:'; } >group
    mkdir -p /etc/libvirt /run/libvirt /var/cache/libvirt /var/lib/libvirt /var/log/libvirt
    chmod 711 "$dir"
    cat >etc/qemu.conf <<'CONF'
stdio_handler = "file"
user = "nobody"
group = "nogroup"
security_driver = "none"
namespaces = []
cgroup_controllers = []
CONF
    cat >etc/libvirtd.conf <<'CONF'
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
CONF
    tell LIBVIRT_DEFAULT_URI="qemu+unix:///system?socket=$dir/run/libvirt-sock"
}

launch() {
    case $1 in
    space)
        # Machines outlive libvirtd, and somebody has to take their ends.
        # shellcheck disable=SC2016
        spawn space unshare --mount --pid --fork --kill-child --mount-proc --propagation private bash -c '
            mount --bind etc /etc/libvirt && mount --bind run /run/libvirt && mount --bind cache /var/cache/libvirt &&
                mount --bind lib /var/lib/libvirt && mount --bind log /var/log/libvirt &&
                mount --bind passwd /etc/passwd && mount --bind group /etc/group && touch tmp/ready &&
                while :; do sleep 0.2; done'
        ;;
    libvirtd)
        local space
        space=/proc/$(pid space)/ns
        spawn libvirtd nsenter --mount="$space/mnt" --pid="$space/pid_for_children" --wd="$dir" \
            "$(command -v libvirtd)" -p "$dir/libvirtd.pid"
        ;;
    esac
}

# nsenter waits for libvirtd.
eval "$(declare -f pid | sed '1s/pid/pid_of/')"
pid() {
    local outer
    outer=$(pid_of "$1") || return 1
    case $1 in
    libvirtd) pgrep -P "$outer" -x libvirtd || echo "$outer" ;;
    *) echo "$outer" ;;
    esac
}

answers() {
    case $1 in
    space) [ -e tmp/ready ] ;;
    libvirtd) virsh list ;;
    esac
}

main "$@"

#!/usr/bin/env bash
# Builds the package, installs it in a Debian that holds nothing else, uses it, upgrades, removes and purges it. Needs root,
# debootstrap and a Debian mirror (MIRROR, SUITE); nothing of this host is changed, and nothing stays behind.
set -euo pipefail
if [ -z "${IMGSNAP_TRY:-}" ]; then
    [ "$(id -u)" = 0 ] || { echo "try.sh: debootstrap needs root" >&2; exit 1; }
    command -v debootstrap >/dev/null || { echo "try.sh: debootstrap is missing (apt-get install debootstrap)" >&2; exit 1; }
    # What is mounted goes with the name space, however this ends.
    IMGSNAP_TRY=1 exec unshare --mount "$0" "$@"
fi
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d /var/tmp/imgsnap-try-XXXXXX)
root=$work/root
clean() {
    code=$?
    umount "$root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
    [ $code = 0 ] || echo "try.sh: FAILED (exit code $code)" >&2
    exit $code
}
trap clean EXIT
trap 'exit 130' INT TERM HUP

step() { printf '%s\n' "-- $*"; }
fail() { echo "try.sh: $*" >&2; exit 1; }
in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C "$@"; }
# All files, but for what dpkg and the system write at any installation.
files() { (cd "$root" && find . -xdev \( -path ./proc -o -path ./var/lib/dpkg -o -path ./var/log -o -path ./tmp \) -prune -o -print | sort); }
version() { in_root dpkg-query -W -f '${Version}' imgsnap; }

step "two packages, of which the second is newer"
"$here/build.sh" --output "$work/one.deb"
"$here/build.sh" --output "$work/two.deb" --deb-revision 2

step "a root with nothing but ${SUITE:-bookworm}"
debootstrap --variant=minbase "${SUITE:-bookworm}" "$root" ${MIRROR:+"$MIRROR"} >"$work/log" 2>&1 || { tail "$work/log" >&2; fail "debootstrap"; }
mount -t proc proc "$root/proc"
cp "$work"/*.deb "$root/tmp"
files >"$work/before"

step "installed"
in_root dpkg -i /tmp/one.deb
first=$(version)
in_root imgsnap --version
for file in share/man/man1/imgsnap.1.gz share/man/man1/imgsnap-snapshot.1.gz share/bash-completion/completions/imgsnap \
    share/zsh/vendor-completions/_imgsnap share/fish/vendor_completions.d/imgsnap.fish share/doc/imgsnap/copyright \
    lib/systemd/system/imgsnap-snapshot@.timer lib/systemd/system/imgsnap-.service.d/10-hardening.conf; do
    [ -s "$root/usr/$file" ] || fail "/usr/$file is missing"
done
gzip -dc "$root/usr/share/man/man1/imgsnap.1.gz" | grep -q '^\.TH imgsnap 1' || fail "the manual page is none"
in_root bash -c '. /usr/share/bash-completion/completions/imgsnap && complete -p imgsnap' >/dev/null || fail "the completion is none"
[ "$(stat -c %a "$root/etc/imgsnap/imgsnap.env.example")" = 600 ] || fail "the example is not for root alone"

step "a snapshot, and back"
head -c 8M /dev/urandom >"$root/root/vm.img"
in_root imgsnap --quiet snapshot /root/vm.img
printf 'changed' | dd of="$root/root/vm.img" bs=1M seek=3 conv=notrunc status=none
in_root imgsnap --quiet snapshot /root/vm.img
in_root imgsnap --quiet restore vm@2 -o /root/copy.img
cmp "$root/root/vm.img" "$root/root/copy.img"
in_root imgsnap verify
rm "$root/root/vm.img" "$root/root/copy.img"

step "upgraded, with a configuration of its user"
echo '# of the user' >>"$root/etc/imgsnap/imgsnap.env.example"
printf 'IMAGE=/root/vm.img\nIMGSNAP_REPO=/var/lib/imgsnap\n' >"$root/etc/imgsnap/vm.env"
if command -v systemctl >/dev/null; then
    systemctl --quiet --root="$root" enable imgsnap-snapshot@vm.timer imgsnap-watch@vm.service
fi
in_root dpkg -i /tmp/two.deb
[ "$(version)" != "$first" ] || fail "it is $first still"
grep -q 'of the user' "$root/etc/imgsnap/imgsnap.env.example" || fail "the upgrade has changed a configuration file"
in_root imgsnap --version
in_root imgsnap list

step "removed"
in_root dpkg -r imgsnap
[ ! -e "$root/usr/bin/imgsnap" ] || fail "the program is still there"
[ -e "$root/etc/imgsnap/imgsnap.env.example" ] || fail "the configuration file is gone"

step "purged"
stored() { (cd "$root/var/lib/imgsnap" && find . -type f -exec sha256sum {} + | sort); }
stored >"$work/stored"
in_root dpkg -P imgsnap
stored | cmp - "$work/stored" || fail "the repository was changed"
[ -s "$work/stored" ] || fail "there is no repository"
# The folders of others that it was the first to use are removed as well, since they are empty.
left=$(files | comm -13 "$work/before" - | grep -v -e '^\./var/lib/imgsnap\(-state\)\?\(/\|$\)' -e '^\./etc/imgsnap\(/vm\.env\)\?$' || true)
[ -z "$left" ] || fail "left behind: $left"
gone=$(files | comm -23 "$work/before" - || true)
[ -z "$gone" ] || fail "of others, and gone: $gone"
[ -e "$root/etc/imgsnap/vm.env" ] || fail "what its user wrote is gone"

echo "installed, used, upgraded from $first, removed and purged: sound; the repository is still there"

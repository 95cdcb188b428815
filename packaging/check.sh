#!/usr/bin/env bash
# Looks at the units as systemd would load them: nothing in them may be wrong, and each service must expose less than
# 4.0 by `systemd-analyze security`. This holds where the package installs them, and where the commands do that copy
# them in the README and in the guides. It needs no running systemd. `check.sh -v` also prints the tables.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command -v systemd-analyze >/dev/null || { echo "skipped: systemd-analyze is missing"; exit 0; }
systemd-analyze --help | grep -q -e --offline || { echo "skipped: systemd-analyze is older than systemd 250"; exit 0; }
# The lowest score, times ten, that is too high: systemd-analyze itself refuses what is above the threshold.
limit=39
top=$(mktemp -d) && trap 'rm -rf "$top"' EXIT
failed=0
is_verbose=${1:-}

# A root with the program in a folder, and what systemd brings itself.
make_root() {
    local root=$1 program=$2/imgsnap unit
    local units=$root/usr/lib/systemd/system
    mkdir -p "$units" "$root/etc/systemd/system" "$root/usr/share/man" "$root/usr/share/doc" "$root$2"
    printf '#!/bin/sh\n' >"$root$program"
    chmod 755 "$root$program"
    for unit in basic sysinit shutdown timers multi-user network-online local-fs remote-fs; do
        printf '[Unit]\nDescription=%s\n' "$unit" >"$units/$unit.target"
    done
    for unit in system -; do
        printf '[Unit]\nDescription=%s\n' "$unit" >"$units/$unit.slice"
    done
}

# Verifies all units that were installed in a root.
examine() {
    local root=$1 installed=$2 file unit name said score
    printf '%s\n' "$installed"
    for file in "$here"/systemd/*.service "$here"/systemd/*.timer; do
        unit=$(basename "$file")
        name=${unit/@./@vm.}
        said=$(systemd-analyze verify --man=no --root="$root" "$name" 2>&1) || said="${said:-failed}"
        if [ -n "$said" ]; then
            printf '%s: %s\n' "$unit" "$said"
            failed=1
        fi
        if [ "${unit%.timer}" != "$unit" ]; then
            # What a timer starts is not looked for by systemd-analyze.
            [ -e "${file%.timer}.service" ] || { echo "$unit: it has no service" && failed=1; }
            continue
        fi
        said=$(systemd-analyze security --offline=yes --root="$root" --threshold=$limit --no-pager "$name" 2>&1) || failed=1
        if [ "$is_verbose" = -v ]; then printf '%s\n' "$said"; fi
        score=$(printf '%s\n' "$said" | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')
        printf '  %-28s %s\n' "$unit" "${score:-$said}"
        [ -n "$score" ] || failed=1
    done
}

make_root "$top/package" /usr/bin
cp -r "$here"/systemd/. "$top/package/usr/lib/systemd/system"
examine "$top/package" "as the package installs them"

# `cargo install --root /usr/local`, and the command of the page.
for page in README.md docs/snapshots.md; do
    root=$top/$(basename "$page")
    copy=$(sed -n 's#^\(cp [^&;|]*packaging/systemd/[^ &;|]*\) /etc/systemd/system/.*#\1#p' "$here/../$page")
    [ -n "$copy" ] || { echo "$page: it has no command that copies the units" && failed=1 && continue; }
    make_root "$root" /usr/local/bin
    (cd "$here/.." && eval "$copy" "$(printf %q "$root/etc/systemd/system/")") || { failed=1 && continue; }
    examine "$root" "as $page installs them"
done
exit $failed

#!/usr/bin/env bash
# Looks at the units as systemd would load them: nothing in them may be wrong, and each service must expose less than
# 4.0 by `systemd-analyze security`. It needs no running systemd. `check.sh -v` also prints the tables.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command -v systemd-analyze >/dev/null || { echo "skipped: systemd-analyze is missing"; exit 0; }
systemd-analyze --help | grep -q -e --offline || { echo "skipped: systemd-analyze is older than systemd 250"; exit 0; }
# The lowest score, times ten, that is too high: systemd-analyze itself refuses what is above the threshold.
limit=39
root=$(mktemp -d) && trap 'rm -rf "$root"' EXIT

# A root with the units where the package has them, a program, and what systemd brings itself.
units=$root/usr/lib/systemd/system
mkdir -p "$units" "$root/usr/bin" "$root/etc/systemd/system" "$root/usr/share/man" "$root/usr/share/doc"
cp -r "$here"/systemd/. "$units"
printf '#!/bin/sh\n' >"$root/usr/bin/imgsnap"
chmod 755 "$root/usr/bin/imgsnap"
for unit in basic sysinit shutdown timers multi-user network-online local-fs remote-fs; do
    printf '[Unit]\nDescription=%s\n' "$unit" >"$units/$unit.target"
done
for unit in system -; do
    printf '[Unit]\nDescription=%s\n' "$unit" >"$units/$unit.slice"
done

failed=0
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
    if [ "${1:-}" = -v ]; then printf '%s\n' "$said"; fi
    score=$(printf '%s\n' "$said" | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')
    printf '%-28s %s\n' "$unit" "${score:-$said}"
    [ -n "$score" ] || failed=1
done
exit $failed

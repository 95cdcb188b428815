# What the scripts beside it share, each of which starts and stops one kind of server. Each sets `daemons`, the names of its processes in
# the order in which they start (and `together=yes` if none of them waits for another), and defines
#
#     options [OPTION...]  what may follow DIR at `start` (left out if nothing may)
#     prepare              makes sure that what the server needs is there, writes its configuration, and calls `remember` and `tell`
#     launch NAME          calls `spawn`
#     answers NAME         whether that process does its work
#     verb_NAME            another verb
#
# and calls main "$@". All of these run in DIR, with what was given to `remember` and `tell` as variables.
#
# A process belongs to DIR if it has IMGSNAP_TEST_SERVER=DIR in its environment, or a log of DIR as its standard error (sshd writes its
# title over its environment). Both are inherited, so that `stop` finds all, whatever became of the script that started them.
#
# shellcheck shell=bash disable=SC2154
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$here/${0##*/}
cache=${IMGSNAP_TEST_CACHE:-${HOME:?}/.cache/imgsnap-tests}

fail() { echo "${0##*/}: $*" >&2; exit 1; }
skip() { echo "skipped: $*" >&2; exit 77; }

# need COMMAND=PACKAGE...: installs the Debian packages of those commands that are not there, if it may.
need() {
    local pair missing=()
    for pair; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair##*=}")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || [ "${IMGSNAP_TEST_INSTALL-}" = no ] || ! command -v apt-get >/dev/null; then
        skip "not installed: ${missing[*]}"
    fi
    # Without the mark, so that `stop` does not end it halfway; and no service of a package is to start.
    local said
    # shellcheck disable=SC2016
    said=$(env -u IMGSNAP_TEST_SERVER DEBIAN_FRONTEND=noninteractive flock /usr/sbin sh -c '
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            trap "rm $policy" EXIT
            printf "#!/bin/sh\nexit 101\n" >$policy
            chmod 755 $policy
        fi
        apt-get update -qq && apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"' \
        sh "${missing[@]}" 2>&1 </dev/null) || skip "not installed: ${missing[*]}: ${said##*$'\n'}"
}

# cached NAME COMMAND...: the folder $cache/NAME, whose path is in $cached afterwards. If it is not there, COMMAND makes it,
# and is given the path of an empty folder that gets that name in the end. `cached slowly NAME` does that only if
# IMGSNAP_TEST_INSTALL is `all`.
cached() {
    local install=${IMGSNAP_TEST_INSTALL-some}
    if [ "$1" = slowly ]; then
        shift
        [ "$install" = all ] || install=no
    fi
    cached=$cache/$1
    [ ! -d "$cached" ] || return 0
    [ "$install" != no ] || skip "not in $cache: $1 (IMGSNAP_TEST_INSTALL=all puts it there)"
    mkdir -p "$cache"
    exec 9>"$cached.lock"
    flock 9
    if [ ! -d "$cached" ]; then
        rm -rf "$cached.new"
        mkdir "$cached.new"
        "${@:2}" "$cached.new" >>log/install 2>&1 </dev/null || skip "not installed: $1: $(tail -n 1 log/install)"
        mv "$cached.new" "$cached"
    fi
    exec 9>&-
}

# ports NAME...: gives each variable a port that nobody uses. It is below those that the kernel gives to clients, so that a server that is
# killed finds its port free later, too.
ports() {
    local first variable number taken=
    read -r first _ </proc/sys/net/ipv4/ip_local_port_range
    [ "$first" -gt 12000 ] || first=32768
    for variable; do
        while :; do
            number=$((10000 + SRANDOM % (first - 10000)))
            [[ " $taken " == *" $number "* ]] || grep -qis ":$(printf %04X "$number") " /proc/net/tcp /proc/net/tcp6 || break
        done
        taken+=" $number"
        printf -v "$variable" %s "$number"
    done
}

# remember NAME...: those variables are there at later verbs.
remember() { declare -p "$@" | sed 's/^declare --/declare -g/' >>remembered; }

# tell KEY=VALUE...: what a client of the server needs in its environment; it is in DIR/env when the server is up.
tell() {
    printf '%s\n' "$@" >>told
    export "${@?}"
}

# logged NAME COMMAND...: what it says is in DIR/log/NAME.
logged() { "${@:2}" >>"log/$1" 2>&1 </dev/null; }

# spawn NAME COMMAND...: one of $daemons, which stands in DIR/pids before it runs.
spawn() {
    sed -i "/^$1 /d" pids
    # shellcheck disable=SC2016
    setsid sh -c 'echo "$0 $$" >>pids && exec "$@"' "$@" >>"log/$1" 2>&1 </dev/null &
    disown
    until grep -q "^$1 " pids; do sleep 0.01; done
}

# The processes of DIR.
ours() {
    local starting
    {
        grep -lzsxF "IMGSNAP_TEST_SERVER=$dir" /proc/[0-9]*/environ | cut -d / -f 3 || true
        find /proc/[0-9]*/fd/2 -lname "$dir/log/*" 2>/dev/null | cut -d / -f 3 || true
        starting=$(sed -n 's/^start //p' pids 2>/dev/null) || true
        if [ "/proc/${starting:-none}/cwd" -ef "$dir" ]; then echo "$starting"; fi
    } | sort -u
}

lives() { grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; }

# pid NAME: its process, if that is there and belongs to DIR.
pid() {
    local pid
    pid=$(sed -n "s/^$1 //p" pids)
    lives "${pid:-0}" && ours | grep -x "$pid"
}

# wait_for NAME: until that process answers, for at most two minutes.
wait_for() {
    local end=$((SECONDS + ${IMGSNAP_TEST_PATIENCE:-120}))
    until answers "$1" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ] || ! pid "$1" >/dev/null; then
            fail "$1 does not answer"
        fi
        sleep 0.05
    done
}

recall() {
    local line
    # shellcheck source=/dev/null
    [ ! -f remembered ] || . ./remembered
    [ ! -f env ] || while read -r line; do export "${line?}"; done <./env
}

# Whatever ends `start` before all is up, nothing is left.
give_up() {
    trap - EXIT
    [ "$1" = 77 ] || tail -n 10 log/* >&2 || true
    sed -i '/^start /d' pids
    env -u IMGSNAP_TEST_SERVER "$self" stop "$dir"
    exit "$1"
}

start() {
    if declare -F options >/dev/null; then options "$@"; elif [ $# -gt 0 ]; then fail "no such option: $1"; fi
    mkdir -p "$dir"
    cd "$dir"
    [ -z "$(ls -A)" ] || fail "$dir is not empty"
    trap 'give_up $?' EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
    echo "start $$" >pids
    mkdir log tmp
    export TMPDIR=$dir/tmp IMGSNAP_TEST_SERVER=$dir
    # shellcheck disable=SC2016
    [ -z "${IMGSNAP_TEST_OWNER-}" ] || spawn guard bash -c \
        'while [ -d "/proc/$1" ]; do sleep 1; done; exec env -u IMGSNAP_TEST_SERVER "$2" stop "$3" 2>/dev/null' \
        bash "$IMGSNAP_TEST_OWNER" "$self" "$dir"
    need curl=curl
    prepare
    recall
    local name
    for name in "${daemons[@]}"; do
        launch "$name"
        [ "${together-}" = yes ] || wait_for "$name"
    done
    for name in "${daemons[@]}"; do wait_for "$name"; done
    ! declare -F finish >/dev/null || finish
    sed -i '/^start /d' pids
    mv told env
    trap - EXIT
}

stop() {
    [ ! -d "$dir" ] || cd "$dir"
    local all
    for _ in {1..200}; do
        all=$(ours)
        [ -n "$all" ] || break
        # shellcheck disable=SC2086
        kill -KILL $all 2>/dev/null || true
        sleep 0.02
    done
    [ -z "$all" ] || fail "still there: $all"
    cd /
    if [ -f "$dir/pids" ]; then
        rm -rf "$dir"
    elif [ -d "$dir" ]; then
        # Ended before anything was written to it; a folder of others is not empty.
        rmdir "$dir"
    fi
}

# signal NAME [SIGNAL]: sends it, and waits for the end if that is what it brings.
signal() {
    local pid
    pid=$(pid "$1") || fail "$1 does not run"
    kill -s "${2:-KILL}" "$pid"
    case ${2:-KILL} in
    KILL | TERM) while lives "$pid"; do sleep 0.02; done ;;
    esac
}

main() {
    if [ $# -lt 2 ]; then
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$self" >&2
        exit 2
    fi
    local verb=$1
    dir=$(realpath -m -- "$2")
    shift 2
    case $verb in
    start) start "$@" ;;
    stop) stop ;;
    *)
        [ -f "$dir/env" ] || fail "no server runs in $dir"
        cd "$dir"
        recall
        export TMPDIR=$dir/tmp IMGSNAP_TEST_SERVER=$dir
        case $verb in
        kill) signal "${1:?which process?}" "${2-}" ;;
        restart)
            if pid "${1:?which process?}" >/dev/null; then signal "$1"; fi
            launch "$1"
            wait_for "$1"
            ;;
        *)
            declare -F "verb_$verb" >/dev/null || fail "no such verb: $verb"
            "verb_$verb" "$@"
            ;;
        esac
        ;;
    esac
}

# --- S3 ---

# s3 METHOD /BUCKET[/KEY][?QUERY] [CURL OPTION...]
verb_s3() {
    curl -sS -X "$1" --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \
        -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$AWS_ENDPOINT_URL$2" "${@:3}"
}

# bucket NAME [--versioned] [--object-lock]
s3_bucket() {
    local name=$1 option header=()
    shift
    for option; do
        [ "$option" != --object-lock ] || header=(-H 'x-amz-bucket-object-lock-enabled: true')
    done
    verb_s3 PUT "/$name" -f "${header[@]}"
    for option; do
        case $option in
        --versioned)
            verb_s3 PUT "/$name?versioning=" -f -H 'Content-Type: application/xml' --data \
                '<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status>'\
'</VersioningConfiguration>'
            ;;
        --object-lock) ;;
        *) fail "no such option: $option" ;;
        esac
    done
}

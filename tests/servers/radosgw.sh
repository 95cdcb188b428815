#!/usr/bin/env bash
# Ceph's object gateway, an S3 server, with one monitor and one OSD (Debian's packages; its disk is a sparse file).
#
# radosgw.sh start DIR [GIB]            8 GiB, if not said otherwise; when they are full it waits for ever
# radosgw.sh stop DIR
# radosgw.sh bucket DIR NAME [--versioned] [--object-lock]
# radosgw.sh s3 DIR METHOD /BUCKET[/KEY][?QUERY] [CURL OPTION...]
# radosgw.sh kill DIR mon|osd|rgw [SIGNAL]
# radosgw.sh restart DIR mon|osd|rgw
#
# A PUT with `If-None-Match: *` has one winner, unless the bucket has versions: it is ignored there, and when a multipart upload is
# completed. An upload that is multipart takes no retention of its own.
. "$(dirname "$0")/common.sh"
daemons=(mon osd rgw)
gib=8

options() {
    gib=${1:-8}
    [[ $gib =~ ^[1-9][0-9]*$ ]] || fail "no number of GiB: $gib"
}

prepare() {
    need radosgw=radosgw ceph-mon=ceph-mon ceph-osd=ceph-osd ceph=ceph-common
    local port osd
    ports port mon osd
    fsid=$(cat /proc/sys/kernel/random/uuid)
    remember fsid mon
    tell AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test-secret \
        AWS_REGION=default AWS_ALLOW_HTTP=true
    mkdir mon osd
    # An OSD takes the first free ports of a range.
    cat >ceph.conf <<CONF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
ms bind port min = $osd
ms bind port max = $((osd + 500))
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
osd objectstore = bluestore
bluestore block size = $((gib << 30))
mon data = $dir/mon
osd data = $dir/osd
run dir = $dir/tmp
crash dir = $dir/tmp
admin socket =
log file = $dir/log/\$name
pid file =
[client.rgw.a]
# Without this it waits for ever for keys that nobody has.
ms mon client mode = crc
# Without the last one, each small answer waits 40 ms for an acknowledgement (Nagle).
rgw frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
CONF
}

launch() {
    export CEPH_CONF=$dir/ceph.conf
    case $1 in
    mon)
        if [ ! -f mon/keyring ]; then
            logged mkfs ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
            logged mkfs monmaptool --create --addv a "[v2:127.0.0.1:$mon]" --fsid "$fsid" map
            logged mkfs ceph-mon --mkfs -i a --monmap map --keyring keyring
        fi
        spawn mon ceph-mon -i a -f
        ;;
    osd)
        if [ ! -f osd/ready ]; then
            local id
            id=$(cat /proc/sys/kernel/random/uuid)
            logged mkfs ceph osd new "$id"
            logged mkfs ceph-osd -i 0 --mkfs --osd-uuid "$id"
        fi
        spawn osd ceph-osd -i 0 -f
        ;;
    rgw) spawn rgw radosgw -n client.rgw.a -f ;;
    esac
}

answers() {
    case $1 in
    mon) timeout 5 ceph -s ;;
    osd) timeout 5 ceph osd stat | grep ' 1 up' ;;
    rgw) curl -sS -o tmp/answer "$AWS_ENDPOINT_URL" ;;
    esac
}

finish() {
    logged user radosgw-admin user create --uid=test --display-name=test \
        --access-key="$AWS_ACCESS_KEY_ID" --secret-key="$AWS_SECRET_ACCESS_KEY"
}

verb_bucket() { s3_bucket "$@"; }

main "$@"

#!/usr/bin/env bash
# A stand-in for Google Cloud Storage (gcs.py).
#
# gcs.sh start|stop DIR
# gcs.sh bucket DIR NAME
# gcs.sh kill|restart DIR gcs        (it is empty after that)
. "$(dirname "$0")/common.sh"
daemons=(gcs)

prepare() {
    need python3=python3
    ports port
    remember port
    cat >account.json <<CONF
{"gcs_base_url": "http://127.0.0.1:$port", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}
CONF
    tell GOOGLE_SERVICE_ACCOUNT="$dir/account.json" IMGSNAP_TEST_GCS="http://127.0.0.1:$port" GOOGLE_ALLOW_HTTP=true
}

launch() { spawn gcs python3 "$here/gcs.py" "$port"; }
answers() { curl -sS -o tmp/answer "$IMGSNAP_TEST_GCS"; }
verb_bucket() { curl -sS -f -X PUT "$IMGSNAP_TEST_GCS/$1"; }

main "$@"

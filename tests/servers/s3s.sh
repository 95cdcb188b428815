#!/usr/bin/env bash
# s3s-fs, an S3 server in Rust that keeps objects as files (from crates.io; built in minutes, and so only if IMGSNAP_TEST_INSTALL=all).
#
# s3s.sh start|stop DIR
# s3s.sh bucket DIR NAME
# s3s.sh s3 DIR METHOD /BUCKET[/KEY][?QUERY] [CURL OPTION...]
# s3s.sh kill|restart DIR s3s
#
# A PUT with `If-None-Match: *` may have several winners if they come at once: it is checked, but not in one step.
. "$(dirname "$0")/common.sh"
daemons=(s3s)

install() { CARGO_TARGET_DIR=$1/target cargo install --quiet --locked --root "$1" --features binary s3s-fs@0.14.1 && rm -rf "$1/target"; }

prepare() {
    command -v cargo >/dev/null || [ -d "$cache/s3s-fs-0.14.1" ] || skip "no cargo here"
    cached slowly s3s-fs-0.14.1 install
    ports port
    remember cached port
    mkdir data
    tell AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test-secret \
        AWS_REGION=us-east-1 AWS_ALLOW_HTTP=true
}

launch() {
    spawn s3s "$cached/bin/s3s-fs" --host 127.0.0.1 --port "$port" \
        --access-key "$AWS_ACCESS_KEY_ID" --secret-key "$AWS_SECRET_ACCESS_KEY" "$dir/data"
}
answers() { curl -sS -o tmp/answer "$AWS_ENDPOINT_URL"; }
verb_bucket() { s3_bucket "$@"; }

main "$@"

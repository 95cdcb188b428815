#!/usr/bin/env bash
# moto, an S3 server in Python that keeps everything in memory (from PyPI).
#
# moto.sh start|stop DIR
# moto.sh bucket DIR NAME [--versioned] [--object-lock]
# moto.sh s3 DIR METHOD /BUCKET[/KEY][?QUERY] [CURL OPTION...]
# moto.sh kill|restart DIR moto        (it is empty after that)
. "$(dirname "$0")/common.sh"
daemons=(moto)

install() {
    python3 -m venv "$1" && "$1/bin/pip" install -q --no-cache-dir 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5
}

prepare() {
    need python3=python3
    # It does not outlive the Python that it was made with.
    [ -x "$cache/moto-5.2.5/bin/python3" ] || rm -rf "$cache/moto-5.2.5"
    [ -d "$cache/moto-5.2.5" ] || python3 -c 'import ensurepip' 2>/dev/null || need ensurepip=python3-venv
    cached moto-5.2.5 install
    ports port
    remember cached port
    tell AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test-secret \
        AWS_REGION=us-east-1 AWS_ALLOW_HTTP=true
}

launch() { spawn moto "$cached/bin/python3" -m moto.server -H 127.0.0.1 -p "$port"; }
answers() { curl -sS -o tmp/answer "$AWS_ENDPOINT_URL"; }
verb_bucket() { s3_bucket "$@"; }

main "$@"

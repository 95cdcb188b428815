#!/usr/bin/env bash
# Azurite, an Azure blob server in JavaScript (from npm), for the account that every such emulator has, whose key is public.
#
# azurite.sh start|stop DIR
# azurite.sh bucket DIR NAME        makes a container
# azurite.sh kill|restart DIR azurite [SIGNAL]    (what was written in the last seconds may be lost)
#
# To delete is slow: when a thousand blobs and more go in batches on a busy machine, connections are broken off, or take longer than
# the 30 s of object_store.
. "$(dirname "$0")/common.sh"
# The last release for Node 20.
version=3.35.0
daemons=(azurite)

install() {
    npm install --prefix "$1" --cache "$1/npm" --no-audit --no-fund --no-update-notifier --ignore-scripts "azurite@$version" &&
        rm -rf "$1/npm"
}

prepare() {
    command -v node >/dev/null || skip "no node here"
    [ -d "$cache/azurite-$version" ] || command -v npm >/dev/null || skip "no npm here"
    need python3=python3
    cached "azurite-$version" install
    ports port
    remember cached port
    tell AZURE_STORAGE_USE_EMULATOR=true AZURITE_BLOB_STORAGE_URL="http://127.0.0.1:$port" \
        AZURE_STORAGE_ENDPOINT="http://127.0.0.1:$port/devstoreaccount1" AZURE_STORAGE_ACCOUNT_NAME=devstoreaccount1 \
        AZURE_STORAGE_ACCOUNT_KEY=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw== \
        AZURE_ALLOW_HTTP=true
}

# A client that takes a connection again which it has not used for a while must not find it closed.
launch() {
    spawn azurite node "$cached/node_modules/azurite/dist/src/blob/main.js" --blobHost 127.0.0.1 --blobPort "$port" \
        --location "$dir/data" --blobKeepAliveTimeout 60 --silent --skipApiVersionCheck --disableTelemetry
}

answers() { curl -sS -o tmp/answer "$AZURITE_BLOB_STORAGE_URL"; }

sign() {
    python3 -c 'import base64, hmac, sys
key, text = base64.b64decode(sys.argv[1]), sys.stdin.buffer.read()
print(base64.b64encode(hmac.digest(key, text, "sha256")).decode())' "$AZURE_STORAGE_ACCOUNT_KEY"
}

verb_bucket() {
    local date version=2021-12-02 path=/devstoreaccount1/$1 signature
    date=$(LC_ALL=C TZ=GMT date '+%a, %d %b %Y %H:%M:%S GMT')
    # What is signed: the method, eleven headers that are empty, those of Azure, the account, and the path, in which it stands again.
    signature=$(printf 'PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:%s\nx-ms-version:%s\n/devstoreaccount1%s\nrestype:container' \
        "$date" "$version" "$path" | sign)
    curl -sS -f -X PUT -H "x-ms-date: $date" -H "x-ms-version: $version" -H 'Content-Length:' \
        -H "Authorization: SharedKey devstoreaccount1:$signature" "$AZURITE_BLOB_STORAGE_URL$path?restype=container"
}

main "$@"

# What a contributor runs. CI runs `just check` and nothing else.

# Formatting, lints, documentation and tests
check: fmt-check lint doc test

fmt-check:
    cargo fmt --all --check

lint:
    cargo clippy --workspace --all-targets -- -D warnings
    # The library alone, without what the program needs.
    cargo clippy --lib --no-default-features -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

test:
    cargo test

# Every fault of every request to a store, of every system call, and a kill before each (strace; tracked images: root)
faults:
    IMGSNAP_FAULTS=all cargo test --test protocol -- --nocapture each_request
    IMGSNAP_FAULTS=all cargo test --test faults_syscalls -- --test-threads 1

# The commit protocol, explored with more faults, deaths and days at once (tests/protocol)
model:
    IMGSNAP_MODEL=deep cargo test --test protocol -- --nocapture nothing_is_lost

# The real code under so many random schedules of a store without locks
schedules count="1000000":
    #!/usr/bin/env bash
    set -euo pipefail
    cargo test --release --test protocol --no-run
    jobs=() cpus=$(nproc) each=$(( {{count}} / $(nproc) ))
    for (( cpu = 0; cpu < cpus; cpu++ )); do
        # The hosts of a schedule take turns, and to wake one on another processor takes longer than its turn.
        IMGSNAP_SCHEDULES_FROM=$(( cpu * each )) IMGSNAP_SCHEDULES=$each \
            taskset -c "$cpu" cargo test --release --test protocol -- --nocapture schedules &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job"; done

# Random verbs on random images for so long, with kills, faults and damage, held against a model
soak time="30min" *args:
    cargo test --release --test soak -- --for {{time}} {{args}}

# The soak, the faults of system calls, and every verb on servers, over encrypted repositories
sealed time="5min":
    #!/usr/bin/env bash
    set -euo pipefail
    key=$(mktemp) && trap 'rm -f "$key"' EXIT
    head -c 32 /dev/urandom >"$key"
    export IMGSNAP_KEY_FILE=$key
    cargo test --test faults_syscalls
    cargo test --test stores -- every_verb
    cargo test --release --test soak -- --for {{time}}

# Repositories on every kind of server that can be had here, with more faults (tests/servers/README.md)
servers *args:
    IMGSNAP_SERVERS=all cargo test --test stores -- --nocapture --test-threads 1 {{args}}

# Twenty domains of libvirt with twenty increments each, while everybody is killed
domains count="20":
    IMGSNAP_DOMAINS={{count}} cargo test --test interop -- --nocapture whoever_is_killed_and_whatever

# Fleets of images on Spark and YARN, with workers, drivers and nodes killed
fleet:
    IMGSNAP_SERVERS=all cargo test --test stores -- --nocapture --test-threads 1 engines::

# Databases that write while they are snapshotted, so many times
services rounds="20":
    IMGSNAP_SERVICES={{rounds}} cargo test --test interop -- --nocapture services::

# Real guests, which are snapshotted, killed and rolled back (TESTING.md); scenarios and options as arguments
machines *args:
    cargo test --release --test machines -- --run {{args}}

# The unit tests and every verb that maps files, under valgrind
valgrind:
    tests/memory.sh valgrind

# The same, built with AddressSanitizer, which needs a nightly toolchain
address:
    tests/memory.sh address

# Put the formatting right
fmt:
    cargo fmt --all

# The fuzz targets, which are a project of their own, against the library as it is
fuzz-check:
    RUSTFLAGS="-D warnings" cargo check --manifest-path fuzz/Cargo.toml

# Fuzz each target for so many seconds (fuzz/README.md)
fuzz SECONDS="60":
    fuzz/run {{SECONDS}}

# Write the golden files that are missing; those that exist are never touched
bless:
    IMGSNAP_BLESS=1 cargo test --test engine -- format_spec:: damaged:: compatibility:: base_of::

# Each byte of small files flipped, those of blocks included
flips:
    IMGSNAP_FLIPS=all cargo test --test engine corruption::

# Histories in which the power goes, as many as that, at full speed
power-loss histories="100000":
    IMGSNAP_HISTORIES={{histories}} cargo test --release --test engine -- --nocapture whatever_is_lost

# The Debian package, in target/debian (packaging/README.md)
package *args:
    packaging/build.sh {{args}}

# The same, installed, used, upgraded, removed and purged in a clean root (root, debootstrap, a mirror)
package-try:
    packaging/try.sh

# The units for systemd, as systemd-analyze sees them
units:
    packaging/check.sh

# One program for every Linux on x86-64, without libraries, in target/x86_64-unknown-linux-musl/release (musl-tools)
static:
    rustup target add x86_64-unknown-linux-musl
    cargo build --release --locked --target x86_64-unknown-linux-musl

#!/usr/bin/env bash
# Builds the Debian package. Arguments go to cargo-deb (--deb-revision 2, --output DIR); the last line is the path of
# the package.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
# cargo-deb takes its files from there, wherever the rest is built.
made=target/package

if ! command -v cargo-deb >/dev/null && [ ! -x "$target/tools/bin/cargo-deb" ]; then
    # It runs for seconds: to optimise it would take longer than all its work.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --locked --quiet --root "$target/tools" cargo-deb
fi
PATH=$PATH:$(realpath "$target")/tools/bin

cargo build --release --locked
rm -rf "$made/man" "$made/completions"
mkdir -p "$made/man" "$made/completions"
"$target/release/imgsnap" man "$made/man"
"$target/release/imgsnap" completions bash >"$made/completions/imgsnap.bash"
"$target/release/imgsnap" completions zsh >"$made/completions/_imgsnap"
"$target/release/imgsnap" completions fish >"$made/completions/imgsnap.fish"
cargo deb --no-build "$@"

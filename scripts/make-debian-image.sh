#!/usr/bin/env bash
# Make the image `debian:latest` (Debian 12, small) with mmdebstrap from this machine's own apt configuration, straight
# into an image store (no daemon needed). The tarball is kept in ${XDG_CACHE_HOME:-~/.cache}/drupe/images, so that only
# the first run needs the network. Does nothing when the store has the image, unless --force.
#   make-debian-image.sh [--root DIR] [--tag NAME] [--suite SUITE] [--include PACKAGE,…] [--force]
# --include: further packages; an image with other packages has a tarball of its own.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=/var/lib/drupe/images
tag=debian:latest
suite=bookworm
include=
force=
while [ $# -gt 0 ]; do
    case $1 in
        --root) root=$2; shift 2 ;;
        --tag) tag=$2; shift 2 ;;
        --suite) suite=$2; shift 2 ;;
        --include) include=$2; shift 2 ;;
        --force) force=--force; shift ;;
        *) echo "make-debian-image: unknown option $1" >&2; exit 2 ;;
    esac
done
python=${PYTHON:-$here/../.venv/bin/python}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/images
tarball=$cache/debian-$suite${include:+-$(sha256sum <<<"$include" | cut -c1-8)}.tar

import() { "$python" "$here/import-root-tar.py" --root "$root" --tag "$tag" "$@"; }

if [ -z "$force" ] && import --check; then exit 0; fi
if [ -n "$force" ]; then rm -f "$tarball"; fi
if [ ! -s "$tarball" ]; then
    command -v mmdebstrap >/dev/null || { echo "make-debian-image: no mmdebstrap (apt-get install mmdebstrap)" >&2; exit 1; }
    mkdir -p "$cache"
    # The machine's own sources, proxies and mirrors are used to fetch, and left out of the image together with what no
    # container reads (documentation, translations, apt's lists).
    mapfile -t sources < <(grep -ls -w "$suite" /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources})
    mapfile -t settings < <(apt-config dump --no-empty --format '%F "%v"%n' Acquire |
        sed -n -E 's/^Acquire::(http|https|Retries|Check)/--aptopt=&/p')
    mmdebstrap --quiet --variant=minbase --include="ca-certificates${include:+,$include}" "${settings[@]}" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -rf "$1"/etc/apt/sources.list.d/* "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/var/lib/apt/lists/*' \
        --customize-hook=': >"$1"/etc/apt/sources.list' \
        "$suite" "$tarball.partial.tar" "${sources[@]}"
    mv "$tarball.partial.tar" "$tarball"
fi
import "$tarball"

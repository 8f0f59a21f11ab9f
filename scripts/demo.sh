#!/usr/bin/env bash
# `make demo`: every main feature once, on the images `busybox` and `debian`. Each command is printed, then its output, and
# checked: the first surprise ends the demo with exit 1. It uses pods named demo-* and removes them, also on failure.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
IMAGES=${DRUPE_ROOT:-/var/lib/drupe}/images
PODS='demo-pod demo-web demo-limits demo-oom demo-debian'
WORK=$(mktemp -d)
PORT=${DEMO_PORT:-8097}

remove_pods() {
    local pod
    for pod in $PODS; do drupe pod rm --force "$pod" >/dev/null 2>&1 || true; done
}
leave() { # DEMO_STOP_DAEMON: for tests, which run the demo with a daemon of its own
    remove_pods
    if [ -n "${DEMO_STOP_DAEMON:-}" ]; then
        drupe system shutdown >/dev/null 2>&1 || true
        kill "$(cat "$DRUPE_RUN/keeper.pid")" 2>/dev/null || true
    fi
    rm -rf "$WORK"
}
trap leave EXIT

title() { printf '\n\033[1m# %s\033[0m\n' "$*"; }

show() { # show COMMAND…: print it, run it, print its output; both stay in $output, its exit code in $code
    printf '$ %s\n' "${*@Q}" | sed "s/'\([a-zA-Z0-9_.,:=/@-]*\)'/\1/g"
    code=0
    output=$("$@" 2>&1) || code=$?
    [ -z "$output" ] || printf '%s\n' "$output"
    [ "$code" = 0 ] || printf '[exit code %s]\n' "$code"
}

expect() { # expect TEXT [EXIT CODE]: what the last command must have said, and how it must have ended
    [ "$code" = "${2:-0}" ] || { printf 'demo: exit code %s expected\n' "${2:-0}" >&2; exit 1; }
    [[ "$output" == *"$1"* ]] || { printf 'demo: output with "%s" expected\n' "$1" >&2; exit 1; }
}

fetch() { # fetch PORT: what a web server on this host's port answers, once it listens
    local try
    for try in {1..50}; do { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null && break; sleep 0.1; done
    printf 'GET / HTTP/1.0\r\n\r\n' >&3
    timeout 5 cat <&3
    exec 3>&-
}

SECONDS=0
title "Images: busybox from this host's static binary, a small Debian from its packages (once)"
.venv/bin/python scripts/make-busybox-image.py --root "$IMAGES"
scripts/make-debian-image.sh --root "$IMAGES"
remove_pods
show drupe images; expect debian; expect busybox

title 'Run a command; its exit code is ours; standard input flows'
show drupe run --rm busybox echo hello; expect hello
show drupe run --rm busybox sh -c 'exit 7'; expect '' 7
show drupe run --rm debian cat /etc/debian_version; expect 1
show bash -c 'echo from a pipe | drupe run -i --rm busybox cat'; expect 'from a pipe'
show drupe run --rm --pull never no-such-image true; expect 'hint:' 125

title 'A pod of two containers: they share localhost'
show drupe pod run --network none demo-pod
show drupe run -d --pod demo-pod --name server busybox sh -c 'echo over localhost > index.html; httpd -f -p 80'; expect ''
show drupe run --rm --pod demo-pod busybox sh -c 'until wget -qO- http://127.0.0.1; do sleep 0.1; done 2>/dev/null'
expect 'over localhost'

title 'A published port answers from the host; a bind mount shows a directory of the host'
echo 'a file of the host' >"$WORK/index.html"
show drupe run -d --name demo-web -p "$PORT:80" -v "$WORK:/www:ro" busybox httpd -f -p 80 -h /www; expect ''
show fetch "$PORT"; expect 'a file of the host'

title 'Look into a running container: exec, cp both ways, logs, top'
show drupe run -d --name demo-debian debian sh -c 'echo started; exec sleep 1000'; expect ''
show drupe exec demo-debian sh -c 'echo "$0 in $(cat /etc/hostname)"'; expect 'sh in'
show drupe cp "$WORK/index.html" demo-debian:/tmp/copied; expect ''
show drupe cp demo-debian:/etc/debian_version "$WORK/"; expect ''
show cat "$WORK/debian_version"; expect 12
show drupe logs demo-debian; expect started
show drupe top demo-debian; expect sleep

title 'Pause and resume'
show drupe pause demo-debian; expect ''
show drupe ps; expect paused
show drupe resume demo-debian; expect ''

title 'Limits hold, and what is killed at its limit says so'
show drupe run -d --name demo-limits --memory 64m --cpus 0.5 --pids-limit 32 busybox sleep 1000; expect ''
show drupe stats --no-stream demo-limits; expect 'demo-limits'
show drupe update --memory 96m demo-limits; expect ''
show drupe run --name demo-oom --memory 32m --network none busybox tail /dev/zero; expect '' 137
show bash -c "drupe inspect demo-oom | grep -o OOMKilled | head -1"; expect OOMKilled

title 'A time limit ends what ignores every signal'
show drupe run --rm --network none --timeout 500ms busybox sh -c "trap '' TERM INT; while :; do :; done"
expect 'its time was up' 137

title 'What happened, and what can run here'
show bash -c "drupe events --no-follow --since ${SECONDS}s | grep -v memory_pressure | tail -n 20"; expect oom
show drupe doctor; expect runc

title 'A pod in a machine of its own: another kernel answers (slow where KVM is of no use)'
drupe guest inspect default >/dev/null 2>&1 || { show drupe guest build --quiet; expect ''; } # once: it may be offline later
show drupe run --sandbox vm --rm busybox uname -sr; expect 'Linux 6.1'

title 'Every kind of sandbox that this host can run, from one list of images; and which one is the strongest here'
show scripts/demo-kinds.py; expect runc
show drupe system choose --sandbox auto --network none busybox; expect 'sandbox: '

printf '\nThe demo passed in %s s. The command is .venv/bin/drupe; the images busybox and debian are there to use.\n' "$SECONDS"

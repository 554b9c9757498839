#!/usr/bin/env bash
# A refresh of one recipe, for cron: opens a tunnel to the head of cluster.yaml, submits, follows, closes the tunnel.
#
#   deploy/nightly.sh RECIPE [--set A.B=C]...
#
# Exit status: that of `semiprune submit`; 1 if there is no tunnel after five minutes.
set -euo pipefail
set -m # what runs beside is a process group each: the ssh that `ray dashboard` starts would outlive it
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH

tunnel='' submission=''
close() {
    for group in $submission $tunnel; do
        kill -- "-$group" 2>/dev/null || true
        wait "$group" 2>/dev/null || true
    done
}
trap close EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

# A port of its own: another tunnel, perhaps to another cluster, may be open, or another night still be followed.
port=$((20000 + RANDOM % 10000))
while listening; do port=$((20000 + RANDOM % 10000)); done

ray dashboard cluster.yaml --port "$port" </dev/null &
tunnel=$!
until listening; do
    if ((SECONDS > ${TUNNEL_SECONDS:-300})) || ! kill -0 "$tunnel" 2>/dev/null; then
        echo "nightly.sh: no tunnel to the head: is the cluster up, and do AWS credentials and the key in ~/.ssh work?" >&2
        exit 1
    fi
    sleep 0.2
done

semiprune submit "$@" --refresh --address "http://127.0.0.1:$port" </dev/null &
submission=$!
wait "$submission" # beside, so that a signal is heard at once; the cluster's job goes on then

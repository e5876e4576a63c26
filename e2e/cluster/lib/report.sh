# shellcheck shell=bash
# Progress and failures go to standard error: standard output holds only what a caller may evaluate.

say() {
  printf 'cluster: %s\n' "$*" >&2
}

fail() {
  printf 'cluster: error: %s\n' "$*" >&2
  exit 1
}

# wait_for SECONDS WHAT COMMAND...: polls until the command succeeds; a daemon that died meanwhile ends the wait at once.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    fail_on_dead_daemon
    ((SECONDS < deadline)) || fail "waited in vain for $what; the logs are in $LOGS; then: e2e/cluster/down, and up again"
    sleep 0.1
  done
}

require_root() {
  ((EUID == 0)) || fail "the cluster needs root (namespaces, mounts, packet rules): run this with sudo"
}

# One `up`, `down` or `api` at a time on the machine. Daemons are started with descriptor 9 closed.
take_lock() {
  mkdir -p "${LOCK%/*}"
  exec 9>"$LOCK"
  flock -n 9 || {
    say "waiting for another e2e/cluster command to finish"
    flock -w 1800 9 || fail "another e2e/cluster command has held $LOCK for 30 minutes: see 'fuser -v $LOCK'"
  }
}

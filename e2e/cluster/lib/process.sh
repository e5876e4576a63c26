# shellcheck shell=bash
# Daemons: started once, recorded by process id and start time, so that a reused id is never taken for ours.

# Fields of /proc/PID/stat after the name, which may itself hold blanks and parentheses; start time is the 20th.
start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  read -ra stat <<<"${stat##*) }"
  # A zombie is as good as gone: it waits for whoever started it.
  [[ ${stat[0]} != Z ]] && echo "${stat[19]}"
}

# Prints the process id when the daemon that was recorded under NAME is still the one that runs.
running() {
  local pid started
  [[ -s $RUN/processes/$1 ]] && read -r pid started <"$RUN/processes/$1" &&
    [[ $(start_time "$pid") == "$started" ]] && echo "$pid"
}

# Those that this very command has started, and that must not end while it waits. One that it found dead is about to be
# started, and one that it stops is meant to die.
STARTED=()

# start NAME COMMAND...: nothing to do when it runs already. The environment is empty but for what is listed, so that
# no proxy setting or toolchain variable of the caller reaches the cluster. WEFT_CLUSTER marks the process and its
# shims for `down`, which must find them even when `up` was killed between the start and the record.
start() {
  local name=$1 pid
  shift
  running "$name" >/dev/null && return
  STARTED+=("$name")
  mkdir -p "$RUN/processes"
  setsid env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    WEFT_CLUSTER="$RUN" "$@" </dev/null >>"$LOGS/$name.log" 2>&1 9>&- &
  pid=$!
  echo "$pid $(start_time "$pid")" >"$RUN/processes/$name"
}

# stop NAME: ends it without notice. Nothing here needs a farewell: state is either thrown away or on disk.
stop() {
  local pid
  if pid=$(running "$1"); then
    kill -KILL "$pid" 2>/dev/null || true
    wait_for 10 "$1 to end" gone "$1"
  fi
  rm -f "$RUN/processes/$1"
}

gone() {
  ! running "$1"
}

fail_on_dead_daemon() {
  local name
  for name in "${STARTED[@]}"; do
    running "$name" >/dev/null && continue
    tail -n 15 "$LOGS/$name.log" >&2
    fail "$name has ended; the whole log: $LOGS/$name.log"
  done
}

# shellcheck shell=bash
# Takes everything away, whatever state `up` left it in. It trusts no record alone: daemons and shims carry a mark in
# their environment, pods are below one cgroup, mounts are below two folders.

tear_down() {
  stop_everything
  unmount_everything
  stop_network
  remove_cgroups
  restore_sysctls
  remove_files
}

# containerd first: it would otherwise notice what goes, and clean up at the same time.
stop_everything() {
  local deadline=$((SECONDS + 30)) pids
  collect_shim_sockets
  while :; do
    mapfile -t pids < <(our_processes)
    ((${#pids[@]})) || break
    ((SECONDS < deadline)) || fail "processes ${pids[*]} do not end; see what they wait for: cat /proc/${pids[0]}/{cmdline,stack}"
    kill -KILL "${pids[@]}" 2>/dev/null || true
    sleep 0.05
  done
}

# Shims listen in a folder whose name is built into containerd, shared with any other containerd of the machine.
collect_shim_sockets() {
  mkdir -p "$RUN"
  find "$RUN/containerd" -path '*/io.containerd.runtime.v2.task/*' -name address -exec cat {} + -exec echo \; 2>/dev/null |
    sed 's|unix://|\n|g' | grep '^/run/containerd/s/' >>"$RUN/shim-sockets" || true
}

our_processes() {
  {
    # Both fail when there is nothing to find, and when what they look at ends meanwhile.
    grep -lszxF "WEFT_CLUSTER=$RUN" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
    find /sys/fs/cgroup -path "*/$CGROUP/*" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  } | sort -un | living
}

# A killed process stays in its cgroup's list and in /proc until its parent has collected it.
living() {
  local pid
  while read -r pid; do
    [[ -z $(start_time "$pid") ]] || echo "$pid"
  done
}

our_mounts() {
  awk -v run="$RUN/" -v state="$STATE/" 'index($5, run) == 1 || index($5, state) == 1 {print $5}' /proc/self/mountinfo | tac
}

unmount_everything() {
  local deadline=$((SECONDS + 15)) mount
  while [[ -n $(our_mounts) ]]; do
    ((SECONDS < deadline)) || fail "cannot unmount: $(our_mounts | tr '\n' ' ')"
    while read -r mount; do
      umount "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null || true
    done < <(our_mounts)
  done
}

remove_cgroups() {
  local deadline=$((SECONDS + 15))
  while find /sys/fs/cgroup -depth -type d -path "*/$CGROUP*" -exec rmdir {} + 2>/dev/null; [[ -n $(our_cgroups) ]]; do
    ((SECONDS < deadline)) || fail "cgroups remain: $(our_cgroups | head -n 3)"
    sleep 0.05
  done
}

our_cgroups() {
  find /sys/fs/cgroup -type d -name "$CGROUP" 2>/dev/null
}

# Credentials go last: as long as they are there, `up` and `down` know that there was a cluster.
remove_files() {
  local dir
  if [[ -s $RUN/shim-sockets ]]; then
    xargs -r rm -f <"$RUN/shim-sockets"
  fi
  if [[ -s $RUN/new-dirs ]]; then
    while read -r dir; do
      rm -rf --one-file-system "$dir"
    done <"$RUN/new-dirs"
  fi
  rm -rf --one-file-system "$STATE"
  rm -rf --one-file-system "$RUN"
}

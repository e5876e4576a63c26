# shellcheck shell=bash
# The pod bridge and the rules that keep the cluster on this machine.

start_network() {
  refuse_taken_addresses
  save_sysctls
  load_bridge_netfilter
  add_bridge
  add_rules
  sysctl -qw net.ipv4.ip_forward=1
  accept_in_closed_forward_chain
}

refuse_taken_addresses() {
  local cidr taken
  for cidr in "$POD_CIDR" "$SERVICE_CIDR"; do
    taken=$(ip -4 route show root "$cidr" | grep -vw "dev $BRIDGE" || true)
    [[ -z $taken ]] || fail "$cidr is in use on this machine ($taken): the cluster needs it for itself"
  done
}

save_sysctls() {
  local name
  [[ ! -e $RUN/sysctls ]] || return 0
  for name in "${SYSCTLS[@]}"; do
    sysctl -e "$name" 2>/dev/null
  done >"$RUN/sysctls.new"
  mv "$RUN/sysctls.new" "$RUN/sysctls"
}

# Pods on one bridge answer each other directly. The answer to a call by ClusterIP must pass the translation all the
# same, which it does only where bridged packets are shown to netfilter.
load_bridge_netfilter() {
  [[ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]] || modprobe br_netfilter ||
    fail "this kernel has no br_netfilter, without which pods on one node cannot call services"
  # The module brings its own default, which is the value to go back to.
  grep -q '^net.bridge' "$RUN/sysctls" || sysctl net.bridge.bridge-nf-call-iptables >>"$RUN/sysctls"
  sysctl -qw net.bridge.bridge-nf-call-iptables=1
}

# Service addresses that no rule translates end on the bridge, where nobody has them. An unreachable route would also
# stop the node's own calls, which are routed first and translated afterwards.
add_bridge() {
  ip link show "$BRIDGE" >/dev/null 2>&1 || ip link add "$BRIDGE" address "$BRIDGE_MAC" type bridge
  ip addr replace "$NODE_IP/${POD_CIDR#*/}" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  ip route replace "$SERVICE_CIDR" dev "$BRIDGE" src "$NODE_IP"
}

# Pods reach pods and the node; nothing else reaches them. Rejected, not dropped: a test that calls out sees it at once.
add_rules() {
  nft -f - <<EOF
table inet $NFT_TABLE
delete table inet $NFT_TABLE
table inet $NFT_TABLE {
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    iifname != { "lo", "$BRIDGE" } ip daddr { $POD_CIDR, $SERVICE_CIDR } drop
  }
  chain forward {
    type filter hook forward priority filter - 5; policy accept;
    iifname "$BRIDGE" oifname != "$BRIDGE" reject with icmpx type admin-prohibited
    iifname != "$BRIDGE" oifname "$BRIDGE" drop
  }
}
EOF
}

# Docker closes the FORWARD chain, and an accept elsewhere does not open it.
accept_in_closed_forward_chain() {
  nft list chain ip filter FORWARD 2>/dev/null | grep -q 'policy drop' || return 0
  forward_rule -C 2>/dev/null || forward_rule -I
}

forward_rule() {
  iptables "$1" FORWARD -i "$BRIDGE" -o "$BRIDGE" -m comment --comment "$FORWARD_NOTE" -j ACCEPT
}

stop_network() {
  local port
  for port in $(ip -o link show master "$BRIDGE" 2>/dev/null | awk -F': ' '{sub(/@.*/, "", $2); print $2}'); do
    ip link delete "$port" 2>/dev/null || true
  done
  if nft list chain ip filter FORWARD 2>/dev/null | grep -q "$FORWARD_NOTE"; then
    forward_rule -D
  fi
  if ip link show "$BRIDGE" >/dev/null 2>&1; then
    ip link delete "$BRIDGE"
  fi
  for table in "inet $NFT_TABLE" "ip kube-proxy" "ip6 kube-proxy"; do
    # shellcheck disable=SC2086  # family and name are two words
    nft delete table $table 2>/dev/null || true
  done
  if command -v conntrack >/dev/null; then
    for cidr in "$POD_CIDR" "$SERVICE_CIDR"; do
      conntrack -D -d "$cidr" >/dev/null 2>&1 || true
      conntrack -D -s "$cidr" >/dev/null 2>&1 || true
    done
  fi
}

# Only on the boot that changed them: after a reboot the file tells of values that nobody changed.
restore_sysctls() {
  [[ -s $RUN/sysctls ]] || return 0
  if [[ $(cat "$RUN/boot" 2>/dev/null) == "$(cat /proc/sys/kernel/random/boot_id)" ]]; then
    sysctl -qp "$RUN/sysctls"
  fi
}

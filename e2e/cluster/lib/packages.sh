# shellcheck shell=bash
# What comes from Debian. A program that is there already, from wherever, is used as it is.

# command or file : package
NEEDED=(
  etcd:etcd-server containerd:containerd containerd-shim-runc-v2:containerd runc:runc nft:nftables
  conntrack:conntrack iptables:iptables ip:iproute2 openssl:openssl jq:jq sysctl:procps
)

install_packages() {
  local missing need
  missing=()
  for need in "${NEEDED[@]}"; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
  done
  cni_plugins >/dev/null || missing+=(containernetworking-plugins)
  ((${#missing[@]})) || return 0
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  command -v apt-get >/dev/null || fail "missing: ${missing[*]} (Debian's names); install them by other means and run up again"
  say "installing from Debian's packages: ${missing[*]}"
  apt_install "${missing[@]}"
  keep_services_off "${missing[@]}"
}

# --no-remove: on a machine with Docker, Debian's containerd would otherwise push Docker's own away.
apt_install() {
  local log=$LOGS/apt.log policy=/usr/sbin/policy-rc.d own_policy=
  if [[ ! -e $policy ]]; then
    own_policy=1
    printf '#!/bin/sh\n# Put here by the test cluster while it installs packages: their services must not start.\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  if ! apt_try "$@" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get could not install $*: see $log"
  fi
  [[ -z $own_policy ]] || rm -f "$policy"
  trap - EXIT
}

apt_try() {
  local install=(apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends --no-remove "$@")
  export DEBIAN_FRONTEND=noninteractive
  # A list of packages from last month names files that are gone, so a failure is worth one update.
  "${install[@]}" || { apt-get update -q && "${install[@]}"; }
}

# The packages enable their services for the next boot; the cluster runs its own instances instead.
keep_services_off() {
  local package
  command -v systemctl >/dev/null || return 0
  for package in "$@"; do
    case $package in
      etcd-server) systemctl disable -q etcd.service 2>/dev/null || true ;;
      containerd) systemctl disable -q containerd.service 2>/dev/null || true ;;
    esac
  done
}

# Prints the folder of the CNI plugins.
cni_plugins() {
  local dir
  for dir in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
    if [[ -x $dir/bridge && -x $dir/host-local && -x $dir/loopback ]]; then
      echo "$dir"
      return
    fi
  done
  return 1
}

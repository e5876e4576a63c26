# shellcheck shell=bash
# What the cluster is called, where it lives and which addresses it has. Everything else reads it from here.
# shellcheck disable=SC2034  # read by the scripts that source this one

# Fixed, not settable: a machine has one of them, and `down` must find what an `up` from another checkout left.
RUN=/run/weft-cluster            # sockets, configuration, credentials, process records
STATE=/var/lib/weft-cluster      # etcd, images, volumes
LOCK=/run/lock/weft-cluster.lock
CGROUP=weft-cluster              # all pods are below it, in every hierarchy
BRIDGE=weft-pods
BRIDGE_MAC=0a:57:ef:74:00:01     # fixed: a bridge otherwise takes the address of whichever port came first
NFT_TABLE=weft-cluster
NODE=weft
FORWARD_NOTE=weft-cluster        # comment on the rules that we add to somebody else's FORWARD chain

# Survives `down`: what took minutes to build, and the logs of the last run.
CACHE=$(realpath -m "${WEFT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/weft}")/cluster
LOGS=$CACHE/logs
KUBECONFIG_ADMIN=$RUN/kubeconfig

NODE_IP=10.244.0.1               # the bridge's address: the node as pods see it, never the machine's own
POD_CIDR=10.244.0.0/24
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
DNS_SERVICE_IP=10.96.0.10
API_URL=https://$NODE_IP:6443
# etcd's usual ports may be taken by one that is not ours. Certificates, because an API server of somebody's experiment
# that has the wrong port would otherwise share our objects.
ETCD_CLIENT=https://127.0.0.1:10263
ETCD_PEER=https://127.0.0.1:10264
CONTAINERD_SOCKET=$RUN/containerd.sock
PAUSE_IMAGE=weft.dev/pause:1

# What `up`, the kubelet and kube-proxy change and `down` puts back.
SYSCTLS=(
  net.ipv4.ip_forward
  net.bridge.bridge-nf-call-iptables
  kernel.panic
  kernel.panic_on_oops
  kernel.keys.root_maxkeys
  kernel.keys.root_maxbytes
  vm.overcommit_memory
  vm.panic_on_oom
)
# Folders outside of ours whose names are built into upstream's code. `down` removes those that `up` did not find.
FOREIGN_DIRS=(/run/containerd /var/lib/cni /var/lib/kubelet /var/log/containers /var/log/pods /opt/containerd)

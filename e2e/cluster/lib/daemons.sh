# shellcheck shell=bash
# One function for each daemon: its flags, and what tells that it serves.

start_etcd() {
  start etcd etcd --name weft --data-dir "$STATE/etcd" --unsafe-no-fsync \
    --listen-client-urls "$ETCD_CLIENT" --advertise-client-urls "$ETCD_CLIENT" \
    --listen-peer-urls "$ETCD_PEER" --initial-advertise-peer-urls "$ETCD_PEER" --initial-cluster "weft=$ETCD_PEER" \
    --cert-file "$PKI/etcd.crt" --key-file "$PKI/etcd.key" --trusted-ca-file "$PKI/ca.crt" --client-cert-auth \
    --peer-cert-file "$PKI/etcd.crt" --peer-key-file "$PKI/etcd.key" --peer-trusted-ca-file "$PKI/ca.crt" \
    --peer-client-cert-auth
}

# etcd is asked by the API server's own readiness check.
start_apiserver() {
  start kube-apiserver "$RUN/bin/kube-apiserver" \
    --etcd-servers="$ETCD_CLIENT" --etcd-cafile="$PKI/ca.crt" \
    --etcd-certfile="$PKI/apiserver-to-etcd.crt" --etcd-keyfile="$PKI/apiserver-to-etcd.key" \
    --bind-address="$NODE_IP" --advertise-address="$NODE_IP" --secure-port=6443 \
    --service-cluster-ip-range="$SERVICE_CIDR" \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
    --token-auth-file="$RUN/tokens.csv" --authorization-mode=Node,RBAC --allow-privileged=true \
    --enable-admission-plugins=NodeRestriction \
    --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$PKI/ca.crt" \
    --kubelet-client-certificate="$PKI/apiserver-to-kubelet.crt" --kubelet-client-key="$PKI/apiserver-to-kubelet.key" \
    --requestheader-client-ca-file="$PKI/ca.crt" --requestheader-allowed-names=weft-cluster:front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$PKI/front-proxy.crt" --proxy-client-key-file="$PKI/front-proxy.key" \
    --enable-aggregator-routing=true \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$PKI/service-account.pub" --service-account-signing-key-file="$PKI/service-account.key"
  wait_for 180 "the API server" kubectl get --raw /readyz
}

# Without leader election: there is nobody to hand over to. See `api` for what that means when the API server is away.
start_controllers() {
  start kube-controller-manager "$RUN/bin/kube-controller-manager" --leader-elect=false --bind-address=127.0.0.1 \
    --kubeconfig="$RUN/controller-manager.kubeconfig" \
    --authentication-kubeconfig="$RUN/controller-manager.kubeconfig" \
    --authorization-kubeconfig="$RUN/controller-manager.kubeconfig" \
    --use-service-account-credentials --service-account-private-key-file="$PKI/service-account.key" \
    --root-ca-file="$PKI/ca.crt" \
    --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
    --allocate-node-cidrs --cluster-cidr="$POD_CIDR" --node-cidr-mask-size="${POD_CIDR#*/}"
  start kube-scheduler "$RUN/bin/kube-scheduler" --leader-elect=false --bind-address=127.0.0.1 \
    --kubeconfig="$RUN/scheduler.kubeconfig" \
    --authentication-kubeconfig="$RUN/scheduler.kubeconfig" --authorization-kubeconfig="$RUN/scheduler.kubeconfig"
}

start_containerd() {
  start containerd containerd --config "$RUN/containerd.toml"
  wait_for 30 containerd images ls -q
}

start_kubelet() {
  make_cgroup_root
  start kubelet "$RUN/bin/kubelet" --config="$RUN/kubelet.yaml" --kubeconfig="$RUN/kubelet.kubeconfig" \
    --hostname-override="$NODE" --node-ip="$NODE_IP" --root-dir="$STATE/kubelet" --cert-dir="$STATE/kubelet/pki"
}

start_proxy() {
  start kube-proxy "$RUN/bin/kube-proxy" --config="$RUN/proxy.yaml"
}

start_coredns() {
  start coredns "$RUN/bin/coredns" -conf "$RUN/Corefile"
}

kubectl() {
  "$RUN/bin/kubectl" --kubeconfig="$KUBECONFIG_ADMIN" --request-timeout=10s "$@"
}

# images COMMAND...: containerd's image store as the kubelet sees it.
images() {
  ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io images "$@"
}

cgroups_are_v1() {
  [[ $(stat -fc %T /sys/fs/cgroup) == tmpfs ]]
}

# The kubelet wants its root to exist. Below a root of our own, every process of a pod can be found whatever happened.
make_cgroup_root() {
  local hierarchy controller controllers
  if ! cgroups_are_v1; then
    # It also wants each controller there that it finds above, and says which one is missing.
    read -ra controllers </sys/fs/cgroup/cgroup.controllers
    for controller in "${controllers[@]}"; do
      echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
    done
    mkdir -p "/sys/fs/cgroup/$CGROUP"
    return
  fi
  for hierarchy in /sys/fs/cgroup/*/; do
    # Linked names (cpu for cpu,cpuacct) lead to folders that the loop visits anyway.
    [[ -L ${hierarchy%/} || $hierarchy == */unified/ ]] || mkdir -p "$hierarchy$CGROUP"
  done
  # A new cpuset has neither cores nor memory, and no process may enter it before it has both.
  if [[ -d /sys/fs/cgroup/cpuset/$CGROUP ]]; then
    cat /sys/fs/cgroup/cpuset/cpuset.cpus >"/sys/fs/cgroup/cpuset/$CGROUP/cpuset.cpus"
    cat /sys/fs/cgroup/cpuset/cpuset.mems >"/sys/fs/cgroup/cpuset/$CGROUP/cpuset.mems"
  fi
}

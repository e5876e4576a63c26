# shellcheck shell=bash
# The files that the daemons read.

write_configuration() {
  write_containerd_configuration
  write_cni_configuration
  write_kubelet_configuration
  write_proxy_configuration
  write_corefile
}

write_containerd_configuration() {
  cat >"$RUN/containerd.toml" <<EOF
version = 2
root = "$STATE/containerd"
state = "$RUN/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
  address = "$CONTAINERD_SOCKET"

[plugins."io.containerd.internal.v1.opt"]
  path = "$STATE/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = $(lacks_resource_capability && echo true || echo false)
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$(cni_plugins)"
    conf_dir = "$RUN/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$RUN/registries"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$(snapshotter)"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "$RUN/runc"
        SystemdCgroup = false
EOF
  # An image that nobody loaded must fail here, at once, and not by asking a registry somewhere.
  mkdir -p "$RUN/registries/_default"
  echo 'server = "http://127.0.0.1:1"' >"$RUN/registries/_default/hosts.toml"
}

# Without CAP_SYS_RESOURCE (bit 24), runc cannot give a sandbox the score that the kubelet asks for, and no pod starts.
lacks_resource_capability() {
  local effective
  effective=$(awk '$1 == "CapEff:" {print $2}' /proc/self/status)
  ((!(16#$effective >> 24 & 1)))
}

# An overlay cannot lie on another one, so inside of a container the slow snapshotter has to do.
snapshotter() {
  if [[ $(stat -fc %T "$STATE") == overlayfs ]]; then echo native; else echo overlayfs; fi
}

# The default route gives pods what they have elsewhere: a connection to anywhere starts, so a sidecar can capture it.
# It ends at the node, see network.sh.
write_cni_configuration() {
  mkdir -p "$RUN/cni"
  cat >"$RUN/cni/10-pods.conflist" <<EOF
{
  "cniVersion": "0.4.0",
  "name": "weft-cluster-pods",
  "plugins": [{
    "type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "hairpinMode": true,
    "ipam": {
      "type": "host-local", "dataDir": "$RUN/addresses",
      "ranges": [[{"subnet": "$POD_CIDR", "gateway": "$NODE_IP"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
EOF
}

# syncFrequency stays at its default: tests measure how fast a volume changes with and without a nudge.
# Images are loaded by hand and exist nowhere else, so the kubelet must never collect them, however full the disk is.
write_kubelet_configuration() {
  cat >"$RUN/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
healthzBindAddress: 127.0.0.1
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $PKI/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet.crt
tlsPrivateKeyFile: $PKI/kubelet.key
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
clusterDomain: cluster.local
clusterDNS: [$DNS_SERVICE_IP]
resolvConf: /dev/null
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
podLogsDir: $STATE/pod-logs
volumePluginDir: $STATE/volume-plugins
imageGCHighThresholdPercent: 100
evictionHard:
  memory.available: 100Mi
  nodefs.available: 0%
  nodefs.inodesFree: 0%
  imagefs.available: 0%
  imagefs.inodesFree: 0%
EOF
}

write_proxy_configuration() {
  cat >"$RUN/proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $NODE
clusterCIDR: $POD_CIDR
detectLocalMode: ClusterCIDR
clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
nodePortAddresses: [primary]
oomScoreAdj: 0
# Leaves the machine's connection tracking as it is.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
EOF
}

# Two blocks, because within one `template` comes before `kubernetes`, whatever the order here. What is not the
# cluster's does not exist: that answer comes from here, and no question goes on to anybody.
write_corefile() {
  cat >"$RUN/Corefile" <<EOF
cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
    bind $NODE_IP
    errors
    health 127.0.0.1:10261
    ready 127.0.0.1:10262
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig $RUN/coredns.kubeconfig
        pods insecure
        ttl 5
    }
    cache 5
    loadbalance
    reload
}
ext.example.com:53 tls.example.com:53 wild.example.com:53 {
    bind $NODE_IP
    errors
    template IN A {
        answer "{{ .Name }} 30 IN A $NODE_IP"
    }
    template ANY ANY {
        rcode NOERROR
    }
}
.:53 {
    bind $NODE_IP
    errors
    template ANY ANY {
        rcode NXDOMAIN
    }
}
EOF
}

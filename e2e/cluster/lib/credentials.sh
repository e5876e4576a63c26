# shellcheck shell=bash
# Keys, certificates, tokens and kubeconfigs. All of them die with the cluster.

PKI=$RUN/pki

write_credentials() {
  umask 077
  rm -rf "$PKI"
  mkdir -p "$PKI"
  write_ca
  local service=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
  issue apiserver kube-apiserver "" serverAuth "IP:$NODE_IP,IP:$API_SERVICE_IP,$service"
  # etcd also calls itself, with the certificate that it serves.
  issue etcd weft-cluster:etcd "" serverAuth,clientAuth IP:127.0.0.1
  issue apiserver-to-etcd weft-cluster:apiserver "" clientAuth DNS:apiserver
  issue kubelet "system:node:$NODE" system:nodes serverAuth "IP:$NODE_IP,DNS:$NODE"
  issue apiserver-to-kubelet weft-cluster:apiserver "" clientAuth DNS:apiserver
  issue front-proxy weft-cluster:front-proxy "" clientAuth DNS:front-proxy
  key "$PKI/service-account.key"
  openssl pkey -in "$PKI/service-account.key" -pubout -out "$PKI/service-account.pub"
  : >"$RUN/tokens.csv"
  user admin weft-admin system:masters "$KUBECONFIG_ADMIN"
  user controller-manager system:kube-controller-manager ""
  user scheduler system:kube-scheduler ""
  user kubelet "system:node:$NODE" system:nodes
  user proxy system:kube-proxy ""
  user coredns weft-cluster:coredns ""
  umask 022
}

key() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$1"
}

write_ca() {
  key "$PKI/ca.key"
  openssl req -x509 -new -key "$PKI/ca.key" -days 365 -subj /CN=weft-test-cluster -out "$PKI/ca.crt" \
    -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
}

# issue FILE COMMON_NAME ORGANISATION USAGE ALTERNATIVE_NAMES
issue() {
  local file=$PKI/$1 subject=/CN=$2
  [[ -z $3 ]] || subject=/O=$3$subject
  key "$file.key"
  openssl req -new -key "$file.key" -subj "$subject" -out "$file.csr"
  openssl x509 -req -in "$file.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 365 -out "$file.crt" \
    -extfile <(printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$4" "$5") 2>"$file.log" ||
    fail "openssl could not issue a certificate for $2: $(cat "$file.log")"
}

# user FILE NAME GROUP [PATH]: a token of its own and the kubeconfig that uses it.
user() {
  local token path=${4:-$RUN/$1.kubeconfig}
  token=$(openssl rand -hex 20)
  printf '%s,%s,%s%s\n' "$token" "$2" "$2" "${3:+,\"$3\"}" >>"$RUN/tokens.csv"
  cat >"$path" <<EOF
apiVersion: v1
kind: Config
clusters:
- name: weft
  cluster:
    server: $API_URL
    certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")
users:
- name: $2
  user:
    token: $token
contexts:
- name: weft
  context:
    cluster: weft
    user: $2
current-context: weft
EOF
}

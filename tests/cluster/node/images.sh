#!/bin/bash
# Images for the node tier, with no registry and no daemon. Everything is kept in $LAB/images.
#   images.sh base       a stand-in for python:3.11-slim-bookworm, out of Debian's own packages, and the pods' pause image
#   images.sh build      operator, gateway and quickstart from the project's Containerfiles (`make images`), the runtime from
#                        runtime.Containerfile beside this: torch comes from the machine
#   images.sh archives   print the archives that `cluster.sh load` takes, written anew where an image is new
#   images.sh folder     print $LAB
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); root=$(cd "$here/../../.." && pwd); . "$here/../lab.env"
W=$LAB/images; mkdir -p "$W/ctx" "$W/store" "$W/run" "$W/archives"
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/store"\nrunroot = "%s/run"\n' "$W" "$W" > "$W/storage.conf"
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > "$W/policy.json"
export CONTAINERS_STORAGE_CONF=$W/storage.conf BUILDAH_ISOLATION=chroot BUILDAH_LAYERS=true
policy="--signature-policy=$W/policy.json" BASE=lab.local/python:3.11 PAUSE=lab.local/pause:1
TAG=$(sed -n 's/^appVersion: *"\(.*\)"/\1/p' "$root/charts/lorafleet/Chart.yaml") PREFIX=docker.io/lorafleet
# pip inside RUN needs this machine's certificates and settings: its index may be a mirror, its wheels lie in a folder
flags="$policy --quiet --pull-never -v /etc/ssl/certs:/etc/ssl/certs:ro"
[ ! -e /etc/pip.conf ] || flags="$flags -v /etc/pip.conf:/etc/pip.conf:ro"
for folder in ${PIP_FIND_LINKS:-}; do [ ! -d "$folder" ] || flags="$flags -v $folder:$folder:ro"; done
for name in PIP_INDEX_URL PIP_FIND_LINKS PIP_CERT PIP_DEFAULT_TIMEOUT; do [ -z "${!name:-}" ] || flags="$flags --env $name=${!name}"; done

base() {
  if ! buildah images $BASE > /dev/null 2>&1; then
    # TMPDIR on tmpfs: dpkg's fsyncs make it six times slower on a disk
    TMPDIR=/dev/shm mmdebstrap --quiet --variant=essential --include=python3.11,python3-pip,ca-certificates,libgomp1,libstdc++6 \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      bookworm "$W/ctx/base.tar" $(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2> /dev/null | head -1)
    printf '%s\n' 'FROM scratch' 'ADD base.tar /' 'RUN ln -sf python3.11 /usr/bin/python && rm -f /usr/lib/python3.11/EXTERNALLY-MANAGED' \
      'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin' 'CMD ["python3"]' > "$W/base.Containerfile"
    buildah build --quiet "$policy" -t $BASE -f "$W/base.Containerfile" "$W/ctx" > /dev/null; rm -f "$W/ctx/base.tar"
  fi
  # What holds a pod's namespaces: nothing runs in it, and its end is a SIGKILL
  buildah images $PAUSE > /dev/null 2>&1 || {
    printf '%s\n' "FROM $BASE" 'USER 65535:65535' 'ENTRYPOINT ["sleep", "infinity"]' > "$W/pause.Containerfile"
    buildah build --quiet "$policy" --pull-never -t $PAUSE -f "$W/pause.Containerfile" "$W/ctx" > /dev/null
  }
}
build() {
  make -s -C "$root" images IMAGE_TOOL=buildah IMAGES="operator gateway quickstart" IMAGE_PREFIX=$PREFIX IMAGE_TAG="$TAG" BASE_IMAGE=$BASE \
    REVISION=unknown IMAGE_FLAGS="$flags"      # a commit that changes nothing in an image makes no new one
  buildah build $flags --build-arg BASE_IMAGE=$BASE -t "$PREFIX/runtime:$TAG" -f "$here/runtime.Containerfile" "$root" > /dev/null
}
archives() {
  local image id file; for image in $PAUSE $PREFIX/{operator,gateway,quickstart,runtime}:$TAG; do
    id=$(buildah images --quiet --no-trunc "$image" | cut -d: -f2 | cut -c1-16); file=$W/archives/$(basename "${image%%:*}")-$id.tar
    if [ ! -e "$file" ]; then
      rm -f "$W/archives/$(basename "${image%%:*}")"-*.tar
      buildah push --quiet "$policy" "$image" "oci-archive:$file.new:$image" > /dev/null; mv "$file.new" "$file"
    fi
    echo "$file"
  done
}
case ${1:-} in base|build|archives) $1 ;; folder) echo "$LAB" ;; *) sed -n '2,/^set/p' "$0" | sed '$d'; exit 2 ;; esac

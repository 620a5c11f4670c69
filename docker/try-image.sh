#!/usr/bin/env bash
# Build the serving image and run it as compose.yaml does, on a Debian machine without a container daemon and without
# an image registry: the base image is made from Debian's own packages and given the official one's name. Asks the
# running container one digit of every model, then stops it.
#
#   apt-get install --no-install-recommends buildah debootstrap podman runc uidmap     # as root
#   docker/try-image.sh [models]                                                       # likewise; some minutes
#
# With Docker none of this is needed: docker build -f docker/serving.Dockerfile .
set -euo pipefail
cd "$(dirname "$0")/.."
models=$(realpath "${1:-models}")
port=${PORT:-8765}
base=$(awk '$1 == "FROM" { print $2; exit }' docker/serving.Dockerfile)
work=$(mktemp -d)
container=distillery-try-$$
podman() { CONTAINERS_CONF=$work/containers.conf command podman --storage-driver vfs "$@"; }
trap 'podman rm --force --ignore --time 0 $container >/dev/null; rm -rf "$work"' EXIT

# No systemd here and, on some machines, neither crun nor the usual limits.
cat > "$work/containers.conf" <<'TOML'
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
TOML

if ! buildah --storage-driver vfs inspect --type image "docker.io/library/$base" >/dev/null 2>&1; then
    echo "making a stand-in for $base from Debian's packages"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$work/base" \
        >"$work/debootstrap.log" || { tail -n 20 "$work/debootstrap.log"; exit 1; }
    ln -s /usr/bin/python3 "$work/base/usr/local/bin/python" # where the official image has it
    rm -rf "$work"/base/usr/lib/python3*/EXTERNALLY-MANAGED "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
    empty=$(buildah --storage-driver vfs from scratch)
    buildah --storage-driver vfs add --quiet "$empty" "$work/base" / >/dev/null
    buildah --storage-driver vfs commit --quiet --rm "$empty" "docker.io/library/$base" >/dev/null
    rm -rf "$work/base"
fi

echo "building"
# The build trusts the certificates this machine trusts; the image does not keep them.
buildah --storage-driver vfs bud --isolation chroot --pull=never --format docker \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt --unsetenv PIP_CERT \
    --file docker/serving.Dockerfile --tag distillery-serving . >"$work/build.log" 2>&1 \
    || { tail -n 20 "$work/build.log"; exit 1; }
podman images --format 'image: {{.Repository}} {{.Size}}' localhost/distillery-serving
podman run --rm --network none --entrypoint python localhost/distillery-serving -c \
    'import importlib.util, os; assert os.getuid() == 10001; assert not importlib.util.find_spec("torch")'

echo "running"
podman run --detach --name $container --network host --env DISTILLERY_HOST=127.0.0.1 --env DISTILLERY_PORT="$port" \
    --env DISTILLERY_API_SERVERS=2 --read-only --tmpfs /tmp:size=64m --cap-drop ALL \
    --security-opt no-new-privileges --memory 1g --pids-limit 256 \
    --volume "$models:/models:ro" localhost/distillery-serving >/dev/null
for _ in $(seq 100); do
    podman healthcheck run $container >/dev/null 2>&1 && break
    sleep 0.2
done
podman healthcheck run $container || { podman logs $container; exit 1; }
image="[$(printf '0,%.0s' {1..391})$(printf '255,%.0s' {1..392})0]"
for folder in "$models"/*/; do
    model=$(basename "$folder")
    answer=$(curl --silent --show-error --fail --json "{\"image\": $image}" "http://127.0.0.1:$port/predict/$model")
    echo "$model: $answer" | cut -c 1-120
done
podman stats --no-stream --format 'memory: {{.MemUsage}}' $container
SECONDS=0
podman stop --time 15 $container >/dev/null
status=$(podman inspect --format '{{.State.ExitCode}}' $container)
echo "SIGTERM: ended with status $status after $SECONDS s"
test "$status" = 0

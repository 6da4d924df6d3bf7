# Sourced by .ci/run: installs what tests want beside Python packages, where that can be done.
#
#   want_docker_registry   Debian's docker-registry, which tests of push and pull talk with
#
# Without it those tests are skipped, and a line says so: it never fails.

want_docker_registry() {
    local why
    if command -v docker-registry >/dev/null; then
        return
    elif ! command -v apt-get >/dev/null; then
        why="there is no apt-get"
    elif [ "$(id -u)" != 0 ]; then
        why="only root may install packages"
    else
        echo "installing docker-registry"
        # Lists of packages may be missing or old; the service is not started in runlevel 1.
        if why=$({ _apt_get install || { _apt_get update && _apt_get install; }; } 2>&1); then
            return
        fi
        why="apt-get says: $(grep -m 1 '^E: ' <<<"$why" || echo nothing)"
    fi
    echo "docker-registry is not installed ($why): its tests are skipped"
}

_apt_get() {
    local packages=()
    if [ "$1" = install ]; then
        packages=(--no-install-recommends docker-registry)
    fi
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive timeout 300 \
        apt-get -q -y "$1" ${packages[@]+"${packages[@]}"} </dev/null
}

# Sourced by the scripts: makes the virtual environment .venv and brings it up to date.
#
#   need_venv EXTRAS      EXTRAS as pip takes them, such as "[dev,peers]", or nothing
#   need_triton VERSION   after need_venv: from here on $venv is .venv with that Triton
#
# Python 3.11 to 3.13 is taken from $PYTHON or the path; versions come from constraints.txt. The
# stamp beside the environment makes a second run start at once. Modules are compiled when they are
# first imported, whatever the surroundings say: most of the packages' 14,000 files never are.

unset PYTHONDONTWRITEBYTECODE
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv="$repo/.venv"

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Error: no Python 3.11 to 3.13 found; install one or set PYTHON" >&2
    return 1
}

need_venv() {
    local extras=${1:-} python stamp wanted
    stamp="$venv/.gpukit-stamp"
    wanted=$(cat "$repo/pyproject.toml" "$repo/constraints.txt" | cksum)
    case "$extras" in
    "") [ -f "$stamp" ] && grep -qF "$wanted" "$stamp" && return ;;
    *) [ -f "$stamp" ] && grep -qxF "$wanted $extras" "$stamp" && return ;;
    esac
    if [ ! -x "$venv/bin/pip" ]; then
        python=$(find_python) || exit 1
        rm -rf "$venv"
        echo "making $venv with $("$python" --version)"
        if ! "$python" -m venv "$venv"; then
            rm -rf "$venv"
            echo "Error: $python has no venv module; apt-get install python3-venv" >&2
            exit 1
        fi
    fi
    echo "installing gpukit$extras"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
        -c "$repo/constraints.txt" -e "$repo$extras"
    grep -qF "$wanted" "$stamp" 2>/dev/null || rm -f "$stamp"
    echo "$wanted $extras" >>"$stamp"
}

# A Triton before all that .venv has: torch may ask for another one, which a resolver would insist
# on, and its gigabytes need not be there twice.
need_triton() {
    local version=$1 base=$venv packages more=()
    # Its interpreter makes a number of an array of one, which NumPy 2.4 no longer does.
    case "$version" in 3.[0-6].*) more=("numpy<2.4") ;; esac
    venv="$repo/.venv-triton-$version"
    [ -f "$venv/.gpukit-stamp" ] && return
    rm -rf "$venv"
    echo "making $venv"
    "$base/bin/python" -m venv --without-pip "$venv"
    "$base/bin/python" -m pip --python "$venv/bin/python" install --quiet \
        --disable-pip-version-check --no-deps "triton==$version" ${more[@]+"${more[@]}"} || exit 1
    packages=$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$packages')" >"$venv/${packages#"$base/"}/gpukit-base.pth"
    touch "$venv/.gpukit-stamp"
}

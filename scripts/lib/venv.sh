# Sourced by the launchers in scripts/. Makes the project's Python environment, .venv at the project's root, when it is
# missing, broken or older than its lock, and starts Python in it. Touches nothing outside .venv.
#
#   ensure_venv runtime|dev   what requirements.lock names; dev adds requirements-dev.lock
#   exec_python ARGUMENTS     becomes Python, with the project importable and the caller's directory unchanged
#
# PYTHON names the interpreter to build .venv with (default: the first of python3, python3.14 ... 3.11 that will do).
# .venv/.runtime and .venv/.dev say what is installed. A stamp is removed before pip starts and written after it ended,
# so what an interrupted run leaves behind has no stamp and is built again from nothing.

ROOT=$(cd -P -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../.." && pwd)
VENV=$ROOT/.venv

say() { printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2; }

ensure_venv() {
    local kind=$1
    if stamped "$kind"; then return; fi
    mkdir -p -- "$VENV"
    # The folder is its own lock: it stays the same folder while its content is replaced.
    exec {lock_fd}<"$VENV"
    flock --nonblock "$lock_fd" || { say "waiting for another start that sets up .venv" && flock "$lock_fd"; }
    if ! stamped "$kind"; then build_venv "$kind"; fi # unless another first start did while this one waited
    exec {lock_fd}<&-
}

# What .venv was built for: an environment works in the place and with the interpreter it was made for, no other.
origin() { printf '%s %s\n' "$ROOT" "$(readlink -f -- "$VENV/bin/python" || true)"; }

# The stamp that a finished environment of this kind has now: its origin and the digest of its locks.
stamp() {
    local locks=("$ROOT/requirements.lock")
    if [[ $1 == dev ]]; then locks+=("$ROOT/requirements-dev.lock"); fi
    origin
    cat -- "${locks[@]}" | sha256sum
}

stamped() { [[ -x $VENV/bin/python && -f $VENV/.$1 && $(<"$VENV/.$1") == "$(stamp "$1")" ]]; }

build_venv() {
    local kind=$1 log=$VENV/setup.log wanted=(-r "$ROOT/requirements.lock")
    if [[ $kind == dev ]]; then wanted+=(-r "$ROOT/requirements-dev.lock"); fi
    if reusable; then
        say "bringing .venv up to date with its lock"
        rm -f -- "$VENV/.runtime" "$VENV/.dev"
    else
        local python
        python=$(find_python) || exit
        say "setting up .venv (first run, about a minute)"
        rm -f -- "$VENV/.runtime" "$VENV/.dev"
        "$python" -m venv --clear -- "$VENV" >&2 || fail_setup "$python could not make $VENV"
    fi
    # -I: neither PYTHONPATH nor the user's own packages may pass for installed ones.
    "$VENV/bin/python" -I -m pip install --disable-pip-version-check --no-input --require-hashes "${wanted[@]}" \
        >"$log" 2>&1 || { cat -- "$log" >&2; fail_setup "pip could not install the locked packages, see above"; }
    stamp runtime >"$VENV/.runtime"
    if [[ $kind == dev ]]; then stamp dev >"$VENV/.dev"; fi
}

# Can pip bring this environment up to date, or must it be built from nothing?
reusable() {
    local built=''
    [[ -x $VENV/bin/python && -f $VENV/.runtime ]] && read -r built <"$VENV/.runtime" && [[ $built == "$(origin)" ]]
}

find_python() {
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11) candidate without_venv=''
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    if [[ -n $without_venv ]]; then
        fail_setup "$without_venv has no venv module; on Debian and Ubuntu: apt install python3-venv"
    elif [[ -n ${PYTHON:-} ]]; then
        fail_setup "PYTHON=$PYTHON is no Python 3.11 or newer"
    fi
    fail_setup "needs Python 3.11 or newer, found none; install one, or name it: PYTHON=/path/to/python3 $0"
}

fail_setup() {
    say "$*"
    exit 1
}

exec_python() {
    export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    # -P: a folder named app in the caller's directory must not stand in for ours.
    exec "$VENV/bin/python" -P "$@"
}

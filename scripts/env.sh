# Sourced by the scripts beside it: makes the checkout's own environment (.venv) and keeps it current.
#
#   prepare_env EXTRAS   installs the package (editable) with these extras, then $venv_python runs it
#
# Settings from outside:
#   PYTHON             interpreter to build on; default: the first of python3.11, python3.12,
#                      python3.10, python3 that is 3.10–3.12 and can make environments
#   VOXELQUANT_TORCH   auto (default): the CPU build unless nvidia-smi finds a GPU
#                      cpu | cuda | any pip requirement, such as torch==2.11.0
# An explicit setting that differs from what .venv was made with rebuilds .venv; none accepts it.

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repo_root/.venv
venv_python=$venv/bin/python
install_log=$venv/install.log
tested_torch=2.13.0
tested_triton=3.6.0
torch_cpu_index=https://download.pytorch.org/whl/cpu

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PYTHONDONTWRITEBYTECODE=1
# Threads of torch that wait must not spin: see src/voxelquant/cli/__init__.py.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

say() { printf 'voxelquant: %s\n' "$*" >&2; }
fail() { say "$@"; exit 2; }

# Prints the interpreter to build on; says on stderr what is missing when there is none.
find_python() {
  local candidate version unfit="" without_venv=""
  local candidates=(python3.11 python3.12 python3.10 python3)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in
      3.10 | 3.11 | 3.12) ;;
      *) unfit="$candidate is Python $version, which does not fit"; continue ;;
    esac
    if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return 0
    fi
    without_venv=${without_venv:-$version}
  done
  if [ -n "$without_venv" ]; then
    say "Python $without_venv is here, but without venv and ensurepip, which make its environments;" \
      "on Debian or Ubuntu: apt-get install python$without_venv-venv"
  else
    say "needs Python 3.10, 3.11 or 3.12; ${unfit:-found none of: ${candidates[*]}};" \
      "on Debian or Ubuntu: apt-get install python3 python3-venv, elsewhere: python.org;" \
      "or name one: PYTHON=/path/to/python3.11"
  fi
  return 1
}

# run_step MESSAGE COMMAND...: one line with the seconds it took; the log is shown only on failure.
run_step() {
  local message=$1 started=$SECONDS clock="" status=0
  shift
  printf 'voxelquant: %s ... ' "$message" >&2
  if [ -t 2 ]; then
    (while kill -0 $$ 2>/dev/null && sleep 1; do
      printf '\rvoxelquant: %s ... %d s ' "$message" $((SECONDS - started)) >&2
    done) &
    clock=$!
  fi
  "$@" >"$install_log" 2>&1 || status=$?
  if [ -n "$clock" ]; then
    kill "$clock" 2>/dev/null || true
    wait "$clock" 2>/dev/null || true
    printf '\rvoxelquant: %s ... ' "$message" >&2
  fi
  if [ "$status" -eq 0 ]; then
    printf '%d s\n' $((SECONDS - started)) >&2
  else
    printf 'failed\n' >&2
  fi
  return "$status"
}

no_connection='NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Network is unreachable'

explain_failed_install() {
  tail -n 8 "$install_log" | sed 's/^/  | /' >&2
  if grep -qE 'No space left' "$install_log"; then
    fail "the disk is full: an environment takes about 2.5 GB, with a CUDA build of torch 8 GB"
  elif grep -qE "$no_connection|No matching distribution" "$install_log"; then
    fail "a package could not be fetched: check the network, or point pip to a mirror with" \
      "PIP_INDEX_URL=https://...; the whole log: $install_log"
  fi
  fail "installation failed; the whole log: $install_log"
}

pip_install() { "$venv_python" -m pip install --quiet "$@"; }

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# A name look-up can hang longer than any socket timeout, so the alarm ends the whole probe.
reaches_torch_cpu_index() {
  "$venv_python" - "$torch_cpu_index/torch/" 2>/dev/null <<'PYTHON'
import signal, sys, urllib.request
signal.alarm(4)
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=3)
PYTHON
}

install_torch_cpu() {
  if reaches_torch_cpu_index; then
    run_step "installing torch $tested_torch, CPU build" \
      pip_install --index-url "$torch_cpu_index" "torch==$tested_torch" && return 0
  else
    run_step "installing torch $tested_torch, CPU build from pip's own index" \
      pip_install "torch==$tested_torch+cpu" && return 0
  fi
  [ "${VOXELQUANT_TORCH:-auto}" = auto ] && ! grep -qE "$no_connection" "$install_log" || return 1
  say "no CPU build to be had: taking the default build, on Linux gigabytes of CUDA with it" \
    "(set VOXELQUANT_TORCH to choose another)"
  run_step "installing torch $tested_torch" pip_install "torch==$tested_torch"
}

install_torch() {
  case ${VOXELQUANT_TORCH:-auto} in
    cuda) run_step "installing torch" pip_install torch ;;
    cpu) install_torch_cpu ;;
    auto)
      if has_gpu; then
        run_step "installing torch for the GPU here" pip_install torch
      else
        install_torch_cpu
      fi ;;
    *) run_step "installing $VOXELQUANT_TORCH" pip_install "$VOXELQUANT_TORCH" ;;
  esac
}

# What the installed packages depend on; the checkout's path, because an editable install holds it.
package_key() {
  cat "$repo_root/pyproject.toml" "$repo_root/scripts/env.sh" | cksum
  printf '%s\n' "$repo_root"
}

# True when .venv was made to the end, for this place, and as an explicit setting asks.
venv_is_usable() {
  "$venv_python" -c '' 2>/dev/null && [ -f "$venv/made-with" ] || return 1
  local made_python made_torch made_at
  { read -r made_python; read -r made_torch; read -r made_at; } <"$venv/made-with" || return 1
  [ "$made_at" = "$repo_root" ] &&
    [ "${PYTHON:-$made_python}" = "$made_python" ] &&
    [ "${VOXELQUANT_TORCH:-$made_torch}" = "$made_torch" ] &&
    "$venv_python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("pip")))'
}

make_venv() {
  local base
  base=$(find_python) || exit 2
  rm -rf "$venv"
  mkdir -p "$venv"
  run_step "making .venv with $("$base" --version)" "$base" -m venv "$venv" || explain_failed_install
  install_torch || explain_failed_install
  # torch and what it runs on stay as chosen, whatever the other packages would prefer.
  "$venv_python" -m pip freeze | grep -E '^torch==' >"$venv/constraints.txt" || explain_failed_install
  # A CUDA build brings the Triton that it was made for; without one, the tests take this one.
  "$venv_python" -m pip freeze | grep -E '^triton==' >>"$venv/constraints.txt" ||
    printf 'triton==%s\n' "$tested_triton" >>"$venv/constraints.txt"
  printf '%s\n' "${PYTHON:-$base}" "${VOXELQUANT_TORCH:-auto}" "$repo_root" >"$venv/made-with"
}

prepare_env() {
  local extras=$1
  local stamp=$venv/installed-${extras//,/-}
  venv_is_usable || make_venv
  if [ "$(cat "$stamp" 2>/dev/null)" != "$(package_key)" ] || ! [ -x "$venv/bin/voxelquant" ]; then
    rm -f "$stamp"
    run_step "installing voxelquant with $extras" \
      pip_install -c "$venv/constraints.txt" -e "$repo_root[$extras]" || explain_failed_install
    package_key >"$stamp"
  fi
}

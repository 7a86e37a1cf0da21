# shellcheck shell=bash
# The Python environment: always .venv in the root of the repository. Sourced by the scripts beside:
#
#   source launch/environment.sh
#   prepare_environment [extra ...]   # extras of pyproject.toml; then "$python" is the one to use
#
# The jax build follows the machine: TPU, NVIDIA or CPU. What is current is used as it is.
# PYTHON=/path/to/python chooses the Python to make the environment with.

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"
# Written last, removed first: an environment without it was left half-made. Its lines: where and
# with which Python the environment was made, the checksum of what it was made from, the extras.
stamp="$venv/sdistill-installed"

say() { printf 'sdistill: %s\n' "$1"; }

fail() {
  printf '\nsdistill: %s\n' "$1" >&2
  exit 1
}

# Sets base_python to a Python that can make the environment, or stops and says what is missing.
find_python() {
  local candidate version unfit='' without_venv=''
  local print_version='import sys; print("%d.%d.%d" % sys.version_info[:3])'
  set -- python3.13 python3.12 python3.11 python3
  if [[ -n ${PYTHON:-} ]]; then set -- "$PYTHON"; fi
  for candidate in "$@"; do
    # Running it is the only proof: a name on the PATH may be a shim with nothing behind it.
    version="$("$candidate" -c "$print_version" 2>/dev/null)" || continue
    case "$version" in
      3.11.* | 3.12.* | 3.13.*) ;;
      *)
        unfit+=" $candidate is $version;"
        continue
        ;;
    esac
    if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      base_python="$candidate"
      return
    fi
    without_venv="${without_venv:-${version%.*}}"
  done

  if [[ -n $without_venv ]]; then
    fail "Python $without_venv is here, but without its venv and ensurepip modules.
  Debian, Ubuntu:  sudo apt install python$without_venv-venv
  then run this again."
  fi
  fail "needs Python 3.11, 3.12 or 3.13; found:${unfit:- none among $*}
  Debian, Ubuntu:  sudo apt install python3.11 python3.11-venv
  anywhere, uv:    uv python install 3.12 && export PYTHON=\"\$(uv python find 3.12)\"
  or name one:     export PYTHON=/path/to/python3.12
  then run this again."
}

# Prints the extra with the jax build for this machine; nothing for a CPU.
jax_extra() {
  # Other machines have vfio devices too, so the PCI vendor has to be Google. TPU_NAME is no sign:
  # people set it on their own computers, for the machine they will log in to.
  local google=0x1ae0
  if compgen -G '/dev/accel[0-9]*' >/dev/null || [[ -n ${TPU_ACCELERATOR_TYPE:-} ]] ||
    { compgen -G '/dev/vfio/[0-9]*' && grep -s $google /sys/bus/pci/devices/*/vendor; } >/dev/null; then
    echo tpu
  elif nvidia-smi >/dev/null 2>&1; then
    echo cuda
  fi
}

# Makes the environment with these extras, brings it up to date, or leaves it as it is.
prepare_environment() {
  local origin inputs extra extras='' usable='' old_origin='' old_inputs='' old_extras='' status=0
  inputs="$(cat "$root/requirements.txt" "$root/pyproject.toml" | cksum)"
  origin="$root $("${PYTHON:-$python}" -V 2>/dev/null)" || origin=''
  if [[ -f $stamp ]]; then
    { read -r old_origin && read -r old_inputs && read -r old_extras; } <"$stamp" || true
  fi
  # New, half-made, moved, of another Python: pip cannot mend these reliably, they are made afresh.
  if [[ -x $python && -n $origin && $origin == "$old_origin" ]]; then
    usable=yes
    extras="$old_extras"
  fi
  for extra in $(jax_extra) "$@"; do
    [[ ",$extras," == *",$extra,"* ]] || extras+="${extras:+,}$extra"
  done
  if [[ $usable && $inputs == "$old_inputs" && $extras == "$old_extras" ]]; then return; fi

  rm -f "$stamp"
  if [[ ! $usable ]]; then
    find_python
    say "making .venv with $base_python"
    "$base_python" -m venv --clear "$venv" || fail "could not make $venv; the reason is above."
    origin="$root $("$python" -V)"
  fi
  say "installing packages${extras:+ for $extras} (a minute or two, about 1 GB on disk)"
  trap 'exit 130' INT # pip answers an interrupt as if it had failed by itself
  (cd "$root" && "$python" -m pip install --quiet --disable-pip-version-check \
    --editable ".${extras:+[$extras]}") || status=$?
  trap - INT
  if ((status)); then
    # Unless killed, pip undoes what it began: without network, what worked goes on working.
    if [[ $usable ]] && ((status < 128)); then
      printf '%s\n' "$old_origin" "$old_inputs" "$old_extras" >"$stamp"
    fi
    fail "pip could not install the packages; its reason is above.
  It needs the network: behind a proxy, export HTTPS_PROXY=http://host:port
  then run this again."
  fi
  printf '%s\n' "$origin" "$inputs" "$extras" >"$stamp"
}

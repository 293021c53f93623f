# Sourced by the scripts of this folder: a temporary folder that is removed on exit, and a venv of its own in it.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HOME="$work/hf" PIP_DISABLE_PIP_VERSION_CHECK=1

# install PKG==VERSION ...: into the venv.
install() {
  "${PYTHON:-python3}" -m venv "$work/venv"
  "$work/venv/bin/python" -m pip install --quiet "$@" || { echo "could not install $*" >&2; exit 2; }
  cd "$work"
}

# check: runs the Python on stdin, whose exit status 0 says that all is as the script's header states.
check() {
  if "$work/venv/bin/python" -W ignore -; then
    echo "AS STATED"
  else
    echo "CHANGED: no longer as stated in the header"
    exit 1
  fi
}

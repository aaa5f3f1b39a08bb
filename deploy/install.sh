#!/usr/bin/env bash
# Installs medray without internet, from a folder that deploy/wheelhouse.sh made.
#
#   install.sh FOLDER [VENV]      # VENV: a new virtual environment, ./.venv unless named
set -euo pipefail

folder=$(realpath "${1:?usage: install.sh FOLDER [VENV]}")
venv=$(realpath -m "${2:-.venv}")
refuse() {
  echo "install.sh: $*" >&2
  exit 1
}

[[ -f $folder/MADE_FOR ]] || refuse "$folder was not made by wheelhouse.sh, or not to its end"
[[ ! -e $venv ]] || refuse "$venv is there already"
read -r version machine glibc <"$folder/MADE_FOR"
wanted="this folder was made for Python $version on $machine with glibc $glibc or later"
[[ $(uname -m) == "$machine" ]] || refuse "$wanted; this machine is $(uname -m)"
here=$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)
[[ $(printf '%s\n' "$glibc" "$here" | sort -V | head -n 1) == "$glibc" ]] || refuse "$wanted; here is glibc $here"
python=${PYTHON:-python$version}
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || refuse "$wanted; there is no $python here"
[[ $found == "$version" ]] || refuse "$wanted; $python is $found"
(cd "$folder" && sha256sum --check --strict --quiet SHA256SUMS) || refuse "$folder is not as it was made: copy it again"

# A wheel is a zip file: uv comes out of its own, so that neither pip nor venv has to be installed. Beside the new
# environment, its files are moved there and not copied.
mkdir -p "$(dirname "$venv")"
aside=$(mktemp -d "$venv.XXXX")
trap 'rm -rf "$aside"' EXIT
"$python" -m zipfile -e "$folder"/uv-*.whl "$aside"
uv=$(echo "$aside"/uv-*.data/scripts/uv)
chmod +x "$uv"
export UV_CACHE_DIR=$aside/cache UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1
"$uv" venv --quiet --python "$(command -v "$python")" "$venv"
"$uv" pip install --quiet --compile-bytecode --offline --no-index --find-links "$folder" --python "$venv/bin/python" \
  --requirement "$folder/requirements.txt"
echo "$venv is ready: source $venv/bin/activate" >&2

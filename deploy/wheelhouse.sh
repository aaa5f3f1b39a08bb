#!/usr/bin/env bash
# Gathers medray and all that it needs in one folder, for machines without internet: deploy/install.sh reads it there.
#
#   deploy/wheelhouse.sh FOLDER [--cpu] [options of `uv export`, such as --extra export]
#
# Run it in a checkout, on a machine with internet, of the same kind and with the same Python as the machines without;
# UV_PYTHON=3.12 before the command chooses another Python. --cpu leaves CUDA out: PIP_EXTRA_INDEX_URL must then name
# an index of PyTorch's CPU builds.
set -euo pipefail

folder=$(realpath -m "${1:?usage: deploy/wheelhouse.sh FOLDER [--cpu] [options of uv export]}")
shift
cpu=
if [[ ${1:-} == --cpu ]]; then
  cpu=yes
  shift
fi
cd "$(dirname "$0")/.."
if [[ -e $folder ]] && [[ -n $(ls -A "$folder") ]]; then
  echo "wheelhouse.sh: $folder is not empty" >&2
  exit 2
fi
mkdir -p "$folder"
python=$(uv python find)

uv build --quiet --wheel --out-dir "$folder"
rm -f "$folder/.gitignore"
wheel=$(basename "$folder"/*.whl)
project=${wheel%%-*}
version=${wheel#*-}
{
  uv export --quiet --no-dev --no-emit-project --no-hashes --no-annotate --no-header "$@"
  echo "uv==$(uv --version | cut -d ' ' -f 2)"
} >"$folder/requirements.txt"
if [[ $cpu ]]; then
  sed -i -E '/^(nvidia-|cuda-|triton==)/d' "$folder/requirements.txt"
fi
# What has no wheel is built here, so that the machines without internet need no compiler.
uvx --quiet --python "$python" pip wheel --quiet --no-deps --wheel-dir "$folder" --requirement "$folder/requirements.txt"
echo "$project==${version%%-*}" >>"$folder/requirements.txt"
if [[ $cpu ]] && compgen -G "$folder/torch-*.whl" >/dev/null && ! compgen -G "$folder/torch-*+cpu-*.whl" >/dev/null; then
  echo "wheelhouse.sh: this torch needs CUDA; set PIP_EXTRA_INDEX_URL to an index of PyTorch's CPU builds" >&2
  exit 1
fi

cp deploy/install.sh "$folder"
# The oldest glibc that every wheel runs with: each wheel's lowest, and the highest of those.
"$python" - "$folder" >"$folder/MADE_FOR" <<'PYTHON'
import pathlib, platform, re, sys
needs = [(2, 17)]
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    tags = wheel.stem.split("-")[-1]
    found = [(2, int(minor)) for minor in re.findall(r"manylinux_2_(\d+)_", tags)]
    found += [(2, 17)] * ("manylinux2014" in tags) + [(2, 12)] * ("manylinux2010" in tags) + [(2, 5)] * ("manylinux1_" in tags)
    if tags.startswith("linux_"):
        found = [tuple(int(part) for part in platform.libc_ver()[1].split("."))]
    needs += [min(found)] if found else []
print(f"{platform.python_version_tuple()[0]}.{platform.python_version_tuple()[1]} {platform.machine()} 2.{max(needs)[1]}")
PYTHON
(cd "$folder" && sha256sum -- * >SHA256SUMS)
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sh "$folder" | cut -f 1), for Python, machine, glibc $(cat "$folder/MADE_FOR")" >&2

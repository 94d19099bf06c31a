#!/usr/bin/env bash
# Installs the system libraries that napari's window needs, through apt, where it may.
set -euo pipefail

packages=(
    xvfb xauth libgl1 libegl1 libgl1-mesa-dri libglx-mesa0 libfontconfig1 libdbus-1-3
    libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1
    libxcb-randr0 libxcb-render-util0 libxcb-shape0 libxcb-shm0 libxcb-sync1
    libxcb-xfixes0 libxcb-xkb1 libxcb-glx0
)
# Debian and Ubuntu ship Python without the parts that make virtual environments.
if ! "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null; then
    packages+=(python3-venv)
fi

command -v dpkg-query >/dev/null || exit 0 # neither Debian nor Ubuntu
missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [[ $status == "install ok installed" ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $(id -u) -eq 0 ]]; then
    become=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    become=(sudo)
else
    echo "Missing system libraries; install them with: sudo apt-get install ${missing[*]}" >&2
    # With a screen, napari may well run without the virtual one.
    [[ -n ${DISPLAY:-}${WAYLAND_DISPLAY:-} ]] && exit 0
    exit 1
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${become[@]}" apt-get update -qq
"${become[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

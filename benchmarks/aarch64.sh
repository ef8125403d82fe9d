#!/usr/bin/env bash
# Makes, in the folder WORK, all that runs Niwaki as aarch64 on an x86-64 Debian 12 without root: benchmarks/aarch64.sh WORK
#
# qemu-user, Python 3.11 and a cross compiler come from Debian's packages, unpacked and not installed; the wheel of this
# checkout, built without kernels, and what it needs come as aarch64 wheels; PYTHON has setuptools of 77 or later. Then
#   NIWAKI_AARCH64=WORK python -m pytest -m aarch64 tests/deploy/test_aarch64.py
# compares what both processors answer. Needs apt-get, dpkg-deb and uv; 600 MB, some minutes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# = 1 ] || { echo "usage: benchmarks/aarch64.sh WORK" >&2; exit 2; }
mkdir -p "$1" && work=$(cd "$1" && pwd)
mkdir -p "$work"/{lists/partial,arm64,amd64,root,tools,dist}

native=(qemu-user-static binutils-aarch64-linux-gnu {cpp,gcc,g++}-12-aarch64-linux-gnu gcc-12-aarch64-linux-gnu-base
  gcc-12-cross-base {libc6,libc6-dev,linux-libc-dev,libgcc-s1,libgcc-12-dev,libstdc++6,libstdc++-12-dev}-arm64-cross
  libisl23 libmpc3 libmpfr6 libgmp10)
foreign=(python3.11 python3.11-minimal libpython3.11-{minimal,stdlib} libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8
  libssl3 libbz2-1.0 liblzma5 libuuid1 libcrypt1 libsqlite3-0 libncursesw6 libtinfo6 libreadline8 libnsl2 libtirpc3)
arm=(-oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::State::Lists="$work/lists" -oDir::State::Status=/dev/null
  -oAPT::Sandbox::User=root)
(cd "$work/amd64" && apt-get -qq -oAPT::Sandbox::User=root download "${native[@]}")
apt-get -qq "${arm[@]}" update
(cd "$work/arm64" && apt-get -qq "${arm[@]}" download "${foreign[@]}")
for package in "$work"/amd64/*.deb; do dpkg-deb -x "$package" "$work/tools"; done
for package in "$work"/arm64/*.deb; do dpkg-deb -x "$package" "$work/root"; done

# ONNX Runtime asks these files for the processor, and crashes where an x86-64 answers.
mkdir -p "$work/root/proc" "$work/root/sys/devices/system/cpu"
for name in possible present; do echo 0 > "$work/root/sys/devices/system/cpu/$name"; done
cat > "$work/root/proc/cpuinfo" <<'CPU'
processor	: 0
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1

CPU

rm -rf "$work/site" "$work/source" "$work"/dist/* && mkdir "$work/source"
(cd "$here" && git ls-files -z | tar --null -cf - -T -) | tar -xf - -C "$work/source"
NIWAKI_KERNELS_BUILD=0 uv build -q --wheel --python "${PYTHON:-python}" --out-dir "$work/dist" "$work/source"
uv pip install -q --target "$work/site" --python-platform aarch64-manylinux_2_28 --python-version 3.11 \
  --only-binary :all: "$work"/dist/*-py3-none-any.whl
cat > "$work/python" <<RUN
#!/bin/sh
# Python of aarch64, with the wheel.
exec env -u LD_LIBRARY_PATH PYTHONPATH="$work/site" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \\
  "$work/tools/usr/bin/qemu-aarch64-static" -L "$work/root" "$work/root/usr/bin/python3.11" "\$@"
RUN
cat > "$work/g++" <<RUN
#!/bin/sh
# A compiler for aarch64, which runs here.
exec env LD_LIBRARY_PATH="$work/tools/usr/lib/x86_64-linux-gnu" PATH="$work/tools/usr/bin:\$PATH" \\
  "$work/tools/usr/bin/aarch64-linux-gnu-g++-12" --sysroot="$work/tools" -B"$work/tools/usr/bin/aarch64-linux-gnu-" "\$@"
RUN
chmod +x "$work/python" "$work/g++"
"$work/python" -c "import onnxruntime, platform; print('niwaki: ready,', platform.machine(), onnxruntime.__version__)"

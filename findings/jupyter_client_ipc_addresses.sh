#!/usr/bin/env bash
# jupyter_client 8.10.0: with transport="ipc", two kernels started right after one another get the same sockets.
#
# Expected: sockets of their own, as with TCP, where one process never gives a port twice; and that they lie beside each
# kernel's connection file, as the default of `ip` reads.
# Seen: `ip` is asked for before the connection file has a name, so every kernel's is "kernel-ipc" in the working
# directory, and a number is free as long as no socket of that name is there. A kernel takes a second to make it, so the
# next one gets the same. A client then speaks to both, which refuse each other's signatures, and hears only "Kernel
# didn't respond". Giving each manager an `ip` of its own, a path, helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jupyter_client==8.10.0 ipykernel==7.4.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from jupyter_client import KernelManager


def addresses(**options):
    managers = [KernelManager(**options) for _ in range(2)]
    try:
        for manager in managers:
            manager.start_kernel()
        print("connection files differ:", managers[0].connection_file != managers[1].connection_file)
        return [f"{manager.transport}://{manager.ip} {manager.shell_port}" for manager in managers]
    finally:
        for manager in managers:
            manager.shutdown_kernel(now=True)


tcp, ipc = addresses(), addresses(transport="ipc")
print("tcp:", *tcp, sep="\n  ")
print("ipc:", *ipc, sep="\n  ")
assert len(set(tcp)) == 2, "kernels share a port"
assert len(set(ipc)) == 1, "kernels have sockets of their own now"
PYTHON

#!/usr/bin/env bash
# MNN 3.6.1: its converter runs "pip install" when it starts, for whatever Python comes first on the path.
#
# Expected: a package that is installed, and lacks nothing that it declares, converts a file and installs nothing.
# Seen: "mnnconvert", even with --help, wants a client for a logging service that the package does not declare. As long as
# it is missing, every start runs "pip install -U aliyun-log-python-sdk" in a shell, unasked and twice: the first pip on the
# path, which need not be that of the Python that runs. With that come some ten other packages, and older or newer ones of
# what is there. Where the install does not help, the converter runs on without the client. The pip on this script's path
# is a stand-in that only writes down how it was called.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check MNN==3.6.1 numpy==2.4.6
"$folder/venv/bin/pip" check
mkdir "$folder/path"
printf '#!/bin/sh\necho "pip $*" >> "%s/calls"\n' "$folder" > "$folder/path/pip"
chmod +x "$folder/path/pip"
touch "$folder/calls"
cd "$folder"
PATH="$folder/path:$PATH" "$folder/venv/bin/mnnconvert" --help > output 2>&1
echo "mnnconvert --help called:"
cat calls
grep -qx "pip install -U aliyun-log-python-sdk" calls || { echo "it does not call pip any more"; exit 1; }

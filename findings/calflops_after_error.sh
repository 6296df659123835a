#!/usr/bin/env bash
# calflops 0.3.2 (torch 2.14.1): after one failed call every later count is doubled, after two it is tripled.
#
# Expected: a network has the same number of MACs whenever it is asked; an error, such as an image of the wrong size, ends
# with the error.
# Seen: torch's functions are replaced for the time of a count by ones that add up, and are put back only if the forward
# pass ends well. After an error they stay; the next count wraps them once more, and each layer is counted by both. No
# count of the process is right again, of no network. In a notebook, where one tries image sizes, that is easily met.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check calflops==0.3.2 torch==2.14.1 numpy==2.4.6 \
    accelerate==1.15.0 huggingface-hub==2.4.0 transformers==5.24.0
HF_HUB_OFFLINE=1 HOME="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from calflops import calculate_flops

torch.set_num_threads(1)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 16 * 16, 10)
)
by_hand = 3 * 8 * 9 * 16 * 16 + 8 * 16 * 16 * 10


def count(side):
    return calculate_flops(network, input_shape=(1, 3, side, side), output_as_string=False, print_results=False)[1]


counts = [count(16), count(16)]
for _ in range(2):
    try:
        count(20)
    except RuntimeError as error:
        print(f"an image of 20 x 20: {error}")
    counts.append(count(16))
print(f"MACs of an image of 16 x 16: by hand {by_hand}, counted {counts}")
assert counts[:2] == [by_hand] * 2, "even the first counts are wrong"
assert counts[2:] == [2 * by_hand, 3 * by_hand], "an error leaves nothing behind now"
PYTHON

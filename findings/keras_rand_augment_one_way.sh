#!/usr/bin/env bash
# Keras 3.15.1: RandAugment turns, shifts and shears in one direction only, by up to half a turn by default.
#
# Expected: as in the paper and in torchvision, either direction equally often, a turn of at most 30 degrees, and the
# strength of 0.5 about half of the most.
# Seen: the strength f goes to each operation as the range (0, f), in the operation's own unit. For a rotation that
# is the share of a full turn: at 0.5 images are turned by anything up to 180 degrees, all counter-clockwise. Shifts go
# down and right by up to half the image, and brightness only rises, by up to half the range.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 torch==2.14.1 numpy==2.4.6
HOME="$folder" KERAS_BACKEND=torch "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import keras
import numpy as np

keras.utils.set_random_seed(0)
augment = keras.layers.RandAugment(value_range=(0, 255))
y, x = np.float32(np.mgrid[-16:17, -16:17])


def several(image):
    """256 images alike, of three channels."""
    return np.repeat(image[None], 256, 0)


# A bright blot to the right of the centre tells how far an image was turned about it.
blot = np.repeat(255 * np.exp(-((x - 9) ** 2 + y**2) / 6)[..., None], 3, -1)
turned = np.asarray(augment.random_rotation(several(blot), training=True))[..., 0] * (np.hypot(x, y) < 15)
angles = np.degrees(np.arctan2(-(turned * y).sum((1, 2)), (turned * x).sum((1, 2)))) % 360
angles = np.where(angles > 350, angles - 360, angles)
print(f"turned by {angles.min():.0f} to {angles.max():.0f} degrees; {(angles > 30).mean():.0%} by more than 30")
# Where the channels are the places themselves, the middle pixel tells where it came from.
places = np.stack([x, y, x], -1)
middle = np.asarray(augment.random_translation(several(places), training=True))[:, 16, 16]
right, down = -middle[:, 0], -middle[:, 1]
print(f"of 33 pixels, shifted to the right by {right.min():.0f} to {right.max():.0f}, down by {down.min():.0f} to {down.max():.0f}")
grey = np.asarray(augment.random_brightness(np.full((256, 4, 4, 3), 100, np.float32), training=True)).mean((1, 2, 3))
print(f"a grey of 100 becomes {grey.min():.0f} to {grey.max():.0f}")
assert -5 < angles.min() and 170 < angles.max() < 190, "rotations are otherwise now"
assert min(right.min(), down.min()) > -1 and min(right.max(), down.max()) > 12, "shifts are otherwise now"
assert grey.min() >= 100 and grey.max() > 200, "the brightness is otherwise now"
PYTHON

#!/usr/bin/env bash
# Keras 3.15.1 on torch: RandomBrightness brightens the tensor it is given, and so RandAugment brightens every batch.
#
# Expected: an augmentation layer returns new images and leaves those given to it as they are, on every backend; and
# RandAugment applies num_ops of its eleven operations, of which seven leave a uniform grey image as it is.
# Seen: so it is on JAX, whose arrays cannot be changed. On torch float32 is added to in place. Batches that are slices
# of a tensor change the data set for good: after ten epochs of factor 0.2 it is off by 79 grey levels in the mean, and
# beyond the range of values, as only the result is clipped; with RandomColorJitter and a brightness_factor too.
# RandAugment computes all its operations on the same images and then picks one, so that on torch and NumPy the
# brightness is in it whatever was picked: of 40 grey batches none stays grey, on JAX 27 do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 torch==2.14.1 jax==0.10.2 numpy==2.4.6
cat > "$folder/augment.py" <<'PYTHON'
import keras
import numpy as np

keras.utils.set_random_seed(0)
backend = keras.backend.backend()
grey = np.full((4, 8, 8, 3), 64, np.float32)
augment = keras.layers.RandAugment(value_range=(0, 255), num_ops=1)
changes = [abs(np.asarray(augment(grey, training=True)) - 64).max((1, 2, 3)) > 1 for _ in range(40)]
same = sum(not change.any() for change in changes)
print(f"{backend}: RandAugment leaves {same} of 40 grey batches as they are")
assert same > 10 if backend == "jax" else same == 0, "RandAugment behaves otherwise now"

images = np.random.default_rng(0).uniform(0, 255, (256, 8, 8, 3)).astype(np.float32)
for layer in (
    keras.layers.RandomContrast(0.2),
    keras.layers.RandomColorJitter(value_range=(0, 255), brightness_factor=0.2),
    keras.layers.RandomBrightness(0.2),
):
    data = keras.ops.convert_to_tensor(images.copy())
    for _ in range(10):
        for start in range(0, len(images), 64):
            layer(data[start : start + 64], training=True)
    kept = np.asarray(data)
    moved = abs(kept - images).mean((1, 2, 3))
    print(f"{backend}: after ten epochs of {type(layer).__name__} the data itself is off by "
          f"{moved.mean():.0f} grey levels in the mean, and has values from {kept.min():.0f} to {kept.max():.0f}")
    changed = backend == "torch" and not isinstance(layer, keras.layers.RandomContrast)
    assert moved.mean() > 20 if changed else (kept == images).all(), "the layer behaves otherwise now"
PYTHON
for backend in jax numpy torch; do
  HOME="$folder" KERAS_BACKEND=$backend "$folder/venv/bin/python" -W ignore "$folder/augment.py"
done

#!/usr/bin/env bash
# eqxvision 0.2.8: blocks of one shape of MobileNetV3 start with the same weights; running averages are the last batch's.
#
# Expected: each block draws its first weights for itself, as those of MobileNetV2 do there, and the running averages of
# batch norm remember many batches.
# Seen: V3's blocks are all made with one key of JAX's random numbers. Where blocks have the same shape, all of their
# weights are equal, to the bit: two pairs of Small's 11 blocks, three of Large's 15. And the batch norms get torch's
# momentum of 0.01, which in equinox is the share that is kept: after a hundred batches of 0 and one of 1 it is 0.99.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# equinox and jax of its time: it imports equinox.experimental, which later versions do not have
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps eqxvision==0.2.8 equinox==0.9.2 jax==0.4.13 \
  jaxlib==0.4.13 numpy==1.26.4 scipy==1.12.0 ml_dtypes==0.2.0 opt_einsum==3.3.0 jaxtyping==0.2.19 typeguard==2.13.3 \
  typing_extensions==4.12.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
from collections import defaultdict

import equinox as eqx
import jax
import jax.numpy as jnp
from eqxvision.models import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small


def groups(network):
    """Blocks whose arrays are all equal, by their places; and of which blocks the shapes are equal."""
    same, shaped = defaultdict(list), defaultdict(list)
    for place, block in enumerate(network.features.layers[1:-1], 1):
        arrays = jax.tree_util.tree_leaves(eqx.filter(block, eqx.is_inexact_array))
        same[b"".join(one.tobytes() for one in arrays)].append(place)
        shaped[tuple(one.shape for one in arrays)].append(place)
    return ([places for places in kind.values() if len(places) > 1] for kind in (same, shaped))


for name, make in (("V3 Small", mobilenet_v3_small), ("V3 Large", mobilenet_v3_large), ("V2", mobilenet_v2)):
    same, shaped = groups(make(key=jax.random.PRNGKey(1)))
    print(f"{name}: blocks of the same shape {shaped}, with the same weights {same}")
    assert shaped and same == (shaped if "V3" in name else []), "blocks draw their weights otherwise now"

norm = mobilenet_v3_small().features.layers[0].layers[1]
assert norm.momentum == 0.01
for brightness in [0.0] * 100 + [1.0]:
    jax.vmap(norm, axis_name="batch", in_axes=(0,))(jnp.full((4, norm.input_size, 8, 8), brightness))
mean, _ = eqx.experimental.get_state(norm.state_index, like=(jnp.zeros(norm.input_size), jnp.zeros(norm.input_size)))
print(f"running mean after a hundred batches of 0 and one of 1: {mean[0]:.4f}")
assert mean[0] > 0.98, "the running average remembers more now"
PYTHON

"""How many images a second this checkout trains, beside an older one: what training_loop.csv has.

    python results/training_loop.py OLD [--rounds 9]

OLD is a checkout of the older commit (git worktree add OLD 2b536c6). Each trains in a process of its own, on one
thread, by the epoch of its own `training` module: data, forward, backward, optimizer; batches of 128 images of noise,
the recipe modern. They take turns, and the one that begins changes every round. It takes about ten minutes; let nothing
else run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
# And how many images a turn has, which is some seconds.
NETWORKS = {("v3_small", 0.25): 768, ("v3_small", 1.0): 384, ("v3_large", 1.0): 256, ("v2", 0.5): 384, ("v1", 0.5): 384}
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Checkout:
    """A process that trains a network by the code in `folder`."""

    def __init__(self, folder: Path, model: str, width: float):
        command = [sys.executable, __file__, str(folder), "--serve", model, str(width)]
        given = {"cwd": folder, "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}, "text": True}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **given)

    def train(self, images: int) -> tuple[float, float, str]:
        """Images a second, the most memory so far in MiB, and the commit."""
        self.process.stdin.write(f"{images}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(folder: Path, model: str, width: float) -> None:
    """For each number read, train on so many images and print what Checkout.train returns."""
    import numpy as np
    import torch

    import mnv3lib
    from mnv3lib import optimizers, provenance, recipe, training
    from mnv3lib.data import Split
    from mnv3lib.networks import MobileNet

    assert folder.resolve() in Path(mnv3lib.__file__).resolve().parents, "the code is another checkout's"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training.keep_memory()
    made = recipe.make("modern", model=model, width=width)
    network = MobileNet(made.architecture).to(memory_format=torch.channels_last)
    network.mean, network.std = MEAN, STD
    several = optimizers.make(made, network)
    generator = np.random.default_rng(0)
    for line in sys.stdin:
        count = int(line)
        pixels = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        split = Split(torch.from_numpy(pixels), torch.from_numpy(generator.integers(0, 100, count)))
        speed = training.train_epoch(made, network, several, split, 0)["images_per_second"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([speed, peak, provenance.commit()]), flush=True)


def compare(old: Path, model: str, width: float, images: int, rounds: int) -> dict:
    """A row of the table."""
    from mnv3lib.deploy import timing

    checkouts = {"new": Checkout(HERE.parent, model, width), "old": Checkout(old, model, width)}
    for one in checkouts.values():  # the kernels are compiled, and memory is asked for
        one.train(256)
    speeds, found = {"new": [], "old": []}, {}
    for number in range(rounds):
        for name in sorted(checkouts, reverse=number % 2 == 1):
            found[name] = checkouts[name].train(images)
            speeds[name].append(found[name][0])
    for one in checkouts.values():
        one.end()
    ratios = [new / old for new, old in zip(*speeds.values(), strict=True)]
    row = {"model": model, "width": width, "batch": 128, "threads": 1, "rounds": rounds}
    row |= {f"images_per_second_{name}": statistics.median(taken) for name, taken in speeds.items()}
    row |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    row |= {f"peak_mib_{name}": round(found[name][1]) for name in found} | {"commit_old": found["old"][2]}
    return row | timing.stamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("old", type=Path, metavar="OLD", help="a checkout of the older commit")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", nargs=2, metavar=("MODEL", "WIDTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.old, options.serve[0], float(options.serve[1]))
        return
    rows = []
    for (model, width), images in NETWORKS.items():
        rows.append(compare(options.old.resolve(), model, width, images, options.rounds))
        print(f"{model} {width:g}: {rows[-1]['ratio']:.2f}", flush=True)
    pd.DataFrame(rows).to_csv(HERE / "training_loop.csv", index=False, float_format="%.5g", lineterminator="\n")


if __name__ == "__main__":
    main()

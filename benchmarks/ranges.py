"""How often the "95 %" ranges of a report hold the figure that all images of a kind have.

    python benchmarks/ranges.py > benchmarks/results/ranges.md

Worlds of 2000 images are drawn, with classes that are rare or common, images that are hard or easy, and what a model finds in
them. Sets of images are taken from a world and judged, as a validation set is, and each gives its range of PQ. The figure that
it should hold is the mean over many such sets. Beside the ranges that reports have stand the plain quantiles of the draws.
"""

import argparse

import numpy as np

from thingstuff.evaluation.bootstrap import PanopticCounts, draw_images, interval, panoptic_qualities

IMAGES, SAMPLES = 2000, 300  # of a world; draws of a set
WORLDS = {
    "53 classes, 50 of them in 0.5 to 5 % of the images": lambda random: [*[0.7] * 3, *random.uniform(0.005, 0.05, 50)],
    "25 classes, 20 of them in 2 to 20 % of the images": lambda random: [*[0.5] * 5, *random.uniform(0.02, 0.2, 20)],
    "8 classes in 60 % of the images": lambda random: [0.6] * 8,
    "1 class in 95 % of the images": lambda random: [0.95],
}


def draw_world(presence: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """TP, FP, FN and sum of IoU of each image and class."""
    shape = IMAGES, len(presence)
    segments = (random.random(shape) < presence) * random.integers(1, 6, shape)
    ease = 1.5 * random.beta(4, 2, (IMAGES, 1))
    found = random.binomial(segments, np.clip(random.uniform(0.2, 0.9, len(presence)) * ease, 0, 1))
    return np.stack((found, random.binomial(segments, 0.3), segments - found, found * random.uniform(0.6, 0.95, shape)), axis=-1)


def figures(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """PQ of every draw."""
    images, classes, _ = counts.shape
    return panoptic_qualities(PanopticCounts(tuple(range(images)), (True,) * classes, counts), weights).overall["pq"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=8, help="of each kind")
    parser.add_argument("--sets", type=int, default=100, help="of images that are judged in each world")
    arguments = parser.parse_args()
    print("# Ranges\n\n" + "\n".join((__doc__ or "").split("\n\n")[2:]).strip())
    trials = arguments.worlds * arguments.sets
    print(f"\n{trials} sets for each line, {SAMPLES} draws of each set.\n")
    print("| world | images in a set | held, % | mean width, points | plain quantiles held, % |")
    print("| --- | --- | --- | --- | --- |")
    for name, presence_of in WORLDS.items():
        for images in (8, 15, 30, 60, 150):
            held = plain = 0
            width = 0.0
            for seed in range(arguments.worlds):
                random = np.random.default_rng(seed)
                world = draw_world(np.asarray(presence_of(random)), random)
                sets = random.integers(0, IMAGES, (5 * arguments.sets, images))
                judged = np.array([figures(world[chosen], np.ones((1, images)))[0] for chosen in sets])
                true = float(judged.mean())
                for number, chosen in enumerate(sets[: arguments.sets]):
                    drawn = figures(world[chosen], draw_images(images, SAMPLES, number))
                    reach = interval(drawn, float(judged[number]), images)
                    assert reach is not None
                    low, high = np.quantile(drawn, (0.025, 0.975))
                    held, plain = held + (reach[0] <= true <= reach[1]), plain + bool(low <= true <= high)
                    width += reach[1] - reach[0]
            shares = f"{100 * held / trials:.0f} | {100 * width / trials:.1f} | {100 * plain / trials:.0f}"
            print(f"| {name} | {images} | {shares} |", flush=True)


if __name__ == "__main__":
    main()

"""Put the weights of a training run into the package: kernels in 16 bits, test-time numbers as the model shall have them.

    python tools/bundle.py RUN/best.safetensors nuclei --detections 500 --proposals 1500 --proposal-score 0.05 \
        --score 0.03

The file must stay under 16 MB; it is loaded once more at the end.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import thingstuff
from thingstuff.bundled import FOLDER

MOST_BYTES = 16_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("name")
    parser.add_argument("--average-with", type=Path, help="weights of the same network: the mean of the two is bundled")
    parser.add_argument("--detections", type=int, help="objects an image, at most")
    parser.add_argument("--proposals", type=int, help="proposals an image, and of each level")
    parser.add_argument("--proposal-score", type=float, help="objectness that a proposal must reach")
    parser.add_argument("--short-side", type=int, help="pixels that images are resized to, where it is not what was trained at")
    parser.add_argument("--score", type=float, help="class probability that an object must reach, where none is asked for")
    parser.add_argument("--mask", type=float, help="probability that a pixel must exceed to belong to its object")
    parser.add_argument("--crop-margin", type=float, help="YOLACT: share of a box's sides by which its mask may reach beyond it")
    arguments = parser.parse_args()

    segmenter = thingstuff.load(arguments.weights, device="cpu")
    if arguments.average_with:
        state = thingstuff.load(arguments.average_with, device="cpu").model.state_dict()
        for name, value in segmenter.model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(state[name], 0.5)
    config = segmenter.model.config
    limits = config.thresholds
    if arguments.detections:
        limits = replace(limits, detections=arguments.detections)
    if arguments.proposals:
        limits = replace(limits, proposals=arguments.proposals, proposals_per_level=arguments.proposals)
    if arguments.proposal_score is not None:
        limits = replace(limits, proposal_score=arguments.proposal_score)
    if arguments.score is not None:
        limits = replace(limits, score=arguments.score)
    if arguments.mask is not None:
        limits = replace(limits, mask=arguments.mask)
    if arguments.crop_margin is not None:
        limits = replace(limits, crop_margin=arguments.crop_margin)
    segmenter.model.config = replace(config, thresholds=limits)
    if arguments.short_side:
        segmenter.preprocessing = replace(segmenter.preprocessing, short_side=arguments.short_side)

    path = FOLDER / f"{arguments.name}.safetensors"
    segmenter.save(path, half=True, notes={"name": arguments.name, "licence": "Apache-2.0"})
    size = path.stat().st_size
    if size > MOST_BYTES:
        path.unlink()
        raise SystemExit(f"{arguments.name} would take {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}; not bundled")
    print(f"{path}: {size / 1e6:.1f} MB, {thingstuff.load(arguments.name, device='cpu')}")


if __name__ == "__main__":
    main()

"""The bundled model `people`: AP on photographs it was not trained on, and the time of a whole prediction.

    python benchmarks/people.py JOINED [--unseen PENNFUDAN] [--model people] [--threads 2]

JOINED is the folder that `thingstuff data join coco-person coco-mini --categories person` writes; its split val is judged.
PENNFUDAN is another data set of people, all of whose images are judged. Timed are images of 640 x 480 pixels alone,
one after the other, from the encoded file in memory to masks as run-length codes, at the score that `thingstuff predict`
asks for.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

import thingstuff
from thingstuff.data.folders import open_dataset
from thingstuff.data.records import InstanceDataset
from thingstuff.evaluation.average_precision import AveragePrecision
from thingstuff.segmenter import Segmenter

RUNS = 5  # of the timed images
TIMED = 20  # images at most
SIDES = {640, 480}


def precision(model: Segmenter, dataset: InstanceDataset) -> dict[str, dict[str, float]]:
    """Box and mask AP, of all that the model gives."""
    found = AveragePrecision(dataset)
    lowest = model.thresholds().score
    for record, (_, segments) in zip(
        dataset, model.stream([record.path for record in dataset], score_threshold=lowest), strict=True
    ):
        assert not isinstance(segments, Exception), segments
        found.update(record.image_id, segments)
    return found.compute()


def seconds(model: Segmenter, dataset: InstanceDataset) -> list[float]:
    """Of each of the first photographs of 640 x 480 pixels, the median of its runs."""
    chosen = [record for record in dataset if set(record.size) == SIDES][:TIMED]
    encoded = [record.path.read_bytes() for record in chosen if record.path is not None]
    model.predict(encoded[0])  # what is set up only once
    taken: list[list[float]] = [[] for _ in encoded]
    for _ in range(RUNS):
        for photograph, times in zip(encoded, taken, strict=True):
            start = time.perf_counter()
            model.predict(photograph)
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("joined", type=Path)
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--model", default="people")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = thingstuff.load(arguments.model, device="cpu")

    joined = open_dataset(arguments.joined, "val")
    sets = {f"{arguments.joined.name}, val": joined}
    if arguments.unseen:
        sets[arguments.unseen.name] = open_dataset(arguments.unseen)
    print(f"{Path(arguments.model).stem}, torch {torch.__version__}\n")
    print("| images | number | people | mask AP | AP50 | AP75 | APs | APm | APl | box AP |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, dataset in sets.items():
        result = precision(model, dataset)
        mask = " | ".join(f"{result['mask'][key]:.3f}" for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"))
        people = sum(not found.is_crowd for record in dataset for found in record.objects)
        print(f"| {name} | {len(dataset)} | {people} | {mask} | {result['box']['AP']:.3f} |")
    times = seconds(model, joined)
    print(
        f"\n{1000 * statistics.median(times):.0f} ms (median) and {1000 * statistics.mean(times):.0f} ms (mean) a prediction, "
        f"{len(times)} photographs of 640 x 480 pixels, {arguments.threads} threads"
    )


if __name__ == "__main__":
    main()

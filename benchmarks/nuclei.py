"""The bundled model on its validation split: AP overall and by modality, and seconds an image.

    python benchmarks/nuclei.py DATA [--model nuclei] [--max-detections 300] [--threads 2]

DATA is the folder of the nuclei set (images/, instances_val.json). Time runs from the encoded file in memory to masks as
run-length codes, one image after the other; the file is read before, so that no disk is timed.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

import thingstuff
from thingstuff.data.folders import open_dataset
from thingstuff.evaluation.average_precision import AveragePrecision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--split", default="val")
    parser.add_argument("--max-detections", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    dataset = open_dataset(arguments.data, arguments.split)
    listed = json.loads((arguments.data / f"instances_{arguments.split}.json").read_text(encoding="utf-8"))["images"]
    modality = {image["id"]: image["modality"] for image in listed}
    model = thingstuff.load(arguments.model, device="cpu")
    lowest = model.thresholds().score  # average precision looks at all that the model gives
    model.predict(dataset[0].path)  # what is set up only once

    segments, seconds = {}, {}
    for record in dataset:
        assert record.path is not None
        encoded = record.path.read_bytes()
        start = time.perf_counter()
        segments[record.image_id] = model.predict(encoded, lowest, max_detections=arguments.max_detections)
        seconds[record.image_id] = time.perf_counter() - start

    numbers = f"{arguments.max_detections} detections an image, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{arguments.model}, {len(dataset)} images, {numbers}\n")
    print("| images | number | mask AP | AP50 | AP75 | box AP | mean s an image | median |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in ("all", *sorted(set(modality.values()))):
        records = tuple(record for record in dataset if name in ("all", modality[record.image_id]))
        precision = AveragePrecision(replace(dataset, records=records), arguments.max_detections)
        for record in records:
            precision.update(record.image_id, segments[record.image_id])
        result = precision.compute()
        mask, box = result["mask"], result["box"]
        times = [seconds[record.image_id] for record in records]
        print(
            f"| {name} | {len(records)} | {mask['AP']:.3f} | {mask['AP50']:.3f} | {mask['AP75']:.3f} | {box['AP']:.3f} "
            f"| {statistics.mean(times):.3f} | {statistics.median(times):.3f} |"
        )


if __name__ == "__main__":
    main()

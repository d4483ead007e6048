"""Every family on a GPU, end to end and beside the peer whose weights it has: one table in one run.

    python benchmarks/gpu.py [--seconds 85] > benchmarks/results/gpu.md
    python benchmarks/gpu.py --device cpu --quick    # the same on tiny images: does it all run?

From 8-bit images in memory to masks in memory, as a user would run it. Nothing is downloaded. Weights are random: batch norms are
measured on an image once, and the logits of classes and masks are widened to a standard deviation of 2, so that scores spread
like those of trained networks. The threshold of the scores is the one that `CANDIDATES` pairs of place and class an image exceed
before NMS, and at most `DETECTIONS` instances are kept. Networks of queries give their best 100 instances, and the threshold is
the one that `DETECTIONS` of them exceed, a mean of two images; in panoptic maps `SEGMENTS` queries exceed it, masks begin at half
of it and overlap as they like. A peer (torchvision, transformers) saves its weights, `thingstuff.load` reads that file, and both
get the same images and thresholds: the masks that each returns are there to compare. The bundled models are trained and run as
they are.

Times are medians of interleaved runs. "Before" is what happens until the network has its input, "network" the convolutions and
transformers; Mask R-CNN's and Panoptic FPN's end with the RPN's maps, on both sides, so that their heads on boxes are in "after".
Masks are run-length codes here, and dense booleans brought to the CPU with the peers. fp16 and bf16 are torch.autocast around it
all; fp32 is torch's default, which allows TF32 in convolutions. Memory is the most that torch held during a run, with the weights
of this network alone. Rows come by importance: those that time does not suffice for say so.
"""

import argparse
import contextlib
import gc
import importlib
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import thingstuff
from thingstuff import demo
from thingstuff.models.catalog import CATALOG
from thingstuff.models.contract import Task
from thingstuff.models.mask_classification import MaskClassifier
from thingstuff.models.mask_rcnn import MaskRCNN
from thingstuff.models.solo import SOLO, DecoupledSOLO, GridModel, cell_scores
from thingstuff.models.yolact import Yolact
from thingstuff.ops.deformable_attention import by_grid_sample, deformable_attention
from thingstuff.ops.roi_align import roi_align
from thingstuff.segmenter import Segmenter
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.images import read_image
from thingstuff.structures.preprocessing import Preprocessing

CANDIDATES = 500  # an image, pairs of place and class above the threshold
DETECTIONS = 75  # instances an image
SEGMENTS = 30  # queries sure enough for an image's panoptic map
SPREAD = 2.0  # standard deviation of class logits
RUNS = 5  # of each side, after a first one that warms up
ROW_SECONDS = 2.0  # runs of a row end after it, at the latest when each side has had two
ROW_LIMIT = 45.0  # seconds; a row that takes longer is given up, and the first of a model includes building it
OPERATORS_SHARE = 0.2  # of all seconds, at most
COMPILE_LIMIT = 60.0  # the same of a row that compiles
PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
CLASSES = 80
QUICK_SCALE = 6  # all sides of images are divided by it


class OutOfTimeError(BaseException):
    """No Exception, so that nothing on the way takes it for a failure that it can work around."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Machine:
    device: torch.device
    quick: bool

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clock(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        self.wait()
        start = time.perf_counter()
        result = function(*arguments)
        self.wait()
        return result, time.perf_counter() - start

    def megabytes(self, function: Callable[..., Any], *arguments: Any) -> float:
        """The most that torch held during the call, above what it held before; NaN on a CPU."""
        if self.device.type != "cuda":
            function(*arguments)
            return float("nan")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function(*arguments)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def images(self, kind: str, count: int) -> list[np.ndarray]:
        """Photographs: the demo's, cut, flipped and resized to 640 x 480."""
        size = (640 // QUICK_SCALE, 480 // QUICK_SCALE) if self.quick else (640, 480)
        pictures = [Image.fromarray(read_image(path)) for path in demo.images(kind)]
        result = []
        for number in range(count):
            picture = pictures[number % len(pictures)]
            step = number // len(pictures)
            width, height = (round(side * (1 - 0.1 * step)) for side in picture.size)
            cut = picture.crop((picture.width - width, 0, picture.width, height)).resize(size, Image.Resampling.BILINEAR)
            result.append(np.asarray(cut)[:, :: -1 if step % 2 else 1].copy())
        return result

    def scaled(self, preprocessing: Preprocessing) -> Preprocessing:
        if not self.quick:
            return preprocessing
        short, long = (side // QUICK_SCALE for side in (preprocessing.short_side, preprocessing.long_side))
        return replace(preprocessing, short_side=short, long_side=long)


@dataclass(frozen=True, eq=False)
class Side:
    """One way from images to masks."""

    weights: nn.Module
    compiled: nn.Module  # what torch.compile takes
    prepare: Callable[[list[np.ndarray]], Any]
    network: Callable[[Any], Any]
    whole: Callable[[list[np.ndarray]], int]  # gives the number of masks


@dataclass(frozen=True, eq=False)
class Pair:
    ours: Side
    peer: Side | None = None
    kind: str = "people"  # of images


@dataclass(frozen=True)
class Figures:
    """Of one side in one row."""

    images_a_second: float
    masks: float  # an image
    megabytes: float
    before: float  # share of the time
    network: float

    @property
    def shares(self) -> str:
        after = max(0.0, 1 - self.before - self.network)
        return " / ".join(f"{100 * share:.0f}" for share in (self.before, self.network, after))


# Networks


def settle(network: nn.Module, run: Callable[[], Any], heads: Sequence[nn.Module]) -> None:
    """Give each batch norm the statistics of what it gets in this run, and widen the logits of the heads to `SPREAD`."""
    hooks: list[Any] = []

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        with torch.no_grad():
            mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
            variance.copy_(inputs[0].var(dim=(0, 2, 3)).clamp(min=1e-6))

    def widen(done: set[nn.Module], layer: nn.Module, _: Any, output: Tensor) -> None:
        if layer not in done:  # it may run on several levels
            done.add(layer)
            with torch.no_grad():
                layer.get_parameter("weight").mul_(SPREAD / float(output.std()))

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(measure))
    hooks += [layer.register_forward_hook(partial(widen, set())) for layer in heads]
    with torch.enable_grad():  # without it our backbones run a copy that has no norms left
        run()
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def scores_of(segmenter: Segmenter, pictures: list[np.ndarray], task: Task) -> Tensor:
    """The scores that a threshold is compared with, of all images, highest first."""
    model: Any = segmenter.model
    batch = segmenter.preprocessing.batch(pictures).to(segmenter.device)
    predictions = model(batch.pixels)
    if isinstance(model, MaskRCNN):
        limits, inputs = model.config.thresholds, [size.input for size in batch.sizes]
        found = model.proposals(predictions, inputs, limits.proposals_per_level, limits.proposals, limits.proposal_nms, 0.0)
        logits, _ = model.box_head(model.pool(predictions.levels, [boxes for boxes, _ in found], model.config.box_pool))
        scores = logits.softmax(dim=1)[:, :-1]
    elif isinstance(model, Yolact):
        scores = predictions.class_logits.softmax(dim=2)[..., :-1]
    elif isinstance(model, GridModel):
        scores = cell_scores(predictions.categories)
    elif task is Task.PANOPTIC:
        scores = predictions.class_logits[-1].softmax(dim=2)[..., :-1].amax(dim=2)
    else:
        found = segmenter.segment(batch, score_threshold=0.0, task=task)
        scores = torch.from_numpy(np.concatenate([segments.scores for segments in found]))
    return scores.flatten().sort(descending=True).values


def ours(segmenter: Segmenter, score: float | None, detections: int | None, task: Task | None = None) -> Side:
    def whole(pictures: list[np.ndarray]) -> int:
        return sum(map(len, segmenter.predict(pictures, score, detections, batch_size=len(pictures), task=task)))

    return Side(
        segmenter.model,
        segmenter.model,
        lambda pictures: segmenter.preprocessing.batch([read_image(picture) for picture in pictures], device=segmenter.device),
        lambda batch: segmenter.model(batch.pixels.contiguous(memory_format=torch.channels_last)),
        whole,
    )


def with_threshold(segmenter: Segmenter, machine: Machine, task: Task | None = None) -> tuple[Side, float]:
    """Our side at a threshold that a realistic number of instances exceeds, and that threshold."""
    model: Any = segmenter.model
    task = task or segmenter.task
    pictures = machine.images("people", 2)
    wanted = CANDIDATES
    if isinstance(model, MaskClassifier):
        wanted = SEGMENTS if task is Task.PANOPTIC else DETECTIONS
    scores = scores_of(segmenter, pictures, task)
    score = float(scores[min(wanted * len(pictures), len(scores) - 1)])
    if task is Task.PANOPTIC and isinstance(model, MaskClassifier):  # the scores of random networks are low
        model.config = replace(model.config, thresholds=replace(model.config.thresholds, overlap=0.0, mask=score / 2))
    if isinstance(model, GridModel):  # the other threshold is for what Matrix NMS leaves, of which the best are kept
        model.config = replace(model.config, thresholds=replace(model.config.thresholds, cell_score=score))
        score = 0.0
    return ours(segmenter, score, 100 if isinstance(model, MaskClassifier) else DETECTIONS, task), score


def bundled(name: str, kind: str, machine: Machine) -> Pair:
    return Pair(ours(thingstuff.load(name, machine.device), None, None), kind=kind)


def _heads(model: Any) -> list[nn.Module]:
    """The layers that give logits of classes, and of masks where a mask is not a product of several layers' numbers."""
    if isinstance(model, MaskRCNN):
        return [model.box_head.classes, model.mask_head.logits]
    if isinstance(model, Yolact):
        return [model.head.classes]
    of_masks = {SOLO: ("kernels",), DecoupledSOLO: ("columns", "rows")}.get(type(model), ())
    return [model.categories, *(layer for name in of_masks for layer in model.get_submodule(name).children())]


def from_catalog(name: str, machine: Machine) -> Pair:
    architecture, config, preprocessing = CATALOG[name]
    model: Any = architecture(config)
    is_thing = getattr(config, "is_thing", (True,) * config.classes)
    categories = Categories(tuple(Category(number + 1, f"class {number}", thing) for number, thing in enumerate(is_thing)))
    segmenter = Segmenter(model, categories, machine.scaled(preprocessing), name).to(machine.device)
    batch = segmenter.preprocessing.batch(machine.images("people", 1)).to(machine.device)
    settle(model, lambda: model.segments(model(batch.pixels), batch.sizes, categories), _heads(model))
    return Pair(with_threshold(segmenter, machine)[0])


def load_from(save: Callable[[Path], Any], file: str, machine: Machine) -> Segmenter:
    """Our network with the weights that a peer saves in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        segmenter = thingstuff.load(Path(folder) / file, machine.device)
    segmenter.preprocessing = machine.scaled(segmenter.preprocessing)
    return segmenter


def beside_torchvision(machine: Machine) -> Pair:
    network: Any = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    network.eval().to(machine.device)
    images = machine.scaled(Preprocessing(short_side=800, long_side=1333))
    network.transform.min_size, network.transform.max_size = (images.short_side,), images.long_side

    def tensors(pictures: list[np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(picture).to(machine.device).permute(2, 0, 1).float() / 255 for picture in pictures]

    def maps(batch: Any) -> Any:
        return network.rpn.head(list(network.backbone(batch.tensors).values()))

    def whole(pictures: list[np.ndarray]) -> int:
        found = network(tensors(pictures))
        return sum(len((one["masks"] > 0.5).cpu().numpy()) for one in found)

    heads = [network.roi_heads.box_predictor.cls_score, network.roi_heads.mask_predictor.mask_fcn_logits]
    settle(network, lambda: network(tensors(machine.images("people", 1))), heads)
    saved = load_from(lambda folder: torch.save(network.state_dict(), folder / "model.pth"), "model.pth", machine)
    side, score = with_threshold(saved, machine)
    network.roi_heads.score_thresh, network.roi_heads.detections_per_img = score, DETECTIONS
    peer = Side(network, network.backbone, lambda pictures: network.transform(tensors(pictures))[0], maps, whole)
    return Pair(side, peer)


@cache
def _transformers_networks(kind: str, machine: Machine) -> tuple[Any, Any, Segmenter]:
    """transformers' network, its processor, and our network with its weights."""
    transformers = importlib.import_module("transformers")  # no dependency of ours, and absent where nobody wants to compare
    backbone = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    if kind == "mask2former-r50":
        config = transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=CLASSES)
        network = transformers.Mask2FormerForUniversalSegmentation(config)
    else:
        config = transformers.MaskFormerConfig(backbone_config=backbone, num_labels=CLASSES)
        network = transformers.MaskFormerForInstanceSegmentation(config)
    network.eval().to(machine.device)
    [picture] = machine.images("people", 1)
    pixels = torch.from_numpy(picture).to(machine.device).permute(2, 0, 1)[None].float() / 64 - 2
    settle(network, lambda: network(pixels), [network.class_predictor])
    segmenter = load_from(network.save_pretrained, "model.safetensors", machine)
    images = segmenter.preprocessing

    def of_images(name: str) -> Any:  # some versions have two, of which their own factory takes the fast one
        return getattr(transformers, f"{name}Fast", None) or getattr(transformers, name)

    if kind == "mask2former-r50":  # the sizes are those of the published processors
        processor = of_images("Mask2FormerImageProcessor")(size={"height": images.short_side, "width": images.short_side})
    else:
        size = {"shortest_edge": images.short_side, "longest_edge": images.long_side}
        processor = of_images("MaskFormerImageProcessor")(size=size, size_divisor=images.pad_multiple)
    return network, processor, segmenter


def beside_transformers(kind: str, task: Task, machine: Machine) -> Pair:
    network, processor, segmenter = _transformers_networks(kind, machine)
    side, score = with_threshold(segmenter, machine, task)

    def prepare(pictures: list[np.ndarray]) -> Any:
        return processor(images=pictures, return_tensors="pt").to(machine.device)

    def masks(outputs: Any, sizes: list[tuple[int, ...]]) -> int:
        if task is Task.PANOPTIC:
            found = processor.post_process_panoptic_segmentation(
                outputs, score, score / 2, overlap_mask_area_threshold=0.0, label_ids_to_fuse=set(), target_sizes=sizes
            )
        else:
            found = processor.post_process_instance_segmentation(
                outputs, threshold=score, target_sizes=sizes, return_binary_maps=True
            )
        return sum(len(one["segments_info"]) for one in found if one["segmentation"].cpu().numpy().size)

    on_the_cpu = []

    def whole(pictures: list[np.ndarray]) -> int:
        outputs = network(**prepare(pictures))
        sizes = [picture.shape[:2] for picture in pictures]
        if not on_the_cpu:
            try:
                return masks(outputs, sizes)
            except RuntimeError as error:  # some versions mix a map on the CPU with masks on the GPU
                if "indices should be" not in str(error) and "same device" not in str(error):
                    raise
                on_the_cpu.append(True)
        outputs.class_queries_logits = outputs.class_queries_logits.float().cpu()
        outputs.masks_queries_logits = outputs.masks_queries_logits.float().cpu()
        return masks(outputs, sizes)

    return Pair(side, Side(network, network, prepare, lambda inputs: network(**inputs), whole))


FAMILIES: dict[str, Callable[[Machine], Pair]] = {
    "mask-rcnn-r50": beside_torchvision,
    "mask2former-r50": partial(beside_transformers, "mask2former-r50", Task.INSTANCE),
    "maskformer-r50": partial(beside_transformers, "maskformer-r50", Task.INSTANCE),
    "yolact-r50": partial(from_catalog, "yolact-r50"),
    "solov2-r50": partial(from_catalog, "solov2-r50"),
    "panoptic-fpn-r50": partial(from_catalog, "panoptic-fpn-r50"),
    "mask2former-r50 panoptic": partial(beside_transformers, "mask2former-r50", Task.PANOPTIC),
    "solo-r50": partial(from_catalog, "solo-r50"),
    "solov2-light-r50": partial(from_catalog, "solov2-light-r50"),
    "decoupled-solo-light-r50": partial(from_catalog, "decoupled-solo-light-r50"),
    "people (bundled)": partial(bundled, "people", "people"),
    "nuclei (bundled)": partial(bundled, "nuclei", "nuclei"),
    "panoptic (bundled)": partial(bundled, "panoptic", "people"),
}
PEERS = {
    "mask-rcnn-r50": "torchvision",
    "mask2former-r50": "transformers",
    "maskformer-r50": "transformers",
    "mask2former-r50 panoptic": "transformers",
}


# Rows


@dataclass(frozen=True)
class Row:
    family: str
    batch: int
    precision: str
    mode: str = "eager"  # or "compile"

    def __str__(self) -> str:
        return f"{self.family}, {self.batch} together, {self.precision}, {self.mode}"


def rows(batches: Sequence[int]) -> list[Row]:
    """By importance: all families as they are, then what is compared with a peer in fewer bits, the others, and compiled."""
    small, large = batches
    with_peer = [name for name in FAMILIES if name in PEERS]
    alone = [name for name in FAMILIES if name not in PEERS]
    return [
        *(Row(name, batch, "fp32") for batch in batches for name in FAMILIES),
        *(Row(name, large, precision) for precision in ("bf16", "fp16") for name in with_peer),
        *(Row(name, large, "bf16", "compile") for name in with_peer[:2]),
        *(Row(name, large, "bf16") for name in alone),
        *(Row(name, small, precision) for precision in ("bf16", "fp16") for name in with_peer),
        *(Row(name, small, "fp32", "compile") for name in with_peer[:3]),
        *(Row(name, large, "fp16") for name in alone),
        *(Row(name, large, "bf16", "compile") for name in (*with_peer[2:], *alone)),
        *(Row(name, small, precision) for precision in ("bf16", "fp16") for name in alone),
    ]


@torch.inference_mode()
def measure(
    sides: dict[str, Side], pictures: list[np.ndarray], row: Row, machine: Machine
) -> tuple[dict[str, Figures], dict[str, str]]:
    """The figures of each side, or the reason why it has none."""
    failures: dict[str, str] = {}
    figures: dict[str, Figures] = {}
    dtype = PRECISIONS[row.precision]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    masks: dict[str, int] = {}
    working = dict(sides)
    with torch.autocast(machine.device.type, dtype) if dtype else contextlib.nullcontext():
        for name, side in sides.items():
            try:
                if row.mode == "compile":
                    side.compiled.compile(dynamic=False)
                else:
                    side.compiled._compiled_call_impl = None  # a row before this one may have left it
                side.whole(pictures)  # warms up
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
                del working[name]
        start = time.perf_counter()
        for number in range(RUNS):
            if number >= 2 and time.perf_counter() - start > ROW_SECONDS:
                break
            for name, side in working.items():
                masks[name], taken = machine.clock(side.whole, pictures)
                seconds[name].append(taken)
        for name, side in working.items():
            stages = []
            for _ in range(2):
                prepared, before = machine.clock(side.prepare, pictures)
                stages.append((before, machine.clock(side.network, prepared)[1]))
            total = statistics.median(seconds[name])
            weights = sum(tensor.nbytes for tensor in (*side.weights.parameters(), *side.weights.buffers())) / 2**20
            figures[name] = Figures(
                len(pictures) / total,
                masks[name] / len(pictures),
                weights + machine.megabytes(side.whole, pictures),
                min(before for before, _ in stages) / total,
                min(network for _, network in stages) / total,
            )
    return figures, failures


COLUMNS = (
    *("model", "batch", "precision", "mode", "peer", "images a second", "peer's", "times faster", "masks an image", "peer's"),
    *("memory, MB", "peer's", "before / network / after, %", "peer's", "the row took, s"),
)


def table(wanted: Sequence[Row], machine: Machine, end: float, patience: float) -> list[str]:
    """Print the table, and give what went wrong in full."""
    print(f"| {' | '.join(COLUMNS)} |")
    print("| --- " * len(COLUMNS) + "|", flush=True)
    problems: list[str] = []
    pairs: dict[str, Pair | str] = {}
    skipped = 0
    for row in wanted:
        cells = [row.family, str(row.batch), row.precision, row.mode, PEERS.get(row.family, "-")]
        start = time.perf_counter()
        limit = min(patience * (COMPILE_LIMIT if row.mode == "compile" else ROW_LIMIT), end - start)
        if limit < 1:
            skipped += 1
            continue
        try:
            with limited(limit):
                if row.family not in pairs:
                    pairs[row.family] = "its network can't be built"  # unless it can
                    pairs[row.family] = FAMILIES[row.family](machine)
                pair = pairs[row.family]
                if isinstance(pair, str):
                    raise RuntimeError(pair)
                sides = {"ours": pair.ours} | ({"peer": pair.peer} if pair.peer else {})
                figures, failures = measure(sides, machine.images(pair.kind, row.batch), row, machine)
        except (Exception, OutOfTimeError) as error:
            figures, failures = {}, {"ours": f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}"}
        problems += [f"{row}, {name}: {text}" for name, text in failures.items()]
        print(f"| {' | '.join([*cells, *_values(row, figures, failures), f'{time.perf_counter() - start:.1f}'])} |", flush=True)
        gc.collect()
    if skipped:
        print(f"\n{skipped} of {len(wanted)} rows were not run: out of time.")
    return problems


def _values(row: Row, figures: dict[str, Figures], failures: dict[str, str]) -> list[str]:
    def of(side: str, value: Callable[[Figures], str]) -> str:
        return value(figures[side]) if side in figures else "-"

    def speed(side: str) -> str:
        if side in failures:
            return f"failed: {failures[side].splitlines()[0][:60]}".replace("|", "/")
        return of(side, lambda found: f"{found.images_a_second:.1f}")

    sides = ("ours", "peer")
    faster = figures["ours"].images_a_second / figures["peer"].images_a_second if len(figures) == 2 else None
    return [
        *(speed(side) for side in sides),
        f"{faster:.2f}" if faster else "-",
        *(of(side, lambda found: f"{found.masks:.1f}") for side in sides),
        *(of(side, lambda found: f"{found.megabytes:.0f}") for side in sides),
        *(of(side, lambda found: found.shares) for side in sides),
    ]


# Operators


def operators(machine: Machine, end: float) -> list[str]:
    """Print the table of operators, and give what went wrong in full."""
    print("| operator | what | here, ms | peer's, ms | times faster | MB here | MB peer's | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    problems = []
    cases = [*_roi_align_cases(machine), *_deformable_attention_cases(machine)]
    for name, here, theirs, leaves in cases:
        for backward in (False, True):
            what = "forward + backward" if backward else "forward"
            left = end - time.perf_counter()
            if left < 0.1:
                print(f"| {name} | {what} | not run: out of time | | | | | |", flush=True)
                continue
            try:
                with limited(left):
                    print(f"| {name} | {what} | {_compare(here, theirs, leaves, backward, machine)} |", flush=True)
            except (Exception, OutOfTimeError) as error:
                problems.append(f"{name}, {what}: {type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}")
                print(f"| {name} | {what} | failed: {str(error)[:60].splitlines()[0]} | | | | | |", flush=True)
    return problems


def _compare(here: Callable, theirs: Callable, leaves: list[Tensor], backward: bool, machine: Machine) -> str:
    def run(operator: Callable) -> list[Tensor]:
        given = [leaf.detach().requires_grad_(backward) for leaf in leaves]
        result = operator(*given)
        return [result.detach(), *(torch.autograd.grad(result.sum(), given) if backward else ())]

    ways = {"here": partial(run, here), "theirs": partial(run, theirs)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, list[Tensor]] = {}
    for _ in range(RUNS + 1):  # the first warms up
        for name, way in ways.items():
            results[name], taken = machine.clock(way)
            seconds[name].append(taken)
    difference = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in zip(*results.values(), strict=True))
    results.clear()
    memory = [machine.megabytes(way) for way in ways.values()]
    mine, other = (1000 * statistics.median(times[1:]) for times in seconds.values())
    return f"{mine:.2f} | {other:.2f} | {other / mine:.2f} | {memory[0]:.0f} | {memory[1]:.0f} | {difference:.1e}"


def _roi_align_cases(machine: Machine) -> Iterator[tuple[str, Callable, Callable, list[Tensor]]]:
    height, width, channels = (50, 84, 32) if machine.quick else (200, 336, 256)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(1, channels, height, width, generator=random).to(machine.device)
    for count, bins, samples in ((1000, 7, 0), (1000, 7, 2), (100, 14, 0), (100, 14, 2)):
        sides = 16 * 28 ** torch.rand(count, 2, generator=random)  # pixels, evenly in logarithm up to 448
        corners = torch.rand(count, 2, generator=random) * (torch.tensor([width, height]) * 4 - sides).clamp(min=0)
        rois = torch.cat((torch.zeros(count, 1), corners, corners + sides), dim=1).to(machine.device)

        def align(operator: Callable, maps: Tensor, rois: Tensor = rois, bins: int = bins, samples: int = samples) -> Tensor:
            return operator(maps, rois, (bins, bins), 0.25, samples, True)

        sampling = f"{samples} x {samples} samples" if samples else "adaptive"
        name = f"RoI Align against torchvision's, {count} RoIs, {bins} x {bins}, {sampling}"
        yield name, partial(align, roi_align), partial(align, torchvision.ops.roi_align), [features]


def _deformable_attention_cases(machine: Machine) -> Iterator[tuple[str, Callable, Callable, list[Tensor]]]:
    heads, channels, points = 8, 32, 4
    for height, width in ((96, 128), (128, 160)) if machine.quick else ((480, 640), (800, 1333)):
        sizes = [(-(-height // stride), -(-width // stride)) for stride in (32, 16, 8)]
        cells = sum(rows * columns for rows, columns in sizes)
        random = torch.Generator().manual_seed(0)
        values = torch.randn(1, cells, heads, channels, generator=random)
        centres = torch.cat(
            [
                torch.stack(
                    torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")[
                        ::-1
                    ],
                    dim=-1,
                ).flatten(0, 1)
                for rows, columns in sizes
            ]
        )  # x y
        side = torch.tensor([[columns, rows] for rows, columns in sizes])[:, None]
        offsets = 2 * torch.randn(1, cells, heads, len(sizes), points, 2, generator=random) / side
        weights = torch.randn(1, cells, heads, len(sizes) * points, generator=random).softmax(dim=-1)
        places = centres[None, :, None, None, None] + offsets
        leaves = [tensor.to(machine.device) for tensor in (values, places, weights.unflatten(-1, (len(sizes), points)))]

        def attend(operator: Callable, values: Tensor, places: Tensor, weights: Tensor, sizes: Any = sizes) -> Tensor:
            return operator(values, sizes, places, weights).flatten(2)

        theirs, named = by_grid_sample, "grid_sample"
        with contextlib.suppress(ImportError):
            theirs = importlib.import_module(
                "transformers.models.mask2former.modeling_mask2former"
            ).multi_scale_deformable_attention
            named = "transformers'"
        name = f"deformable attention against {named}, image of {height} x {width}"
        yield name, partial(attend, deformable_attention), partial(attend, theirs), leaves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=85.0, help="after the imports; then rows are given up or not run")
    parser.add_argument("--quick", action="store_true", help="tiny images, to see that all of it runs")
    parser.add_argument("--batch", type=int, nargs=2, default=None, help="default: 1 8, quick: 1 2")
    parser.add_argument("--only", help="rows that have this in their description")
    options = parser.parse_args()
    end = time.perf_counter() + options.seconds
    machine = Machine(torch.device(options.device), options.quick)
    warnings.simplefilter("ignore")  # the peers'
    torch.manual_seed(0)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    with contextlib.suppress(ImportError):
        versions["transformers"] = importlib.import_module("transformers").__version__
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else platform.machine()
    size = machine.images("people", 1)[0].shape
    print("# Families on a GPU, beside their peers\n")
    print(f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{library} {version}" for library, version in versions.items()) + ".")
    print(f"Images of {size[1]} x {size[0]} pixels; medians of at most {RUNS} interleaved runs; {options.seconds:.0f} seconds.")
    print("Made by `benchmarks/gpu.py`, whose first lines say how weights, thresholds and stages are chosen.\n")
    patience = 10.0 if options.quick else 1.0  # a busy CPU is slow
    share = time.perf_counter() + options.seconds * OPERATORS_SHARE
    problems = operators(machine, share) if not options.only else []
    print()
    wanted = [row for row in rows(options.batch or ((1, 2) if options.quick else (1, 8))) if (options.only or "") in str(row)]
    problems += table(wanted, machine, end, patience)
    if problems:
        print("\n## What failed, in full\n")
        for problem in problems:
            print(f"```\n{problem.replace(f'{Path(__file__).parents[1]}/', '')}\n```\n")  # tables are kept: no path of a machine
    sys.stdout.flush()


if __name__ == "__main__":
    main()

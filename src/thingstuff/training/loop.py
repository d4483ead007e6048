"""Training: batches in, weights, a log and pictures out. No branch per model: a model gives a dict of named losses.

batches -> losses -> gradients, clipped -> optimizer -> averaged weights -> validation: figures, pictures -> best, last weights

A run is a folder: `recipe.json`, `log.csv`, `log.jsonl`, `state.pt` to resume from, `last.safetensors`, `best.safetensors` and
`pictures/`.
What a step does follows from the recipe and the state before it alone: a run killed and resumed on a CPU ends in the same bits.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import broadcast, gather_object, parse_flag_from_env
from timm.optim.muon import Muon
from torch import Tensor, nn
from tqdm import tqdm

from thingstuff import visuals
from thingstuff.bundled import bundled_models
from thingstuff.checkpoints.backbone_weights import load_backbone_weights
from thingstuff.data.bit_depths import common_bit_depth
from thingstuff.data.loader import TrainingLoader
from thingstuff.data.records import InstanceDataset
from thingstuff.errors import ConfigError, ImageError, TrainingError
from thingstuff.models.catalog import CATALOG
from thingstuff.models.contract import Model, Task, own_task
from thingstuff.segmenter import Segmenter, load
from thingstuff.structures.preprocessing import ImageBatch, Preprocessing, Targets
from thingstuff.training.data import choose_task, open_data
from thingstuff.training.recipe import Recipe
from thingstuff.training.run_folder import (
    Log,
    State,
    begun_network,
    prepare_folder,
    read_validation,
    resume_state,
    save_state,
    write_whole,
)
from thingstuff.training.stopping import Stopped, StopSignals
from thingstuff.training.validation import JUDGES, in_words

# learned queries and positions: Mask2Former's and MaskFormer's, and those of timm's transformers
_NO_KERNELS = {
    *("queries", "query_positions", "level_embeddings", "relative_position_bias_table", "pos_embed", "absolute_pos_embed"),
    *("cls_token", "reg_token"),
}


def train(recipe: Recipe, resume: bool = False) -> dict[str, Any]:
    """Train a model and return its last validation; everything else is in the recipe's folder.

    Args:
        resume: go on with the run in the recipe's folder; where it holds none yet, start.

    Raises:
        Stopped: by Ctrl-C or SIGTERM; the step is done and saved, its validation may be left to do. It is a KeyboardInterrupt.
        TrainingError: a loss is not finite, the folder holds another run, or the data has no object to learn from.
        AnnotationError, ImageError: the data is broken; the file and the id are named.
        ConfigError: the name of the model or of a loss is unknown, or a number is out of range.
    """
    accelerator = _accelerator(recipe)
    torch.manual_seed(recipe.seed)
    start = (_begun(recipe) if resume else None) or _start_of(recipe)
    task = choose_task(recipe, start.model_class.tasks, start.task)
    data = open_data(recipe, task, start.model_class.trained_as(task))
    training_data = data.training
    depth = start.preprocessing.bit_depth if recipe.bit_depth is None else recipe.bit_depth
    depth = common_bit_depth([each for each in (training_data, data.validation) if each is not None], depth)
    segmenter = _build(recipe, start, training_data, task)
    segmenter.preprocessing = replace(segmenter.preprocessing, bit_depth=depth)
    segmenter.model.backbone.freeze(recipe.freeze_levels)
    weights = _loss_weights(recipe, segmenter.model)
    loader = TrainingLoader(
        training_data,
        recipe.augmentation,
        segmenter.preprocessing,
        recipe.batch_size,
        seed=recipe.seed,
        workers=recipe.workers,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        cache_bytes=recipe.cache_megabytes * 2**20,
    )
    folder = recipe.folder
    if accelerator.is_main_process:  # not before all is checked: the next try would find a run there
        prepare_folder(recipe, resume, training_data, segmenter)
    accelerator.wait_for_everyone()

    losses = _Losses(segmenter.model)
    average = deepcopy(segmenter.model).requires_grad_(False)
    optimizer = _optimizer(recipe, segmenter.model)
    losses, optimizer = accelerator.prepare(losses, optimizer)
    average.to(accelerator.device)
    state = resume_state(folder, accelerator, segmenter.model, average, optimizer) if resume else State()
    if resume and state.step == 0 and accelerator.is_main_process:
        tqdm.write(f"{folder} has no step of a run to go on from; the run starts at its beginning", file=sys.stderr)
    averaged = Segmenter(average, segmenter.categories, segmenter.preprocessing, name=recipe.model)

    log = Log(folder, state.step, state.validation_due)
    bar = tqdm(total=recipe.steps, initial=state.step, desc="train", disable=not accelerator.is_main_process, dynamic_ncols=True)
    result: dict[str, Any] = {}
    batches = loader.batches(state.step * recipe.accumulate)
    segmenter.model.train()
    signals = StopSignals()

    def conclude() -> dict[str, Any]:
        """End a step: validate where that is due, save, stop where a signal says so. Gives the validation, if there was one."""
        found = None
        if state.validation_due and data.validation is not None:
            found = _validate(averaged, data.validation, task, recipe, state.step, accelerator, signals)
        if found is not None:
            state.validation_due = False
            _note_validation(found, task, state, averaged, recipe, log, bar, accelerator)
            if accelerator.is_main_process:
                log.flush()
        stop, last = signals.agreed(accelerator), state.step >= recipe.steps
        if accelerator.is_main_process and (state.step % recipe.save_every == 0 or last or stop):
            averaged.save(folder / "last.safetensors", notes=_notes(recipe, state, task))
            log.flush()
            save_state(folder, state, accelerator, segmenter.model, average, optimizer)
        if stop and (state.validation_due or not last):
            bar.close()
            accelerator.wait_for_everyone()  # the first process to end would end the others, while they save
            left = ", with the validation of that step" if state.validation_due else ""
            raise Stopped(
                f"stopped after step {state.step} of {recipe.steps}, which {folder} holds; "
                f"the same command with --resume (in Python resume=True) goes on from there{left}",
                stop,
            )
        return found or {}

    with signals, _flushed(log, accelerator):
        if state.validation_due:  # the run was stopped in it
            result = conclude()
        while state.step < recipe.steps:
            rate = recipe.learning_rate_at(state.step, accelerator.num_processes)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)  # states of runs from before there was one have none
            shown: dict[str, float] = {}
            for part, (batch, targets) in enumerate(islice(batches, recipe.accumulate)):
                torch.manual_seed(
                    _seed_of(recipe.seed, state.step, part, accelerator.process_index)
                )  # sampling of anchors and RoIs
                with accelerator.accumulate(losses), _kernels(segmenter.model, accelerator.device), _values_enough(batch):
                    pixels = batch.pixels.to(accelerator.device, memory_format=torch.channels_last)
                    terms = losses(pixels, [target.to(accelerator.device) for target in targets])
                    values = _finite(terms, targets, state.step)
                    accelerator.backward(sum(weights[name] * term for name, term in terms.items()))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(losses.parameters(), recipe.clip_gradient)
                    optimizer.step()
                    optimizer.zero_grad()
                for name, value in values.items():
                    shown[name] = shown.get(name, 0.0) + value / recipe.accumulate
            state.step += 1
            _move_average(average, segmenter.model, recipe.ema, state.step)

            total = sum(weights[name] * value for name, value in shown.items())
            log.add({"step": state.step, "learning_rate": rate, "loss": total, **shown})
            bar.update()
            bar.set_postfix({"loss": f"{total:.3f}"} | {name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)

            validates = state.step % recipe.validate_every == 0 or state.step == recipe.steps
            state.validation_due = validates and data.validation is not None
            result = conclude()
    bar.close()
    accelerator.wait_for_everyone()
    if not result and (folder / "validation.json").exists():  # nothing was left to do
        result = read_validation(folder, JUDGES[task].parts)
    return result


def _accelerator(recipe: Recipe) -> Accelerator:
    """What moves a run's work to its device, in its precision."""
    if is_initialized() and AcceleratorState().mixed_precision != recipe.precision:
        # Else a process keeps the precision of its first run, and refuses another. accelerate has no public way (as of 1.15,
        # whose own tests go this one); the processes' group, which can be made only once, is PartialState's and stays.
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=recipe.precision, gradient_accumulation_steps=recipe.accumulate)


@contextmanager
def _values_enough(batch: ImageBatch) -> Iterator[None]:
    """Raises TrainingError where a batch is so small that a norm has one value of a channel, whose deviation is nothing."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = batch.pixels.shape[-2:]
        raise TrainingError(
            f"a batch of {len(batch)} image of {width} x {height} pixels leaves a norm one value of each channel; "
            "raise --batch-size, or --short-side or --crop"
        ) from error


@contextmanager
def _flushed(log: Log, accelerator: Accelerator) -> Iterator[None]:
    """Rows of the log reach its files however the block ends."""
    try:
        yield
    finally:
        if accelerator.is_main_process:
            log.flush()


def _kernels(model: nn.Module, device: torch.device) -> AbstractContextManager[Any]:
    """PyTorch's own convolutions for narrow networks on a processor: oneDNN's gradient of a strided 1 x 1 convolution of a few
    channels writes beyond its memory (oneDNN 3.12 with AVX-512, in torch 2.14), and the process crashes."""
    narrow = any(
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.in_channels < 16
        for layer in model.modules()
    )
    return _without_onednn() if narrow and device.type == "cpu" else nullcontext()


@contextmanager
def _without_onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.set_flags(_enabled=False)[0]  # its context, flags, sets more, and warns
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


def processes() -> PartialState:
    """The processes that train together, as torchrun or accelerate started them: how many, which one this is, its device.

    The flag must be given here: a PartialState made without it, before any Accelerator, counts one process on CPUs.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main_process() -> bool:
    """Whether this process is the one of its run that writes and tells."""
    return processes().is_main_process


class _Losses(nn.Module):
    """A model whose forward gives its losses, so that data-parallel wrappers work."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        return self.model.losses(images, targets)


@dataclass(frozen=True)
class _Start:
    """What a run starts from: an entry of the catalog, a checkpoint, or what it began with before it was stopped."""

    model_class: type[Model]
    task: Task  # what it gives unless asked for something else
    config: Any
    preprocessing: Preprocessing
    checkpoint: Segmenter | None
    is_begun: bool = False  # config and preprocessing are the run's already, and its state has the weights


def _begun(recipe: Recipe) -> _Start | None:
    """The network of the run that the folder holds, whatever the recipe's name for it means by now."""
    network = begun_network(recipe.folder)
    if network is None:
        return None
    task = own_task(network.model_class, network.config)
    return _Start(network.model_class, task, network.config, network.preprocessing, None, is_begun=True)


def _start_of(recipe: Recipe) -> _Start:
    if recipe.model in CATALOG:
        model_class, config, preprocessing = CATALOG[recipe.model]
        return _Start(model_class, own_task(model_class, config), config, preprocessing, None)
    if recipe.model in bundled_models() or Path(recipe.model).exists():
        segmenter = load(recipe.model, device="cpu")
        model = segmenter.model
        return _Start(type(model), segmenter.task, model.config, segmenter.preprocessing, segmenter)
    raise ConfigError(f"{recipe.model} is neither a file nor a model to train; these are: {', '.join(CATALOG)}")


def _build(recipe: Recipe, start: _Start, data: InstanceDataset, task: Task) -> Segmenter:
    """A new model with the data's classes, or a checkpoint that has the same categories; it gives the task unasked.

    That of a run begun is new, too, until its state is read.
    """
    segmenter, config = start.checkpoint, start.config
    if start.is_begun:
        return Segmenter(start.model_class(config), data.categories, start.preprocessing, name=recipe.model)
    if segmenter is None:
        if recipe.freeze_levels and not recipe.backbone_weights:
            raise ConfigError(
                f"freeze_levels is {recipe.freeze_levels}, but {recipe.model} starts from random weights, which would never "
                'learn; give --backbone-weights, a file or "imagenet", or a checkpoint for --model'
            )
        if config.backbone.frozen_norms and not recipe.backbone_weights:
            # timm starts the last norm of each block at zero; frozen there, the block would never learn
            config = replace(config, backbone=replace(config.backbone, frozen_norms=False))
            tqdm.write(f"{recipe.model}: no backbone weights, so its norms are trained, not frozen", file=sys.stderr)
        model = start.model_class(start.model_class.config_for(config, data.categories))
        segmenter = Segmenter(model, data.categories, start.preprocessing, name=recipe.model)
    elif segmenter.categories.ids != data.categories.ids:
        raise TrainingError(
            f"{recipe.model} knows the category ids {list(segmenter.categories.ids)}, "
            f"{data.source} has {list(data.categories.ids)}; "
            f"train a model of the catalog ({', '.join(CATALOG)}) instead"
        )
    elif segmenter.categories.names != data.categories.names:
        raise TrainingError(
            f"{recipe.model} calls its categories {list(segmenter.categories.names)}, "
            f"{data.source} calls them {list(data.categories.names)}; both must have the same names, in the same order"
        )
    model = segmenter.model
    model.config = replace(model.config, thresholds=segmenter.thresholds(task=task))
    old = segmenter.preprocessing
    short = recipe.short_side or old.short_side
    long = recipe.long_side or max(old.long_side, short)
    shrink = old.shrink if recipe.shrink is None else recipe.shrink
    square = old.square if recipe.square is None else recipe.square
    segmenter.preprocessing = replace(old, short_side=short, long_side=long, shrink=shrink, square=square)
    if recipe.backbone_weights:
        load_backbone_weights(segmenter.model.backbone, recipe.backbone_weights)
    return segmenter


def _loss_weights(recipe: Recipe, model: Model) -> dict[str, float]:
    """The weight of every loss.

    Raises:
        ConfigError: the recipe weights a loss that the model does not have.
    """
    chosen = dict(recipe.loss_weights)
    if unknown := chosen.keys() - model.loss_weights.keys():
        raise ConfigError(f"loss_weights names {sorted(unknown)}; the losses of {recipe.model} are {sorted(model.loss_weights)}")
    return {**model.loss_weights, **chosen}


def _parameter_groups(model: nn.Module, weight_decay: float, backbone_rate: float = 1.0) -> list[dict[str, Any]]:
    """Parameters by weight decay and by factor on the learning rate.

    Weight decay is for kernels and matrices; biases, norms and what is added or looked up, not multiplied with, go without. The
    backbone has groups of its own where its factor is not 1 (Cheng et al., 2022, arXiv:2112.01527, section 4.1).
    """
    parameters: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameters[backbone_rate if name.startswith("backbone.") else 1.0, _is_kernel(name, parameter)].append(parameter)
    return [
        {"params": parameters[factor, is_kernel], "weight_decay": weight_decay if is_kernel else 0.0, "factor": factor}
        for factor in dict.fromkeys((1.0, backbone_rate))
        for is_kernel in (True, False)
    ]


def _is_kernel(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in _NO_KERNELS


def _optimizer(recipe: Recipe, model: Model) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), or Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    Muon moves a matrix by its gradient's running mean with all singular values brought near 1; kernels are matrices of their
    first axis against all others, and packed ones, as of queries, keys and values, are one. Its updates are made as large as
    AdamW's usually are (Liu et al., 2025, arXiv:2502.16982, section 2.2), so that one learning rate serves it and NAdamW, which
    moves all else: what has no weight decay, the first kernel and, as Jordan has it, the last layers, depthwise kernels, and
    matrices that timm finds too narrow (fewer than 4 rows, or sides of 1 to more than 128). NAdamW's betas are 0.9 and 0.95.
    """
    groups = _parameter_groups(model, recipe.weight_decay, recipe.backbone_rate)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    for_muon = _for_muon(model)
    parts = []
    for group in groups:
        for use_fallback in (False, True):
            part = [parameter for parameter in group["params"] if (parameter in for_muon) != use_fallback]
            if part:
                parts.append({**group, "params": part, "use_fallback": use_fallback})
    return Muon(parts, lr=recipe.learning_rate, nesterov=True)


def _for_muon(model: Model) -> set[nn.Parameter]:
    kernels = {name: parameter for name, parameter in model.named_parameters() if _is_kernel(name, parameter)}
    kernels.pop(next(name for name in kernels if name.startswith("backbone.")))
    spared = (*model.last_layers, "*.offset")  # of deformable convolutions
    return {
        parameter
        for name, parameter in kernels.items()
        if not any(fnmatchcase(name.rpartition(".")[0], pattern) for pattern in spared)
    }


def _seed_of(seed: int, step: int, part: int, process: int) -> int:
    return ((seed * 1_000_003 + step) * 1009 + part * 101 + process) % 2**63  # what torch takes as a seed


def _finite(terms: dict[str, Tensor], targets: list[Targets], step: int) -> dict[str, float]:
    """The losses as numbers.

    Raises:
        TrainingError: some are not finite; names them and the images.
    """
    values = dict(zip(terms, torch.stack([term.detach().float() for term in terms.values()]).tolist(), strict=True))
    broken = {name: value for name, value in values.items() if not -float("inf") < value < float("inf")}
    if broken:
        names = ", ".join(f"{name} is {value}" for name, value in broken.items())
        images = ", ".join(str(target.image_id) for target in targets)
        raise TrainingError(
            f"step {step}: loss {names} on the images with id {images}; look at their annotations, "
            "or lower the learning rate or the gradient's clipping norm"
        )
    return values


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights; young averages forget faster, so that the start does not linger."""
    decay = min(decay, (1 + step) / (10 + step))
    now = model.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(now[name].to(value.dtype), 1 - decay)
        else:
            value.copy_(now[name])


def _validate(
    segmenter: Segmenter,
    data: InstanceDataset,
    task: Task,
    recipe: Recipe,
    step: int,
    accelerator: Accelerator,
    signals: StopSignals,
) -> dict[str, Any] | None:
    """The task's figures of the averaged weights on the validation split, and pictures of its first images.

    Each process takes its share of the images; all of them get the same numbers. None where a signal came before the last image,
    to any process.
    """
    share = replace(data, records=data.records[accelerator.process_index :: accelerator.num_processes])
    judge = JUDGES[task](share, recipe)
    draws = accelerator.is_main_process
    broadcast(list(segmenter.model.buffers()))  # in place: statistics of norms, of which each process has its own
    segmenter.model.eval()
    judged = 0
    with (
        torch.random.fork_rng(devices=[]),
        closing(segmenter.stream([record.path for record in share], task=task, **judge.limits())) as found,
        tqdm(total=len(share), desc="validate", leave=False, dynamic_ncols=True, disable=not draws) as bar,
    ):
        while judged < len(share) and signals.heard is None:
            record, (_, segments) = share[judged], next(found)
            if isinstance(segments, ImageError):
                raise segments
            judge.update(record, segments)
            if draws and judged < recipe.pictures and segments.image is not None:
                pictures = recipe.folder / "pictures"
                pictures.mkdir(exist_ok=True)
                picture = visuals.side_by_side(segments.image, judge.shown(segments), judge.truth(record))
                visuals.save(pictures / f"step_{step:06d}_{record.image_id}.png", picture)
            judged += 1
            bar.update()
    parts = gather_object([judge if judged == len(share) else None])
    if any(part is None for part in parts):
        return None
    whole = JUDGES[task](data, recipe)
    for part in parts:
        whole.merge(part)
    return whole.compute()


def _note_validation(
    result: dict[str, Any],
    task: Task,
    state: State,
    averaged: Segmenter,
    recipe: Recipe,
    log: Log,
    bar: tqdm,
    accelerator: Accelerator,
) -> None:
    judge = JUDGES[task]
    figure = judge.figure(result)
    better = figure > state.best
    if better:
        state.best, state.best_step = figure, state.step
    if not accelerator.is_main_process:
        return
    row = judge.row(result)
    log.add({"step": state.step, **row})
    bar.write(f"step {state.step}: {in_words(row)}")
    if better:
        averaged.save(recipe.folder / "best.safetensors", notes=_notes(recipe, state, task))
    write_whole(recipe.folder / "validation.json", json.dumps({"step": state.step, **result}, indent=1))


def _notes(recipe: Recipe, state: State, task: Task) -> dict[str, str]:
    trained = {"trained_steps": str(state.step), "trained_from": Path(recipe.model).name}
    return {**trained, JUDGES[task].best: f"{state.best:.4f}"}

"""What a run learns from and is judged on: the data set's objects, in the form that its task asks for."""

from dataclasses import dataclass, replace
from pathlib import Path

from thingstuff.data.folders import check_photos, has_panoptic, open_dataset, open_panoptic, splits_of
from thingstuff.data.panoptic_objects import merged_by_class, panoptic_as_objects, things_alone
from thingstuff.data.records import InstanceDataset
from thingstuff.data.whole_files import check_whole
from thingstuff.errors import ConfigError, TrainingError
from thingstuff.models.contract import Task
from thingstuff.training.recipe import Recipe


@dataclass(frozen=True)
class RunData:
    """What a run works on."""

    training: InstanceDataset
    validation: InstanceDataset | None  # in the form of the task, which may be narrower than that of training


def choose_task(recipe: Recipe, tasks: tuple[Task, ...], own: Task) -> Task:
    """What the recipe asks for, or else what the model gives unasked, where the data has it, or else objects.

    Raises:
        ConfigError: the model does not know the task.
    """
    if recipe.task is not None:
        task = Task(recipe.task)
        if task not in tasks:
            raise ConfigError(f"{recipe.model} gives {' or '.join(each.value for each in tasks)} segments, not {task.value}")
        return task
    if own is not Task.INSTANCE and Task.INSTANCE in tasks and not has_panoptic(Path(recipe.data), training_split(recipe)):
        return Task.INSTANCE
    return own


def open_data(recipe: Recipe, task: Task, trained_as: Task) -> RunData:
    """The training data in the form `trained_as`, the validation data in that of `task`; no photo is truncated.

    Raises:
        AnnotationError: the data is broken; the file and the id are named, of photos all that are broken.
        ConfigError: the data has no panoptic maps and the task needs them.
        TrainingError: there is nothing to learn, or the two have different categories.
    """
    folder, split, splits = Path(recipe.data), training_split(recipe), splits_of(Path(recipe.data))
    training = _open(folder, split, trained_as, recipe.image_dir)
    if not any(not found.is_crowd for record in training for found in record.objects):
        raise TrainingError(f"{training.source}: holds no object that is not a crowd, so there is nothing to learn")
    validation_folder = recipe.validation_image_dir or recipe.image_dir
    if recipe.validation_data:
        validation = _open(Path(recipe.validation_data), recipe.validation_split, trained_as, validation_folder)
    elif recipe.validation_split or ("val" in splits and split not in (None, "val")):
        validation = _open(folder, recipe.validation_split or "val", trained_as, validation_folder)
    else:
        check_whole([training])
        return RunData(training, None)
    if validation.categories.ids != training.categories.ids:
        raise TrainingError(
            f"{validation.source} has the category ids {list(validation.categories.ids)}, "
            f"{training.source} has {list(training.categories.ids)}; both must have the same, in the same order"
        )
    if recipe.validation_images is not None:
        validation = replace(validation, records=validation.records[: recipe.validation_images])
    check_whole([training, validation])
    return RunData(training, _in_form_of(task, trained_as, validation))


def training_split(recipe: Recipe) -> str | None:
    """The split that the recipe names, or "train" where the folder has one."""
    return recipe.split or ("train" if "train" in splits_of(Path(recipe.data)) else None)


def _open(path: Path, split: str | None, task: Task, image_dir: str | None) -> InstanceDataset:
    if task is Task.INSTANCE:
        return open_dataset(path, split, image_dir=image_dir)
    if has_panoptic(path, split) or (task is Task.PANOPTIC and not path.exists()):
        data = panoptic_as_objects(open_panoptic(path, split, image_dir=image_dir))
        check_photos(data)
    elif task is Task.PANOPTIC:
        where = f"{path}, split {split}," if split else str(path)
        raise ConfigError(
            f"{where} has no panoptic maps, which the task panoptic needs; make them, or train with --task instance"
        )
    else:
        data = open_dataset(path, split, image_dir=image_dir)
    return _in_form_of(task, Task.PANOPTIC, data)


def _in_form_of(task: Task, present: Task, data: InstanceDataset) -> InstanceDataset:
    """Objects in the form `present` in that of a task: things alone, every segment, or one object a class."""
    if task is present or task is Task.PANOPTIC:
        return data
    return things_alone(data) if task is Task.INSTANCE else merged_by_class(data)

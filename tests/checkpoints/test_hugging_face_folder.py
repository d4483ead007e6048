"""Folders as transformers' `save_pretrained` writes them: arrays in several files, and the settings beside them."""

import json

import pytest
import torch
from safetensors.torch import save_file

import thingstuff
from thingstuff.checkpoints.files import build
from thingstuff.checkpoints.hugging_face_folder import CONFIG, IMAGES, read_arrays, settings_beside
from thingstuff.checkpoints.python_config import Settings
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.contract import Task
from thingstuff.models.maskformer import MaskFormer, MaskFormerConfig
from thingstuff.structures.categories import COCO_PANOPTIC, COCO_THINGS
from thingstuff.structures.preprocessing import Preprocessing

from .test_mask2former_layouts import described, hollow, theirs

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say")
ARRAYS = {"class_predictor.bias": torch.zeros(3), "model.a": torch.ones(2), "model.b": torch.full((2,), 2.0)}
OF_COCO = [category.name for category in COCO_PANOPTIC]


def write_parts(folder, arrays, second):
    """Two files of which one holds what is named so, and their index."""
    parts = {name: f"model-0000{1 + name.startswith(second)}-of-00002.safetensors" for name in arrays}
    for file in set(parts.values()):
        save_file({name: array for name, array in arrays.items() if parts[name] == file}, folder / file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": parts}))
    return index


# The arrays


def test_the_files_of_an_index_are_read_together(tmp_path):
    index = write_parts(tmp_path, ARRAYS, second="model.")
    for path in (index, tmp_path):
        found = read_arrays(path).tensors
        assert {name.removeprefix("model."): array.tolist() for name, array in found.items()} == {
            "class_predictor.bias": [0, 0, 0],
            "a": [1, 1],
            "b": [2, 2],
        }


def test_one_file_of_several_is_refused_with_what_to_load_instead(tmp_path):
    write_parts(tmp_path, ARRAYS, second="model.")
    with pytest.raises(CheckpointError, match=r"is one of the 2 files of a network; load .*model\.safetensors\.index\.json"):
        read_arrays(tmp_path / "model-00002-of-00002.safetensors")


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path):
    index = write_parts(tmp_path, ARRAYS, second="model.")
    index.write_text(index.read_text().replace("model.b", "model.c"))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors holds other arrays than .* \(b, c\)"):
        read_arrays(index)
    index.write_text('{"weight_map": {"model.a": "../model.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"lists '\.\./model\.safetensors', which is no file beside it"):
        read_arrays(index)
    index.write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match="has no weight_map"):
        read_arrays(index)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="can't be read as JSON"):
        read_arrays(index)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without model\.safetensors or pytorch_model\.bin; name the weights"):
        read_arrays(tmp_path)


def test_a_network_in_two_files_with_four_heads_gives_the_same_numbers(tmp_path):
    torch.manual_seed(0)
    backbone = BackboneConfig("resnet18", (("layers", (1, 1, 1, 1)),))
    config = MaskFormerConfig(
        backbone,
        classes=3,
        channels=32,
        mask_channels=16,
        query_channels=32,
        queries=5,
        heads=4,
        decoder_layers=1,
        decoder_width=8,
    )
    model = build(MaskFormer, config, MaskFormer(config).state_dict())
    state = {}
    for name, tensor in model.state_dict().items():
        names = theirs("hugging face", MaskFormer, name)
        parts = tensor.chunk(3) if len(names) == 3 else [tensor]
        state |= {each: part.clone() for each, part in zip(names, parts, strict=True)}
    write_parts(tmp_path, state, second="model.transformer_module.")
    settings = {"model_type": "maskformer", "id2label": {"0": "nut", "1": "bolt", "2": "screw"}}
    (tmp_path / CONFIG).write_text(json.dumps(settings | {"decoder_config": {"decoder_attention_heads": 4, "num_queries": 5}}))
    (tmp_path / IMAGES).write_text(json.dumps({"size": {"height": 64, "width": 64}}))

    found = thingstuff.load(tmp_path, "cpu")
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(image).class_logits, model(image).class_logits, atol=1e-4, rtol=1e-4)
    assert found.categories.names == ("nut", "bolt", "screw")
    assert found.preprocessing.input_size(400, 600) == (64, 64)
    assert found.model.config.heads == 4


# config.json


def with_classes(kind, classes):
    tensors = hollow("hugging face", kind)
    for name in ("class_predictor.weight", "class_predictor.bias"):
        tensors[name] = torch.tensor(0.5).expand(classes + 1, *tensors[name].shape[1:])
    return tensors


def labels(names):
    return {CONFIG: Settings({"id2label": {str(number): name for number, name in enumerate(names)}})}


@pytest.mark.filterwarnings("error")
def test_the_names_of_published_classes_need_no_warning():
    found = described(with_classes("maskformer r50", 133), labels(OF_COCO))
    assert (found.categories, found.config.thresholds.task) == (COCO_PANOPTIC, Task.PANOPTIC)
    # most are the same, though some are spelled differently
    found = described(with_classes("maskformer r50", 80), labels(["person, people", "bike", *OF_COCO[2:80]]))
    assert (found.categories, found.config.thresholds.task) == (COCO_THINGS, Task.INSTANCE)


def test_other_classes_than_the_published_ones_keep_their_names():
    with pytest.warns(UserWarning, match=r"does not say which of its 80 classes are stuff"):
        found = described(with_classes("maskformer r50", 80), labels([f"screw {number}" for number in range(80)]))
    assert found.categories.names[:2] == ("screw 0", "screw 1")
    assert found.config.thresholds.task is Task.PANOPTIC


def test_the_names_that_transformers_makes_up_are_none():
    found = described(with_classes("maskformer r50", 133), labels([f"LABEL_{number}" for number in range(133)]))
    assert found.categories == COCO_PANOPTIC


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("mask2former r18", {"pre_norm": True}, "sets pre_norm to True"),
        ("mask2former r18", {"activation_function": "gelu"}, "sets activation_function to 'gelu'"),
        ("maskformer r50", {"decoder_config": {"activation_function": "gelu"}}, r"sets decoder_config\.activation_function to"),
        ("mask2former r18", {"backbone_config": {"downsample_in_first_stage": True}}, "downsample_in_first_stage to True"),
        ("mask2former swin", {"backbone_config": {"hidden_act": "gelu_new"}}, r"sets backbone_config\.hidden_act to 'gelu_new'"),
        ("mask2former r18", {"num_queries": 29}, "is of another network: its num_queries says 29, the arrays 30"),
        ("mask2former r18", {"id2label": {"0": "nut"}}, "is of another network: its id2label says 1, the arrays 7"),
        ("mask2former r18", {"model_type": "maskformer"}, "its model_type says maskformer, the arrays mask2former"),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_name(kind, setting, message):
    with pytest.raises(CheckpointError, match=rf"model\.pth: config\.json beside it .*{message}"):
        described(hollow("hugging face", kind), {CONFIG: Settings(setting)})


def test_settings_that_no_array_shows_are_taken_over():
    settings = {"num_attention_heads": 4, "backbone_config": {"downsample_in_bottleneck": True}}
    found = described(hollow("hugging face", "mask2former r101, narrow queries"), {CONFIG: Settings(settings)}).config
    assert (found.heads, found.points) == (4, 8)  # twice as many points for half the heads
    assert found.backbone.stride_in_1x1


def test_settings_of_another_network_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / CONFIG).write_text('{"model_type": "oneformer", "pre_norm": true}')
    (tmp_path / IMAGES).write_text('{"size": 100}')
    assert settings_beside(tmp_path / "model.safetensors") == {}
    (tmp_path / CONFIG).write_text('{"model_type": "mask2former"}')
    (tmp_path / IMAGES).write_text('{"image_processor_type": "DetrImageProcessor"}')
    assert list(settings_beside(tmp_path / "model.safetensors")) == [CONFIG]
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: holds a list, not an object"):
        settings_beside(tmp_path / "model.safetensors")


# preprocessor_config.json


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Preprocessing(stretch=True)),
        ({"size": {"height": 512, "width": 512}}, Preprocessing(short_side=512, square=True)),
        ({"size": 512, "max_size": 2048}, Preprocessing(short_side=512, long_side=2048, stretch=True)),
        (
            {"size": {"shortest_edge": 640, "longest_edge": 2560}, "size_divisor": 64},
            Preprocessing(short_side=640, long_side=2560, stretch=True, pad_multiple=64),
        ),
        ({"do_resize": False, "resample": 3}, Preprocessing(short_side=0)),
        ({"do_normalize": False}, Preprocessing((0.0,) * 3, (255.0,) * 3, stretch=True)),  # pixel / 255
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}, Preprocessing((127.5,) * 3, (255.0,) * 3, stretch=True)),
        (
            {"do_rescale": False, "image_mean": [1, 2, 3], "image_std": [4, 5, 6]},
            Preprocessing((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), stretch=True),
        ),
    ],
)
def test_the_images_are_those_of_the_preprocessor(settings, expected):
    found = described(hollow("hugging face", "mask2former r18"), {IMAGES: Settings(settings)})
    assert found.preprocessing == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 512, "width": 1024}}, "resizes to 512 x 1024 pixels; squares and a short side are supported"),
        ({"resample": 3}, "resizes with Pillow's filter 3"),
        ({"image_std": [0, 1, 1]}, "std must be positive"),
        ({"rescale_factor": 0}, r"has a rescale_factor of 0\.0"),
        ({"size": {"height": 100000, "width": 100000}}, "short_side must be at most 8192"),
    ],
)
def test_images_without_a_counterpart_are_refused(settings, message):
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json beside it.*{message}"):
        described(hollow("hugging face", "mask2former r18"), {IMAGES: Settings(settings)})


def test_a_key_of_the_file_itself_that_is_called_like_a_file_beside_it_tells_nothing():
    found = described(with_classes("maskformer r50", 133), {CONFIG: "anything", IMAGES: 3})
    assert found.categories.names == COCO_PANOPTIC.names

"""Own files carry everything that loading needs; foreign files are read without running what they ask for."""

import json
import math
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from thingstuff.checkpoints.files import is_own_format, read, read_header, read_weights, save
from thingstuff.errors import CheckpointError
from thingstuff.models.catalog import CATALOG, MASK_RCNN_TINY
from thingstuff.models.mask_rcnn import MaskRCNN
from thingstuff.segmenter import load
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import Preprocessing

CATEGORIES = Categories.numbered(3)
PREPROCESSING = Preprocessing(short_side=128, long_side=256)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MaskRCNN(MASK_RCNN_TINY).eval()


@pytest.fixture(scope="module")
def own_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "tiny.safetensors"
    save(path, model, CATEGORIES, PREPROCESSING, notes={"trained on": "nothing"})
    return path


# Own format


def test_a_saved_model_comes_back_equal_from_the_file_alone(model, own_file):
    again, categories, preprocessing = read(own_file)
    assert (again.config, categories, preprocessing) == (model.config, CATEGORIES, PREPROCESSING)
    assert not again.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    assert read_header(own_file).notes == {"trained on": "nothing"}
    assert is_own_format(own_file)


def test_half_precision_halves_the_file_and_keeps_norms_exact(model, own_file, tmp_path):
    save(tmp_path / "half.safetensors", model, CATEGORIES, PREPROCESSING, half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.56 * own_file.stat().st_size
    again, _, _ = read(tmp_path / "half.safetensors")
    for name, tensor in model.state_dict().items():
        # 11 bits of mantissa: half a unit in the last place is 2**-11 of the value, less than 2**-24 near zero
        rtol, atol = (2**-11, 2**-24) if tensor.ndim > 1 else (0, 0)
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=rtol, atol=atol)


def test_a_weight_that_is_not_finite_is_not_saved_and_leaves_no_file(model, tmp_path):
    broken = MaskRCNN(MASK_RCNN_TINY)
    broken.rpn.objectness.weight.data[0, 0] = math.nan
    with pytest.raises(CheckpointError, match=r"rpn\.objectness\.weight holds values that are not finite"):
        save(tmp_path / "nan.safetensors", broken, CATEGORIES, PREPROCESSING)
    broken.rpn.objectness.weight.data[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="not finite in 16 bits"):
        save(tmp_path / "nan.safetensors", broken, CATEGORIES, PREPROCESSING, half=True)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_name_is_not_saved(tmp_path):
    class Variant(MaskRCNN):
        """Somebody's own network, which a file could not name."""

    with pytest.raises(CheckpointError, match="Variant is no architecture"):
        save(tmp_path / "x.safetensors", Variant(MASK_RCNN_TINY), CATEGORIES, PREPROCESSING)


def rewritten(own_file, tmp_path, tensors=None, **changes):
    with safetensors.safe_open(own_file, "pt") as file:
        metadata = dict(file.metadata()) | changes
        tensors = tensors or {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})
    return path


def changed_config(own_file, tmp_path, **fields):
    with safetensors.safe_open(own_file, "pt") as file:
        config = json.loads(file.metadata()["config"])
    return rewritten(own_file, tmp_path, config=json.dumps(config | fields))


def test_an_own_file_of_a_later_format_asks_for_a_newer_version(own_file, tmp_path):
    with pytest.raises(CheckpointError, match=r"changed\.safetensors: format version 2.*install a newer one"):
        read(rewritten(own_file, tmp_path, format_version="2"))


def test_an_unknown_architecture_is_named(own_file, tmp_path):
    with pytest.raises(CheckpointError, match="architecture 'mask-rcnn-9' is unknown"):
        read(rewritten(own_file, tmp_path, architecture="mask-rcnn-9"))


@pytest.mark.parametrize("part", ["config", "categories", "preprocessing", "notes"])
def test_a_part_that_is_missing_or_no_json_is_named(own_file, tmp_path, part):
    for value in (None, "{", "[" * 100_000):
        with pytest.raises(CheckpointError, match=f"its {part} can't be read"):
            read(rewritten(own_file, tmp_path, **{part: value}))


def test_a_config_that_no_network_can_have_is_refused(own_file, tmp_path):
    with pytest.raises(CheckpointError, match="classes must be at least 1"):
        read(changed_config(own_file, tmp_path, classes=0))
    with pytest.raises(CheckpointError, match=r"missing: \[\]|unknown to this version: \['surprise'\]"):
        read(changed_config(own_file, tmp_path, surprise=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"box_width": 2**62}, "no network can be built from its config"),
        ({"channels": -5}, "channels must be at least 1, got -5"),
        ({"neck_norm": "group"}, "no network can be built from its config"),  # 32 groups of 16 channels
        ({"backbone": {"options": [["norm_layer", "nonsense"]]}}, r"changed\.safetensors: .*(nonsense|built)"),
        ({"roi_sampling": 10**6}, "at most 64 samples an axis"),
        ({"mask_pool": 10**6}, "256 cells"),
        ({"anchor_sizes": [8, 16, 32, 64, 0]}, "must be positive and finite"),
        ({"thresholds": {"score": 5}}, "score must lie from 0 to 1, got 5"),
        ({"thresholds": {"detections": 0}}, "detections must be at least 1, got 0"),
        ({"sampling": {"rois": -1}}, "rois must be at least 1, got -1"),
        ({"sampling": {"anchor_iou": [0.7, 0.3]}}, "anchor_iou must be two rising numbers"),
    ],
)
def test_numbers_that_no_network_has_are_refused(own_file, tmp_path, fields, message):
    with safetensors.safe_open(own_file, "pt") as file:
        config = json.loads(file.metadata()["config"])
    for name, value in fields.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    with pytest.raises(CheckpointError, match=message):
        read(rewritten(own_file, tmp_path, config=json.dumps(config)))


@pytest.mark.parametrize("name", ["short_side", "long_side", "pad_multiple"])
def test_images_larger_than_any_network_takes_are_refused_before_memory_is_taken(own_file, tmp_path, name):
    with safetensors.safe_open(own_file, "pt") as file:
        preprocessing = json.loads(file.metadata()["preprocessing"]) | {name: 10**9}
    with pytest.raises(CheckpointError, match=rf"changed\.safetensors: {name} must be at most 8192 pixels, got 1000000000"):
        read(rewritten(own_file, tmp_path, preprocessing=json.dumps(preprocessing)))


def test_weights_that_do_not_fit_their_config_are_refused_before_memory_is_taken(own_file, tmp_path):
    # 10**11 classes would be 12 TB of weights
    with pytest.raises(CheckpointError, match=r"classes\.weight: shape \(4, 32\), the model needs \(100000000001, 32\)"):
        read(changed_config(own_file, tmp_path, classes=10**11))


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "resnet18", "options": [["checkpoint_path", "other.pth"]]},
        {"name": "resnet18", "options": [["pretrained_cfg", "x"]]},
        {"name": "hf-hub:someone/something", "options": []},
        {"name": "local-dir:/somewhere", "options": []},
    ],
)
def test_a_config_that_would_fetch_other_files_is_refused(own_file, tmp_path, backbone):
    with safetensors.safe_open(own_file, "pt") as file:
        plain = json.loads(file.metadata()["config"])["backbone"]
    with pytest.raises(CheckpointError, match="would load something else; refused"):
        read(changed_config(own_file, tmp_path, backbone=plain | backbone))


def test_a_config_with_more_layers_than_arrays_is_refused(own_file, tmp_path):
    with pytest.raises(CheckpointError, match="mask_convs of 1000000000 does not go with"):
        read(changed_config(own_file, tmp_path, mask_convs=10**9))


def test_a_missing_array_of_an_own_file_is_named(own_file, tmp_path):
    with safetensors.safe_open(own_file, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != "rpn.deltas.bias"}  # noqa: SIM118
    with pytest.raises(CheckpointError, match=r"rpn\.deltas\.bias: missing from the file"):
        read(rewritten(own_file, tmp_path, tensors=tensors))


# Foreign files, sound ones

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.count": np.asarray(3)}
TENSORS = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}


def assert_same(found, expected=TENSORS):
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "meta": {"CLASSES": ("cat",)}},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"module." + name: tensor for name, tensor in state.items()},
        lambda state: {"_orig_mod.module." + name: tensor for name, tensor in state.items()},  # torch.compile of it
        lambda state: {
            "state_dict": {"model." + name: tensor for name, tensor in state.items()},
            "pytorch-lightning_version": "2",
        },
        lambda state: {name: torch.nn.Parameter(tensor.float()) if tensor.ndim else tensor for name, tensor in state.items()},
    ],
)
def test_torch_files_are_read_however_the_weights_are_wrapped(tmp_path, wrap, legacy):
    torch.save(wrap(TENSORS), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(read_weights(tmp_path / "a.pth").tensors)


def test_what_lies_beside_the_weights_is_kept_as_meta(tmp_path):
    torch.save({"state_dict": TENSORS, "meta": {"CLASSES": ("cat", "dog")}}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").meta == {"meta": {"CLASSES": ("cat", "dog")}}


def test_content_decides_and_not_the_name(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pkl")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(ARRAYS))
    save_file(TENSORS, tmp_path / "c.bin")
    for name in ("a.pkl", "b.pth", "c.bin"):
        assert sorted(read_weights(tmp_path / name).tensors) == sorted(TENSORS)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_numpy_arrays_are_read_at_every_protocol(tmp_path, protocol):
    arrays = {
        **ARRAYS,
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
        "half": np.ones(2, np.float16),
        "flag": np.array([True, False]),
        "scalar": np.float32(2.5),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}, protocol))
    file = read_weights(tmp_path / "a.pkl")
    found = file.tensors
    for name, array in arrays.items():
        assert found[name].numpy().dtype == np.asarray(array).dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name].numpy(), array)
    assert file.meta == {"__author__": "me"}


def test_a_pickle_by_python_2_is_read(tmp_path):
    # protocol 2 as numpy 1 under Python 2 wrote it: byte strings for the type's name and the data
    data = np.array([1.5, -2.0], "<f4").tobytes()
    text = (
        b"\x80\x02}U\x05modelcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08" + data + b"tbs."
    )
    (tmp_path / "a.pkl").write_bytes(text)
    assert read_weights(tmp_path / "a.pkl").tensors["model"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_the_module_names_of_numpy_1_and_2_are_both_known(tmp_path, module):
    written = pickle.dumps(ARRAYS, 2)
    other = {"numpy.core.multiarray": b"numpy._core.multiarray", "numpy._core.multiarray": b"numpy.core.multiarray"}[module]
    (tmp_path / "a.pkl").write_bytes(written.replace(other, module.encode()))
    assert_same(read_weights(tmp_path / "a.pkl").tensors)


# Foreign files that want to run something


class Payload:
    """Pickles to a call that leaves a marker behind when anybody makes it."""

    def __init__(self, marker, module="os"):
        self.marker, self.module = marker, module

    def __reduce__(self):
        if self.module == "os":
            return os.system, (f"touch {self.marker}",)
        return exec, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("module", ["os", "builtins"])
@pytest.mark.parametrize("place", ["value", "beside", "inside"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, module, place):
    marker = tmp_path / "marker"
    payload = Payload(marker, module)
    content = {
        "value": {"a.weight": payload},
        "beside": {"model": ARRAYS, "meta": payload},
        "inside": {"a.weight": np.array([payload], dtype=object)},
    }[place]
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"evil\.pkl: asks for (posix\.system|builtins\.exec|an array of 'O8')"):
        read_weights(tmp_path / "evil.pkl")
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("module", ["os", "builtins"])
def test_a_torch_file_that_would_run_code_is_refused_and_runs_none(tmp_path, module, legacy):
    marker = tmp_path / "marker"
    content = {"state_dict": TENSORS, "message_hub": Payload(marker, module)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil\.pth: asks for (posix\.system|builtins\.exec|exec).*never runs code"):
        read_weights(tmp_path / "evil.pth")
    assert not marker.exists()


def test_what_a_pickle_may_call_cannot_be_changed_by_it(tmp_path):
    # BUILD with a slot state would set attributes of the function itself
    text = b"\x80\x02c_codecs\nencode\nN}U\x01xK\x01s\x86b."
    (tmp_path / "evil.pkl").write_bytes(text)
    with pytest.raises(CheckpointError, match="asks for a change of a function"):
        read_weights(tmp_path / "evil.pkl")


def test_a_whole_pickled_model_is_refused_with_advice(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"asks for torch\.nn\.modules\.linear\.Linear.*save\(model\.state_dict"):
        read_weights(tmp_path / "a.pth")


def test_a_torchscript_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match="is a TorchScript program"):
        read_weights(tmp_path / "a.pt")


def test_weights_beside_the_histories_of_a_training_framework_are_read(tmp_path):
    # what mmengine leaves in its checkpoints: an instance with arrays, a dict and a bound function in its state
    class HistoryBuffer:
        def __init__(self):
            self.log, self.count = np.ones(3), np.float64(2)
            self.statistics = {"min": HistoryBuffer.current}

        def current(self):
            return 1

    module = type(os)("mmengine.logging.history_buffer")
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.current.__module__, HistoryBuffer.current.__qualname__ = module.__name__, "HistoryBuffer.current"
    module.HistoryBuffer = HistoryBuffer
    parents = {"mmengine": type(os)("mmengine"), "mmengine.logging": type(os)("mmengine.logging"), module.__name__: module}
    sys.modules |= parents
    try:
        hub = {"log_scalars": OrderedDict(loss=HistoryBuffer())}
        torch.save({"state_dict": TENSORS, "message_hub": hub, "meta": {"epoch": 1}}, tmp_path / "epoch_1.pth")
    finally:
        for name in parents:
            del sys.modules[name]
    found = read_weights(tmp_path / "epoch_1.pth")
    assert_same(found.tensors)
    assert found.meta["meta"] == {"epoch": 1}


# Foreign files that are broken


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x1f\x8b\x08" + b"0" * 100, "a gzip archive"),
        (b"just some words", "no weights file that thingstuff knows"),
        (b"\x80", "truncated or damaged pickle"),
        (b"\x80\x04.", "truncated or damaged pickle"),
        (b"\x80\x02K\x01.", "holds no weights"),
        (b"\x80\x02}.", "holds no weights"),
        (b"PK\x03\x04" + b"\0" * 30, "truncated or damaged torch archive"),
    ],
)
def test_what_is_no_weights_file_is_named_for_what_it_is(tmp_path, content, message):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{message}"):
        read_weights(tmp_path / "model.pth")


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder; name the weights file in it"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing\.pth: can't be opened"):
        read_weights(tmp_path / "nothing.pth")


def test_a_pipe_and_a_device_are_refused_without_waiting_for_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero"):
        assert not is_own_format(path)
        with pytest.raises(CheckpointError, match=f"{path}: is a pipe or a device, not a file"):
            read_weights(path)


def writers(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"w": np.ones(1000, np.float32)}}))
    torch.save({"w": torch.ones(1000)}, tmp_path / "zip.pth")
    torch.save({"w": torch.ones(1000)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file({"w": torch.ones(1000)}, tmp_path / "a.safetensors")
    return ["a.pkl", "zip.pth", "legacy.pth", "a.safetensors"]


def test_files_cut_anywhere_are_told_as_truncated(tmp_path):
    for name in writers(tmp_path):
        whole = (tmp_path / name).read_bytes()
        for share in (0.02, 0.1, 0.3, 0.5, 0.9, 0.999):
            (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.") + ": "):
                read_weights(tmp_path / name)


def test_files_with_damaged_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    for name in writers(tmp_path):
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            where = rng.integers(0, min(len(whole), 400), 4)
            damaged[where] = rng.integers(0, 256, 4)
            (tmp_path / name).write_bytes(damaged.tobytes())
            with suppress(CheckpointError):  # some bytes, such as those of a name, may take another value
                read_weights(tmp_path / name)


def test_a_pickled_shape_that_contradicts_its_data_is_refused(tmp_path):
    text = pickle.dumps({"w": np.ones(7, np.float32)}, 2)
    assert text.count(b"K\x07\x85") == 1
    for shape in (b"J\xff\xff\xff\x7f\x85", b"J\xff\xff\xff\xff\x85", b"\x8a\x06\0\0\0\0\0\1\x85"):
        (tmp_path / "a.pkl").write_bytes(text.replace(b"K\x07\x85", shape))
        with pytest.raises(CheckpointError, match="truncated or damaged pickle"):
            read_weights(tmp_path / "a.pkl")


def test_a_length_or_memo_number_that_no_file_holds_takes_no_memory(tmp_path):
    for text in (
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 46) + b"x.",  # 64 TB of bytes
        b"\x80\x04B" + struct.pack("<I", (1 << 32) - 1) + b"x.",
        b"\x80\x04Nr" + struct.pack("<I", (1 << 32) - 1) + b".",  # memo place 4 billion
    ):
        (tmp_path / "a.pkl").write_bytes(text)
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / "a.pkl")


def torch_archive(path, count, stored, compression=zipfile.ZIP_STORED):
    """A torch file with one storage that claims `count` floats and holds `stored` of them."""
    torch.save({"w": torch.ones(100)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            if name.endswith("data.pkl"):
                content = content.replace(b"K\x64", b"J" + struct.pack("<i", count))
            archive.writestr(name, bytes(4 * stored) if "/data/" in name and not name.endswith("id") else content)


def test_a_torch_storage_that_claims_more_than_it_holds_is_refused(tmp_path):
    torch_archive(tmp_path / "a.pth", 1 << 30, 100)
    with pytest.raises(CheckpointError, match="claims 1073741824 numbers of 4 bytes but holds 400 bytes"):
        read_weights(tmp_path / "a.pth")


def test_a_torch_file_that_unpacks_to_more_than_itself_is_refused(tmp_path):
    torch_archive(tmp_path / "a.pth", 1 << 24, 1 << 24, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.pth").stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="unpack to more than the file holds"):
        read_weights(tmp_path / "a.pth")


def test_a_tensor_stretched_over_one_number_is_refused(tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"w has shape \(1099511627776,\), empty or more than the whole file"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("tensor", [torch.ones(0, 1 << 40), torch.eye(3).to_sparse(), torch.ones(3, device="meta")])
def test_tensors_without_dense_data_are_refused(tmp_path, tensor):
    torch.save({"w": tensor}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: "):
        read_weights(tmp_path / "a.pth")


def test_a_value_that_is_no_array_is_named(tmp_path):
    torch.save({"w": torch.ones(1), "note": "hello"}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="'note' is a str, not an array"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(("mark", "stated"), [(None, "missing"), ("pt", "'pt'")])
def test_an_own_file_that_lost_its_mark_says_so(own_file, tmp_path, mark, stated):
    path = rewritten(own_file, tmp_path, format=mark)
    assert is_own_format(path)
    with pytest.raises(CheckpointError, match=rf"its metadata is damaged: format is {stated} where thingstuff writes 'thingst"):
        load(path)


@pytest.mark.parametrize("lost", ["format_version", "architecture"])
def test_an_own_file_that_lost_what_it_is_says_so(own_file, tmp_path, lost):
    with pytest.raises(CheckpointError, match=f"its metadata is damaged: {lost} missing; take the file as it was written"):
        load(rewritten(own_file, tmp_path, **{lost: None}))


@pytest.mark.parametrize("name", ["mask-rcnn-tiny", "panoptic-fpn-tiny", "yolact-tiny", "solov2-tiny", "mask2former-tiny"])
def test_arrays_of_our_own_without_their_metadata_are_taken_for_no_other_family(tmp_path, name):
    model_class, config, _ = CATALOG[name]
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in model_class(config).state_dict().items()}
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "bare.safetensors")
    torch.save(tensors, tmp_path / "bare.pth")
    for path in (tmp_path / "bare.safetensors", tmp_path / "bare.pth"):
        assert not is_own_format(path)
        with pytest.raises(CheckpointError, match=r"named as thingstuff names them, but its metadata, .* is missing"):
            load(path)


def test_a_file_without_any_mark_is_not_our_own(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors", {"format": "pt", "config": "{}"})
    assert not is_own_format(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not written by thingstuff"):
        read(tmp_path / "other.safetensors")
    assert not is_own_format(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("part", "lost", "message"),
    [
        ("preprocessing", None, "preprocessing: has no mean, std, short_side, long_side, pad_multiple, resize, which every file"),
        ("preprocessing", "std", "preprocessing: has no std, which every file holds: it is damaged"),
        ("config", None, "config: has no backbone, classes, thresholds, which every file holds: it is damaged"),
        ("config", "classes", "config: has no classes"),
        ("categories", None, "categories: holds none of the fields of Categories: it is damaged"),
    ],
)
def test_what_every_file_holds_takes_no_default(own_file, tmp_path, part, lost, message):
    with safetensors.safe_open(own_file, "pt") as file:
        content = json.loads(file.metadata()[part])
    content = {key: value for key, value in content.items() if key != lost} if lost else {}
    with pytest.raises(CheckpointError, match=rf"changed\.safetensors: {message}"):
        read(rewritten(own_file, tmp_path, **{part: json.dumps(content)}))


@pytest.mark.parametrize("part", ["backbone", "thresholds", "sampling"])
def test_a_part_of_the_config_without_any_field_takes_no_default(own_file, tmp_path, part):
    with pytest.raises(CheckpointError, match=rf"config\.{part}: holds none of the fields of "):
        read(changed_config(own_file, tmp_path, **{part: {}}))


def test_fields_younger_than_a_file_have_their_defaults(own_file, tmp_path):
    with safetensors.safe_open(own_file, "pt") as file:
        content = json.loads(file.metadata()["preprocessing"])
    older = {key: value for key, value in content.items() if key not in ("stretch", "bit_depth")}
    assert len(older) == len(content) - 2
    _, _, preprocessing = read(rewritten(own_file, tmp_path, preprocessing=json.dumps(older)))
    assert preprocessing == PREPROCESSING

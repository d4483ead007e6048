"""Mask2Former and MaskFormer against transformers 5.23: arrays along the way, then each task's final result.

Every case is run once more from a file in the authors' layout, for which there is no case: the same weights under the names that
transformers' conversion gives them there, and segments made in Hugging Face's way.

Tolerances are the cases' own. Where transformers gives one id to several segments, after a fused one, we give each its own; the
cases leave those pixels out.
"""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import thingstuff
from thingstuff.models.contract import Task
from thingstuff.models.mask_classification import Convention

from .authors_names import as_authors

pytestmark = pytest.mark.filterwarnings("ignore:.*by their number they are taken for COCO's things and stuff")

CASES = ("hf-mask2former-swin-tiny", "hf-maskformer-swin-tiny")


class Run:
    """One case through our network, with the original's arrays beside it."""

    def __init__(self, parity, folder, load):
        self.parity, self.case = parity, parity.Case(folder)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.raw = dict(np.load(folder / "outputs.npz").items())
        self.tolerances = self.case.facts["tolerances"]
        self.segmenter = load(self.case)
        self.model = self.segmenter.model
        self.batch = self.case.batch(self.segmenter)
        self.queries = []  # of each layer before the norm that its heads share
        self.model.decoder.norm.register_forward_pre_hook(lambda _, inputs: self.queries.append(inputs[0]))
        with torch.inference_mode():
            self.levels = self.model.backbone(self.batch.pixels)
            self.pixels = self.model.pixel_decoder(self.levels)
            self.predictions = self.model(self.batch.pixels)

    def result(self, task):
        limits = self.case.thresholds(self.segmenter.thresholds(task=task), task)
        with torch.inference_mode():
            found = self.model.segments(self.predictions, self.batch.sizes, self.segmenter.categories, limits)[0]
        return self.parity.prediction(found, task)

    def assert_like(self, name, actual, kind):
        """Nearly all values: masked attention cuts logits at 0, and a pixel on the other side moves a query slightly."""
        expected = torch.from_numpy(self.raw[name])
        assert actual.shape == expected.shape
        near = (actual - expected).abs() <= self.tolerances[f"{kind}_abs"]
        assert near.float().mean() >= 0.999


LAYOUTS = ("hugging face", "authors")


@pytest.fixture(scope="module", params=[(case, layout) for case in CASES for layout in LAYOUTS], ids=" as ".join)
def run(request, parity, shared_reference, tmp_path_factory):
    case, layout = request.param

    def from_authors(case):
        file = tmp_path_factory.mktemp("authors") / "model_final.pkl"
        arrays = as_authors(parity.recipe("weights").load_case(str(case.folder)))
        file.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party"}))
        segmenter = thingstuff.load(file, "cpu")
        model = segmenter.model
        assert model.config.post_processing.convention is Convention.ORIGINAL
        usual = parity.load_case(case, "cpu").model.config
        model.config = replace(model.config, post_processing=usual.post_processing, thresholds=usual.thresholds)
        return segmenter

    return Run(
        parity, shared_reference / case, from_authors if layout == "authors" else lambda case: parity.load_case(case, "cpu")
    )


def test_levels_of_the_backbone(run):
    for level, (stage, step) in zip(run.levels, ((1, 8), (2, 4), (3, 2), (4, 1)), strict=True):
        run.assert_like(f"backbone_stage{stage}_c8_s{step}", level[0, ::8, ::step, ::step], "backbone")


def test_pixel_embeddings(run):
    run.assert_like("mask_features_c8_s4", run.predictions.pixel_embeddings[0, ::8, ::4, ::4], "mask_features")
    if "pixel_decoder_level0_c8_s1" in run.raw:
        for number, level in enumerate(run.pixels[0]):
            step = 2**number
            run.assert_like(f"pixel_decoder_level{number}_c8_s{step}", level[0, ::8, ::step, ::step], "mask_features")


def test_queries_classes_and_masks(run):
    for name in run.raw:
        if name.startswith("decoder_queries_after_"):
            layer = int(name.rpartition("_")[2])
            run.assert_like(name, run.queries[layer][0, :, ::4], "class_logits")
    run.assert_like("class_queries_logits", run.predictions.class_logits[-1, 0], "class_logits")
    masks = run.model.mask_logits(run.predictions, 0)
    run.assert_like("masks_queries_logits_s4", masks[:, ::4, ::4], "mask_logits")


def test_the_panoptic_map_pixel_by_pixel_and_every_segment_under_an_id_of_its_own(run):
    found = run.result(Task.PANOPTIC)
    label_of_id = {}
    for segment in json.loads(str(run.raw["panoptic_segments_info"])):
        label_of_id.setdefault(segment["id"], set()).add(segment["label_id"])
    ids = run.raw["panoptic_id_map"]
    ours = np.array([-1, *found["panoptic_labels"]])[found["panoptic_map"]]
    agree = np.zeros(ids.shape, bool)
    for id_, labels in label_of_id.items():
        agree |= (ids == id_) & np.isin(ours, list(labels))
    agree |= ~np.isin(ids, list(label_of_id)) & (ours == -1)
    assert agree.mean() > run.tolerances["panoptic_pixel_agreement"]
    tolerance = {"segment_iou": run.tolerances["segment_min_iou"]}
    assert run.parity.recipe("compare").compare_panoptic(run.expected, found, tolerance)[1] == []


def test_instances(run):
    tolerance = {
        "score_abs": run.tolerances["instance_scores_abs"],
        "box_px": 0.05,
        "mask_iou": run.tolerances["segment_min_iou"],
    }
    assert run.parity.recipe("compare").compare_instances(run.expected, run.result(Task.INSTANCE), tolerance)[1] == []


def test_the_semantic_map(run):
    equal = run.result(Task.SEMANTIC)["semantic_map"] == run.raw["semantic_map"]
    assert equal.mean() > run.tolerances["semantic_pixel_agreement"]

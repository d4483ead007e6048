"""What holds of panoptic quality whatever the maps are."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thingstuff.evaluation.panoptic_matching import _count_on_gpu, overlaps, shared_pixels
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.formats.coco_panoptic import colours_of
from thingstuff.ops.boundary import boundary_of
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import ColouredMap, PanopticMap

CATEGORIES = Categories((Category(1, "cat"), Category(2, "dog"), Category(5, "sky", is_thing=False)))
SIZE = (9, 11)

quick = settings(deadline=None, max_examples=40)


def painted(seed: int, crowds: bool) -> PanopticMap:
    """Rectangles over void, with classes and crowds by chance."""
    random = np.random.default_rng(seed)
    ids = np.zeros(SIZE, np.int64)
    names = random.choice(2**24 - 1, random.integers(0, 7), replace=False) + 1
    for name in names:
        top, left = random.integers(0, SIZE[0]), random.integers(0, SIZE[1])
        ids[top : top + random.integers(1, 8), left : left + random.integers(1, 9)] = name
    shown = np.array([name for name in names if (ids == name).any()], np.int64)
    crowd = random.random(len(shown)) < (0.3 if crowds else 0)
    return PanopticMap(ids, shown, random.integers(0, 3, len(shown)), crowd, CATEGORIES)


def likeness(of: PanopticMap, seed: int) -> PanopticMap:
    """A prediction: the same map with a part painted over and a few classes changed, so that some segments match."""
    random = np.random.default_rng(seed)
    ids = of.ids.copy()
    other = painted(seed, crowds=False)
    top, left = random.integers(0, SIZE[0]), random.integers(0, SIZE[1])
    ids[top : top + 4, left : left + 4] = other.ids[top : top + 4, left : left + 4]
    listed = np.concatenate((of.segment_ids, np.setdiff1d(other.segment_ids, of.segment_ids)))
    shown = np.array([name for name in listed if (ids == name).any()], np.int64)
    known = dict(zip(of.segment_ids.tolist(), of.classes.tolist(), strict=True))
    classes = [known.get(name, 0) if random.random() < 0.8 else int(random.integers(0, 3)) for name in shown.tolist()]
    return PanopticMap(ids, shown, np.array(classes, np.int64), np.zeros(len(shown), np.bool_), CATEGORIES)


pairs = st.tuples(st.integers(0, 2**32), st.integers(0, 2**32), st.booleans()).map(
    lambda drawn: (likeness(truth := painted(drawn[0], drawn[2]), drawn[1]), truth)
)


def quality_of(*images: tuple[PanopticMap, PanopticMap], **rules: Any) -> dict[str, Any]:
    quality = PanopticQuality(CATEGORIES, **rules)
    for prediction, truth in images:
        quality.update(prediction, truth)
    return quality.compute()


def renamed(panoptic: PanopticMap, seed: int) -> PanopticMap:
    """Other ids, and another order of the list; the last crowd of a class stays the last."""
    random = np.random.default_rng(seed)
    ids = np.zeros_like(panoptic.ids)
    names = random.choice(2**24 - 1, len(panoptic), replace=False) + 1
    for old, new in zip(panoptic.segment_ids, names, strict=True):
        ids[panoptic.ids == old] = new
    order = random.permutation(len(panoptic)) if not panoptic.crowd.any() else np.arange(len(panoptic))
    return PanopticMap(ids, names[order], panoptic.classes[order], panoptic.crowd[order], CATEGORIES)


@quick
@given(pairs, st.integers(0, 2**32))
def test_ids_are_names_and_nothing_more(pair, seed):
    assert quality_of((renamed(pair[0], seed), renamed(pair[1], seed + 1))) == quality_of(pair)


@quick
@given(pairs, st.sampled_from([None, 0.1]))
def test_transposed_images_have_the_same_quality(pair, boundary):
    turned = tuple(PanopticMap(one.ids.T, one.segment_ids, one.classes, one.crowd, CATEGORIES) for one in pair)
    assert quality_of(turned, boundary=boundary) == quality_of(pair, boundary=boundary)


@quick
@given(st.lists(pairs, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_shards_add_up_to_the_same_digits_in_any_order(images, random):
    whole = quality_of(*images)
    parts = [PanopticQuality(CATEGORIES) for _ in range(3)]
    for prediction, truth in images:
        random.choice(parts).update(prediction, truth)
    random.shuffle(parts)
    total = parts[0]
    for part in parts[1:]:
        total.merge(part)
    assert total.compute() == whole


@quick
@given(st.integers(0, 2**32), st.sampled_from([None, 0.02, 0.3]))
def test_a_perfect_prediction_has_quality_one(seed, boundary):
    truth = painted(seed, crowds=False)
    result = quality_of((truth, truth), boundary=boundary)
    for row in (*result["per_class"].values(), result["All"], result["Things"], result["Stuff"]):
        assert row["pq"] in (1.0, None)


@quick
@given(st.lists(pairs, max_size=3))
def test_pq_is_sq_times_rq_in_every_class(images):
    for row in quality_of(*images)["per_class"].values():
        if row["pq"] is not None:
            assert row["pq"] == pytest.approx(row["sq"] * row["rq"], abs=1e-15)  # three roundings against one


@quick
@given(pairs)
def test_every_segment_is_counted_once(pair):
    prediction, truth = pair
    image = PanopticQuality(CATEGORIES).update(prediction, truth)
    assert sorted([match.prediction for match in image.matches] + image.false_positives + image.ignored) == list(
        range(len(prediction))
    )
    assert sorted([match.truth for match in image.matches] + image.false_negatives) == np.flatnonzero(~truth.crowd).tolist()


@quick
@given(pairs, st.sampled_from([0.02, 0.1, 0.2]))
def test_boundary_quality_follows_its_definition(pair, share):
    """Cheng et al., 2021, section 4: pairs by the lesser of mask and boundary IoU; here segment by segment, as one writes it."""
    prediction, truth = pair
    expected = {}
    void = truth.ids == 0
    for p, (p_id, p_class) in enumerate(zip(prediction.segment_ids, prediction.classes, strict=True)):
        for t, (t_id, t_class) in enumerate(zip(truth.segment_ids, truth.classes, strict=True)):
            if p_class != t_class or truth.crowd[t]:
                continue
            ious = []
            for cut in (lambda mask: mask, lambda mask: boundary_of(mask, share)):
                ours, theirs = cut(prediction.ids == p_id) & ~void, cut(truth.ids == t_id)
                ious.append((ours & theirs).sum() / (ours | theirs).sum())
            if min(ious) > 0.5:
                expected[p, t] = min(ious)
    image = PanopticQuality(CATEGORIES, boundary=share).update(prediction, truth)
    assert {(match.prediction, match.truth): match.iou for match in image.matches} == expected


@quick
@given(pairs)
def test_pixels_counted_as_on_a_gpu_are_the_same(pair):
    # the same lines run on any device; here on the processor
    prediction, truth = pair
    cells = (len(truth) + 2) * (len(prediction) + 2)
    expected = overlaps(truth.ids, prediction.ids, truth.segment_ids, prediction.segment_ids)
    for limit in (cells, 2**40):  # one table, or sorted pairs
        codes, pixels = _count_on_gpu(
            torch.from_numpy(truth.ids), torch.from_numpy(prediction.ids), truth.segment_ids, prediction.segment_ids, limit
        )
        assert (codes == expected.truth * (len(prediction) + 2) + expected.prediction).all()
        assert (pixels == expected.pixels).all()


@quick
@given(pairs)
def test_pieces_are_counted_as_their_pixels_are(pair):
    prediction, truth = pair
    places = [place.ravel() for place in (truth.index_map(), prediction.index_map())]
    table = np.zeros((len(truth) + 2, len(prediction) + 2), np.int64)
    np.add.at(table, tuple(places), 1)
    coloured = [
        ColouredMap(colours_of(one.ids), one.segment_ids, one.classes, one.crowd, one.categories) for one in (truth, prediction)
    ]
    of_ids = overlaps(truth.ids, prediction.ids, truth.segment_ids, prediction.segment_ids)
    for shared in (of_ids, shared_pixels(coloured[0], coloured[1])):
        assert [places.tolist() for places in np.nonzero(table)] == [shared.truth.tolist(), shared.prediction.tolist()]
        assert shared.pixels.tolist() == table[table > 0].tolist()
    assert (coloured[0].ids == truth.ids).all()
    assert coloured[0].size == truth.size

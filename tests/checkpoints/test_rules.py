"""Key rules: every foreign name is claimed once, and the result fits the model exactly or all misfits are told at once."""

import pytest
import torch

from thingstuff.checkpoints.rules import (
    DROP,
    Rule,
    background_to_the_end,
    bgr_to_rgb,
    convert,
    recounted,
    without_background,
    without_background_box,
)
from thingstuff.errors import CheckpointError

RULES = (
    Rule(r"stem\.(weight|bias)", r"body.conv1.\1"),
    Rule(r"mask_fcn(\d+)\.weight", lambda match: f"convs.{int(match[1]) - 1}.weight"),
    Rule(r"anchors\.\d+", DROP),
)


def test_names_follow_templates_and_functions_and_dropped_arrays_vanish():
    foreign = {"stem.weight": torch.ones(2, 3), "mask_fcn1.weight": torch.zeros(4), "anchors.0": torch.zeros(3, 4)}
    fitted = convert(foreign, RULES, {"body.conv1.weight": (2, 3), "convs.0.weight": (4,)}, "a.pth")
    assert list(fitted) == ["body.conv1.weight", "convs.0.weight"]
    torch.testing.assert_close(fitted["body.conv1.weight"], torch.ones(2, 3))


def test_numbers_counted_from_elsewhere_keep_their_places():
    rules = (
        Rule(r"res(\d)\.(\d+)\.weight", recounted("layer{}.{}.weight", -1)),
        Rule(r"stages\.(\d)\.(\d+)\.layer\.(\d)\.bias", recounted("layer{}.{}.conv{}.bias", 1, 0, 1)),
    )
    foreign = {"res2.10.weight": torch.zeros(1), "stages.0.12.layer.2.bias": torch.zeros(2)}
    assert set(convert(foreign, rules, {"layer1.10.weight": (1,), "layer1.12.conv3.bias": (2,)}, "a.pth")) == {
        "layer1.10.weight",
        "layer1.12.conv3.bias",
    }


def test_all_misfits_are_told_in_one_error():
    foreign = {"stem.weight": torch.ones(2, 3), "head.weight": torch.ones(1), "mask_fcn2.weight": torch.ones(5)}
    shapes = {"body.conv1.weight": (2, 4), "body.conv1.bias": (2,)}
    with pytest.raises(CheckpointError) as error:
        convert(foreign, RULES, shapes, "a.pth")
    text = str(error.value)
    assert text.startswith("a.pth: 4 parameters of the file and of the model")
    assert "head.weight: no rule knows it" in text
    assert "stem.weight (here body.conv1.weight): shape (2, 3), the model needs (2, 4)" in text
    assert "mask_fcn2.weight (here convs.1.weight): the model has no such parameter" in text
    assert "body.conv1.bias: missing from the file" in text


def test_a_long_list_of_misfits_is_cut_and_counted():
    with pytest.raises(CheckpointError, match=r"20 parameters(.|\n)*\.\.\. and 12 more"):
        convert({f"x{i}": torch.ones(1) for i in range(20)}, RULES, {}, "a.pth")


def test_a_name_that_two_rules_claim_is_a_misfit():
    rules = (*RULES, Rule(r"stem\..*", DROP))
    with pytest.raises(CheckpointError, match=r"stem\.weight: 2 rules claim it"):
        convert({"stem.weight": torch.ones(1)}, rules, {}, "a.pth")


def test_two_names_that_become_one_are_a_misfit():
    rules = (Rule(r"[ab]", "c"),)
    with pytest.raises(CheckpointError, match="b and a both become c"):
        convert({"a": torch.ones(1), "b": torch.ones(1)}, rules, {"c": (1,)}, "a.pth")


_PARTS = tuple(Rule(rf"{name}\.(weight|bias)", r"joined.\1", part=(number, 3)) for number, name in enumerate("qkv"))


def test_parts_are_joined_in_their_order_whatever_the_files():
    foreign = {"v.weight": torch.full((2, 3), 3.0), "q.weight": torch.full((1, 3), 1.0), "k.weight": torch.full((1, 3), 2.0)}
    found = convert(foreign, _PARTS, {"joined.weight": (4, 3)}, "file")
    assert found["joined.weight"][:, 0].tolist() == [1.0, 2.0, 3.0, 3.0]


def test_parts_that_are_missing_twice_there_or_of_several_widths_are_misfits():
    parts = {f"{name}.bias": torch.zeros(2) for name in "qkv"}
    for change, message in (
        ({"k.bias": None}, r"q\.bias and v\.bias: not the 3 parts that make joined\.bias"),
        ({"k.bias": torch.zeros(2, 2)}, r"q\.bias and k\.bias and v\.bias: not the 3 parts"),
        ({"k.bias": torch.tensor(0.0)}, r"q\.bias and k\.bias and v\.bias: not the 3 parts"),
    ):
        foreign = {name: value for name, value in (parts | change).items() if value is not None}
        with pytest.raises(CheckpointError, match=message):
            convert(foreign, _PARTS, {"joined.bias": (6,)}, "file")
    again = (*_PARTS, Rule(r"other\.(bias)", r"joined.\1", part=(1, 3)))
    with pytest.raises(CheckpointError, match=r"other\.bias and k\.bias both become joined\.bias"):
        convert(parts | {"other.bias": torch.zeros(2)}, again, {"joined.bias": (6,)}, "file")


def test_a_rule_must_match_the_whole_name():
    with pytest.raises(CheckpointError, match=r"stem\.weight_g: no rule knows it"):
        convert({"stem.weight_g": torch.ones(1)}, RULES, {}, "a.pth")


def test_a_missing_batch_counter_becomes_zero_and_a_given_one_is_kept():
    rules = (Rule(r"(.+)", r"\1"),)
    shapes = {"a.num_batches_tracked": (), "b.num_batches_tracked": ()}
    fitted = convert({"b.num_batches_tracked": torch.tensor(7)}, rules, shapes, "a.pth")
    assert fitted["a.num_batches_tracked"].item() == 0
    assert fitted["a.num_batches_tracked"].dtype == torch.int64
    assert fitted["b.num_batches_tracked"].item() == 7


def test_background_moves_from_the_first_row_to_the_last():
    rows = torch.arange(3)[:, None]  # background, class 0, class 1
    assert background_to_the_end(rows).flatten().tolist() == [1, 2, 0]
    assert without_background(rows).flatten().tolist() == [1, 2]
    assert without_background_box(torch.arange(12)).tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_kernel_for_bgr_answers_the_same_to_rgb():
    kernel, image = torch.randn(2, 3, 3, 3), torch.randn(1, 3, 5, 5)
    on_bgr = torch.nn.functional.conv2d(image.flip(1), kernel)
    # summing three channels in another order changes the last bits
    torch.testing.assert_close(torch.nn.functional.conv2d(image, bgr_to_rgb(kernel)), on_bgr, rtol=1e-5, atol=1e-5)

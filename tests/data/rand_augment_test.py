"""RandAugment: each operation against timm, live where it is installed, else by its values."""

import itertools

import numpy as np
import pytest

from peft_jax.data import rand_augment
from peft_jax.data.rand_augment import FILTERS, OPS, RandAugment, operate, parse

BILINEAR, BICUBIC = FILTERS["random"]
FILL = (124, 116, 104)
TIMM = {  # our name -> timm's
  "auto_contrast": "AutoContrast",
  "equalize": "Equalize",
  "invert": "Invert",
  "rotate": "Rotate",
  "posterize": "PosterizeIncreasing",
  "solarize": "SolarizeIncreasing",
  "solarize_add": "SolarizeAdd",
  "color": "ColorIncreasing",
  "contrast": "ContrastIncreasing",
  "brightness": "BrightnessIncreasing",
  "sharpness": "SharpnessIncreasing",
  "shear_x": "ShearX",
  "shear_y": "ShearY",
  "translate_x": "TranslateXRel",
  "translate_y": "TranslateYRel",
}


@pytest.mark.parametrize("name", OPS)
def test_an_operation_gives_timms_bits(timm, picture, name):
  top = 9.99 if name == "posterize" else 10.0  # timm with Pillow 13 fails at 0 bits
  differ = 0
  for level, negative, filter in itertools.product(
    (0.0, 2.3, 5.0, 8.71, 9.0, top), (False, True), (BILINEAR, BICUBIC)
  ):
    module, _ = timm(lambda negative=negative: 0.9 if negative else 0.1)
    made = operate(picture(), name, level, negative=negative, filter=filter, fill=FILL)
    theirs = module.AugmentOp(
      TIMM[name], 1.0, level, {"img_mean": FILL, "interpolation": filter, "translate_pct": 0.45}
    )(picture())
    np.testing.assert_array_equal(np.asarray(made), np.asarray(theirs), err_msg=f"{level}")
    differ += made != picture()
  assert differ > 4


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m3-n3-p0.8-inc1"])
def test_the_same_draws_give_timms_images(timm, picture, uniform, text):
  changed = 0
  for seed in range(40):
    made = parse(text)(picture(), uniform(seed), FILTERS["random"], FILL)
    module, _ = timm(uniform(seed))
    theirs = module.rand_augment_transform(text, {"img_mean": FILL})(picture())
    np.testing.assert_array_equal(np.asarray(made), np.asarray(theirs), err_msg=f"seed {seed}")
    changed += made != picture()
  assert changed > 20


def test_the_table_is_timms_in_its_order(timm):
  module, _ = timm(None)
  assert [TIMM[name] for name in OPS] == module._RAND_INCREASING_TRANSFORMS


# Three pixels of `picture` at level 9, positive, bilinear; timm 1.0.31's with Pillow 13.
GOLDEN = {
  "auto_contrast": [(241, 231, 216), (191, 149, 92), (76, 129, 34)],
  "equalize": [(246, 241, 225), (209, 171, 77), (66, 134, 28)],
  "invert": [(32, 41, 53), (74, 109, 157), (170, 126, 205)],
  "rotate": [(124, 116, 104), (179, 141, 93), (124, 116, 104)],
  "posterize": [(128, 128, 128), (128, 128, 0), (0, 128, 0)],
  "solarize": [(32, 41, 53), (74, 109, 157), (170, 126, 205)],
  "solarize_add": [(223, 214, 202), (181, 146, 197), (184, 129, 149)],
  "color": [(229, 213, 191), (205, 141, 55), (67, 146, 3)],
  "contrast": [(255, 255, 255), (224, 161, 74), (50, 130, 0)],
  "brightness": [(255, 255, 255), (255, 255, 177), (153, 233, 90)],
  "sharpness": [(223, 214, 202), (181, 146, 98), (85, 129, 49)],
  "shear_x": [(224, 218, 207), (196, 204, 164), (124, 116, 104)],
  "shear_y": [(206, 193, 175), (208, 145, 115), (124, 116, 104)],
  "translate_x": [(31, 65, 112), (70, 150, 223), (124, 116, 104)],
  "translate_y": [(58, 40, 38), (171, 125, 153), (124, 116, 104)],
}


@pytest.mark.parametrize("name", OPS)
def test_an_operation_keeps_its_values(picture, name):
  made = operate(picture(), name, 9.0, filter=BILINEAR, fill=FILL)
  assert made.mode == "RGB" and made.size == (40, 32)
  found = [made.getpixel(place) for place in ((7, 3), (20, 16), (38, 30))]
  # One level: Pillow's rounding may change between its versions.
  np.testing.assert_allclose(found, GOLDEN[name], atol=1)


def test_no_bits_are_black(picture):
  assert operate(picture(), "posterize", 10.0).getextrema() == ((0, 0),) * 3


def test_about_half_of_the_operations_are_applied_each_as_often_as_the_others(
  monkeypatch, picture, uniform
):
  levels = []

  def count(image, name, level, **_):
    levels.append((name, level))
    return image

  monkeypatch.setattr(rand_augment, "operate", count)
  draw, images = uniform(0), 3000
  for _ in range(images):
    parse("rand-m9-mstd0.5-inc1")(picture(), draw, FILTERS["random"], FILL)
  names, drawn = zip(*levels, strict=True)
  assert abs(len(names) / images - 1) < 0.05
  assert set(names) == set(OPS)
  assert all(abs(names.count(name) / images * 15 - 1) < 0.25 for name in OPS)
  drawn = np.asarray(drawn)
  assert drawn.max() == 10 and (drawn == 10).mean() == pytest.approx(0.0228, abs=0.01)
  assert drawn.mean() == pytest.approx(9, abs=0.05) and drawn.std() == pytest.approx(0.5, abs=0.05)


def test_a_draw_of_zero_is_a_draw(picture):
  parse("rand-m9-mstd0.5-inc1")(picture(), lambda: 0.0, FILTERS["random"], FILL)


def test_strings():
  assert parse("rand-m9-mstd0.5-inc1") == RandAugment(level=9, std=0.5)
  assert parse("rand-inc1-n3-p0.25") == RandAugment(level=10, layers=3, probability=0.25)


@pytest.mark.parametrize(
  "text",
  ["", "rand", "rand-m9", "rand-m9-inc0", "m9-inc1", "rand-m11-inc1", "rand-mx-inc1",
   "rand-m9-m8-inc1", "rand-m9-inc1-n0", "rand-m9-n1.5-inc1", "rand-m9-p2-inc1",
   "rand-m9-tweights-inc1", "augmix-m9-inc1"],
)
def test_a_string_that_is_not_understood_says_how_it_is_written(text):
  with pytest.raises(ValueError, match="is not understood; give it as rand-m9-mstd0.5-inc1"):
    parse(text)

"""Training views against Pillow at the drawn boxes, and against timm where it is installed."""

import math

import numpy as np
import pytest
from PIL import Image

from peft_jax import data
from peft_jax.data import view
from peft_jax.data.rand_augment import FILTERS, parse
from peft_jax.data.view import View, draw_box, draws

BILINEAR, BICUBIC = FILTERS["random"]
SHAPES = [(40, 32), (32, 32), (90, 24), (20, 100), (13, 17)]


def given(*values):
  """A function that gives these draws and no more."""
  return iter(values).__next__


def pixels(image):
  return np.asarray(image)


def test_a_random_resized_crop_is_pillows_at_the_drawn_box(picture):
  image = picture(40, 30)
  # area 0.08 + 0.92 * 0.5 = 0.54 of 1200, ratio 3/4 * (16/9)**0.75; 29.6 x 21.9, so 30 x 22
  area, ratio = 648, 0.75 * (16 / 9) ** 0.75
  assert (round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))) == (27, 24)
  top, left = int(0.4 * 7), int(0.9 * 14)
  cropped = image.crop((left, top, left + 27, top + 24))
  for filter_draw, filter in ((0.2, BILINEAR), (0.7, BICUBIC)):
    for flip_draw in (0.3, 0.6):
      made = View("random_resized_crop")(
        image, 16, given(0.5, 0.75, 0.4, 0.9, filter_draw, flip_draw)
      )
      expected = pixels(cropped.resize((16, 16), filter))
      np.testing.assert_array_equal(made, expected[:, ::-1] if flip_draw < 0.5 else expected)
  fixed = View("random_resized_crop", "bicubic")(image, 16, given(0.5, 0.75, 0.4, 0.9, 0.6))
  np.testing.assert_array_equal(fixed, expected)


@pytest.mark.parametrize(
  ("width", "height", "box"),
  [(90, 24, (29, 0, 32, 24)), (20, 100, (0, 36, 20, 27)), (40, 32, (0, 0, 40, 32))],
)
def test_a_box_that_never_fits_is_the_central_one(width, height, box):
  assert draw_box(width, height, given(*(1.0, 1.0) * 10)) == box


def test_boxes_lie_inside_and_vary_as_promised(uniform):
  draw = uniform(0)
  left, top, width, height = np.asarray([draw_box(400, 300, draw) for _ in range(4000)]).T
  assert left.min() == top.min() == 0
  assert (left + width).max() == 400 and (top + height).max() == 300
  area, ratio = width * height / 120000, width / height
  assert 0.078 < area.min() < 0.09 and 0.9 < area.max() <= 1
  assert 0.73 < ratio.min() < 0.76 and 1.31 < ratio.max() < 1.36
  drawn = np.random.default_rng(1).random((2, 10**5))  # those that fit are kept
  drawn = (0.08 + 0.92 * drawn[0]) * 120000, 0.75 * (16 / 9) ** drawn[1]
  kept = (drawn[0] * drawn[1] < 400**2) & (drawn[0] / drawn[1] < 300**2)
  assert area.mean() == pytest.approx(drawn[0][kept].mean() / 120000, abs=0.01)
  assert np.log(ratio).mean() == pytest.approx(np.log(drawn[1][kept]).mean(), abs=0.01)
  small = area < 0.4  # these always fit: log-uniform
  assert abs(np.log(ratio[small]).mean()) < 0.01
  assert np.log(ratio[small]).std() == pytest.approx(math.log(16 / 9) / 12**0.5, rel=0.05)
  assert (left / (400 - width).clip(1)).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("side", [1, 2])
def test_the_smallest_images_have_views(uniform, side):
  image = Image.new("L", (side, side), 77)
  for seed in range(20):
    made = View("random_resized_crop")(image, 8, uniform(seed))
    assert (made == 77).all() and made.shape == (8, 8, 3)


@pytest.mark.parametrize(
  ("width", "height", "resized"), [(300, 400, (256, 341)), (50, 40, (320, 256)), (7, 7, (256, 256))]
)
def test_short_crop_is_vpts(picture, width, height, resized):
  image = picture(width, height)
  made = View("short_crop")(image, 224, given(0.25, 0.999, 0.7))
  top, left = int(0.25 * (resized[1] - 223)), resized[0] - 224
  expected = image.resize(resized, BILINEAR).crop((left, top, left + 224, top + 224))
  np.testing.assert_array_equal(made, pixels(expected))


def test_squash_crop_is_spts(picture):
  image = picture(50, 90)
  made = View("squash_crop")(image, 224, given(0.999, 0.5, 0.1))
  expected = image.resize((256, 256), BICUBIC).crop((16, 32, 240, 256))
  np.testing.assert_array_equal(made, pixels(expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))


@pytest.mark.parametrize("how", view.VIEWS)
def test_grey_is_seen_as_its_rgb(picture, uniform, how):
  grey = picture().convert("L")
  whole = View(how, rand_augment=parse("rand-m9-inc1"))
  for seed in range(5):
    made = whole(grey, 16, uniform(seed))
    np.testing.assert_array_equal(made, whole(grey.convert("RGB"), 16, uniform(seed)))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_draws_give_timms_views(timm, picture, uniform, shape, interpolation):
  text = "rand-m9-mstd0.5-inc1"
  fill = (128, 120, 110)
  made_by = View("random_resized_crop", interpolation, parse(text), fill)
  filter = {} if interpolation == "random" else {"interpolation": FILTERS[interpolation][0]}
  for seed in range(20):
    draw = uniform(seed)
    auto_augment, transforms = timm(draw)
    crop = transforms.RandomResizedCropAndInterpolation(24, interpolation=interpolation)
    image = crop(picture(*shape))
    if draw() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = auto_augment.rand_augment_transform(text, {"img_mean": fill, **filter})(image)
    made = made_by(picture(*shape), 24, uniform(seed))
    np.testing.assert_array_equal(made, pixels(image), err_msg=f"seed {seed}")


def test_draws_depend_on_seed_step_and_place_and_never_change():
  def first(*at):
    draw = draws(*at)
    return tuple(draw() for _ in range(50))

  places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (2**40, 70000, 4095)]
  drawn = [first(*place) for place in places]
  assert len({value for values in drawn for value in values}) == 50 * len(places)
  assert drawn == [first(*place) for place in places]
  np.testing.assert_allclose(first(0, 0, 0)[:2], (0.011546754286331562, 0.24154919656271812))
  np.testing.assert_allclose(first(3, 5, 7)[:2], (0.7308349047090014, 0.25586124315970893))
  assert np.mean(drawn) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("count", [3, 40])  # 40 images are read by several threads
def test_the_views_of_a_split_are_those_of_its_images(count):
  split = data.open("mini_texture", size=20).split("train800")
  chosen = np.random.default_rng(0).permutation(800)[:count]
  how = View("random_resized_crop", rand_augment=parse("rand-m9-mstd0.5-inc1"))
  made = split.views(chosen, how, [draws(0, 1, i) for i in range(count)])
  assert made.shape == (count, 20, 20, 3) and made.dtype == np.uint8
  for row, index in enumerate(chosen):
    np.testing.assert_array_equal(made[row], how(split.read(int(index)), 20, draws(0, 1, row)))
  assert (made != split.images(chosen)).any()


def test_photographs_are_turned_before_they_are_cut(tmp_path, picture):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
  for name in ("train/a/0", "train/b/1", "val/a/2", "val/b/3"):
    path = tmp_path / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(40, 20).save(path, exif=exif)
  split = data.open("folder", root=tmp_path, size=8).split("train")
  seen = []
  split.views([1], lambda image, size, _: seen.append(image.size) or np.zeros((8, 8, 3)), [None])
  assert seen == [(20, 40)]


def test_a_view_of_no_image_is_refused():
  split = data.open("mini_digits", size=8).split("val200")
  with pytest.raises(IndexError, match=r"holds images 0\.\.199; asked for 200"):
    split.views([200], View("squash_crop"), [draws(0, 0, 0)])

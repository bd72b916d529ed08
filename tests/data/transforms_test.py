"""Resizes against Pillow and against the formula; decoding of every kind of file."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from peft_jax.data import transforms

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8))


@pytest.mark.parametrize("size", [16, 30, 56])
def test_the_stretches_are_pillows(size):
  for how, filter in (
    ("bicubic_pil", Image.Resampling.BICUBIC),
    ("bilinear_pil", Image.Resampling.BILINEAR),
  ):
    expected = np.asarray(IMAGE.resize((size, size), filter))
    made = transforms.resize(IMAGE, size, how)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("how", transforms.RESIZES)
def test_grey_is_resized_as_each_channel_of_its_rgb(how):
  grey = IMAGE.convert("L")
  made = transforms.resize(grey, 20, how)
  np.testing.assert_array_equal(made, transforms.resize(grey.convert("RGB"), 20, how)[:, :, 1])


@pytest.mark.parametrize("size", [7, 30, 64])
def test_tf1_bilinear_has_no_half_pixel_offset(size):
  source = np.asarray(IMAGE, np.float64)
  height, width = source.shape[:2]
  expected = np.empty((size, size, 3))
  for i in range(size):
    for j in range(size):
      y, x = i * height / size, j * width / size
      y0, x0 = int(y + 1e-5), int(x + 1e-5)
      y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
      top = source[y0, x0] + (source[y0, x1] - source[y0, x0]) * (x - x0)
      low = source[y1, x0] + (source[y1, x1] - source[y1, x0]) * (x - x0)
      expected[i, j] = top + (low - top) * (y - y0)
  made = transforms.resize(IMAGE, size, "tf1_bilinear")
  assert np.abs(made - expected).max() < 0.51


def test_tf1_bilinear_doubles_a_ramp_as_tensorflow_1_did():
  ramp = Image.fromarray(np.asarray([[0, 100]], np.uint8))
  assert transforms.resize(ramp, 4, "tf1_bilinear")[0].tolist() == [0, 50, 100, 100]


@pytest.mark.parametrize(
  ("width", "height", "resized", "corner"),
  [
    (300, 400, (248, 330), (12, 53)),
    (400, 300, (330, 248), (53, 12)),
    (50, 50, (248, 248), (12, 12)),
  ],
)
def test_the_short_side_becomes_248_before_a_centre_crop_of_224(width, height, resized, corner):
  image = IMAGE.resize((width, height))
  left, top = corner
  expected = image.resize(resized, Image.Resampling.BICUBIC)
  expected = expected.crop((left, top, left + 224, top + 224))
  np.testing.assert_array_equal(transforms.resize(image, 224, "short_side"), expected)


@pytest.mark.parametrize(
  ("how", "size", "width", "height", "resized", "filter"),
  [
    ("short_side_875", 224, 300, 400, (256, 341), Image.Resampling.BICUBIC),
    ("short_side_875", 384, 50, 30, (730, 438), Image.Resampling.BICUBIC),
    ("short_side_256", 224, 300, 400, (256, 341), Image.Resampling.BILINEAR),
    ("short_side_256", 384, 50, 30, (731, 439), Image.Resampling.BILINEAR),
    ("squash_256", 224, 300, 400, (256, 256), Image.Resampling.BICUBIC),
    ("squash_256", 28, 50, 30, (32, 32), Image.Resampling.BICUBIC),
  ],
)
def test_other_centre_crops(how, size, width, height, resized, filter):
  image = IMAGE.resize((width, height))
  left, top = (round((side - size) / 2) for side in resized)
  expected = image.resize(resized, filter).crop((left, top, left + size, top + size))
  np.testing.assert_array_equal(transforms.resize(image, size, how), expected)


@pytest.mark.parametrize("shape", [(300, 400), (401, 223), (32, 32)], ids=str)
def test_centre_crops_are_torchvisions(shape):
  torchvision = pytest.importorskip("torchvision.transforms")
  image = IMAGE.resize(shape)
  for how, side, filter in (
    ("short_side", 248, "bicubic"),
    ("short_side_875", 256, "bicubic"),
    ("short_side_256", 256, "bilinear"),
    ("squash_256", (256, 256), "bicubic"),
  ):
    filter = torchvision.InterpolationMode(filter)
    whole = torchvision.Compose([torchvision.Resize(side, filter), torchvision.CenterCrop(224)])
    np.testing.assert_array_equal(transforms.resize(image, 224, how), whole(image), err_msg=how)


def decode(path, exif=False):
  return transforms.decode(epath.Path(path), exif=exif)


def test_colour_spaces_become_grey_or_rgb(tmp_path):
  red = Image.new("RGB", (8, 8), (200, 30, 40))
  clear = Image.new("RGBA", (8, 8), (200, 30, 40, 0))
  files = {
    "rgb.png": (red, (200, 30, 40)),
    "rgba.png": (clear, (200, 30, 40)),  # alpha is dropped, not blended
    "palette.png": (red.convert("P", palette=Image.Palette.ADAPTIVE), (200, 30, 40)),
    "palette.gif": (red, (200, 30, 40)),
    "cmyk.tif": (red.convert("CMYK"), (200, 30, 40)),
    "grey.png": (Image.new("L", (8, 8), 77), 77),
    "grey_alpha.png": (Image.new("LA", (8, 8), (77, 0)), 77),
    "bilevel.png": (Image.new("1", (8, 8), 1), 255),
  }
  for name, (image, expected) in files.items():
    image.save(tmp_path / name)
    made = decode(tmp_path / name)
    assert made.mode == ("L" if isinstance(expected, int) else "RGB"), name
    assert np.abs(np.subtract(made.getpixel((4, 4)), expected)).max() <= 1, name


def test_a_transparent_palette_keeps_its_colours(tmp_path):
  image = Image.new("RGB", (8, 8), (200, 30, 40)).convert("P", palette=Image.Palette.ADAPTIVE)
  image.save(tmp_path / "a.png", transparency=b"\x00\x80")
  assert np.abs(np.subtract(decode(tmp_path / "a.png").getpixel((0, 0)), (200, 30, 40))).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
  levels = np.asarray([[0, 257, 32896, 65535]], np.uint16)
  Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
  made = decode(tmp_path / f"deep.{suffix}")
  assert made.mode == "L" and np.asarray(made).tolist() == [[0, 1, 128, 255]]


def test_exif_turns_only_the_users_photographs(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
  image = Image.new("RGB", (20, 10))
  image.save(tmp_path / "phone.jpg", exif=exif)
  assert decode(tmp_path / "phone.jpg", exif=True).size == (10, 20)
  assert decode(tmp_path / "phone.jpg", exif=False).size == (20, 10)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "float"])
def test_an_unreadable_file_is_named(tmp_path, damage):
  path = tmp_path / "bild für dich.png"
  IMAGE.save(path)
  if damage == "float":
    path = tmp_path / "bild für dich.tif"
    Image.new("F", (4, 4), 0.5).save(path)
  else:
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}[damage])
  with pytest.raises(ValueError, match=f"Cannot read the image .*{path.name}"):
    decode(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(ValueError, match="Cannot read the image .*gone.png"):
    decode(tmp_path / "gone.png")

"""Every kind of image file that a folder of photographs holds: its pixels as numpy computes them, or one sentence."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from leanax.core.errors import UserError
from leanax.engine.data.pictures import decode_image

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (5, 7), np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
DEEP = RANDOM.integers(0, 65536, (5, 7), np.uint16)
LUMA = np.array([0.299, 0.587, 0.114])


def saved(image, form="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def decode(data, mode="RGB", size=None):
  return decode_image(data, mode, size, "here.png")


def chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, bits, kind, more=b""):
  """A PNG written by hand: (H, W) or (H, W, C) numbers of `bits` bits; kind: 0 grey, 2 RGB, 3 palette, ..."""
  rows = pixels.reshape(len(pixels), -1)
  if bits == 16:
    packed = [row.astype(">u2").tobytes() for row in rows]
  elif bits == 8:
    packed = [row.astype(np.uint8).tobytes() for row in rows]
  else:
    packed = [np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -bits:]).tobytes() for row in rows]
  head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
  body = zlib.compress(b"".join(b"\0" + row for row in packed))
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(pixels, photometric, bits=None, form=1, width=None):
  """An uncompressed TIFF written by hand, of little-endian numbers; packed rows say their width."""
  data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
  channels = 1 if pixels.ndim == 2 else pixels.shape[2]
  bits = bits or pixels.dtype.itemsize * 8
  tags = [(256, width or pixels.shape[1]), (257, pixels.shape[0]), (258, bits), (259, 1), (262, photometric), (273, 0)]
  tags += [(277, channels), (278, pixels.shape[0]), (279, len(data)), (339, form)]
  start = 8 + 2 + 12 * len(tags) + 4
  wide = struct.pack(f"<{channels}H", *[bits] * channels)  # the bits of each channel
  out = b"II*\0" + struct.pack("<IH", 8, len(tags))
  for tag, value in tags:
    if tag == 258 and channels > 2:
      out += struct.pack("<HHII", tag, 3, channels, start)
    elif tag == 273:
      out += struct.pack("<HHII", tag, 4, 1, start + len(wide))
    else:
      out += struct.pack("<HHII", tag, 4 if value > 65535 else 3, 1, value)
  return out + struct.pack("<I", 0) + wide + data


def grey_of(colour):
  return np.round(colour.astype(np.float64) @ LUMA)


def over_white(colour, alpha):
  colour, alpha = colour.astype(np.float64), alpha.astype(np.float64)[..., None] / 255
  return np.floor(colour * alpha + 255 * (1 - alpha) + 0.5)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_kinds_keep_every_pixel(form):
  options = {"lossless": True} if form == "WEBP" else {}
  data = saved(Image.fromarray(COLOUR), form, **options)
  np.testing.assert_array_equal(decode(data), COLOUR)
  np.testing.assert_allclose(decode(data, "L")[..., 0], grey_of(COLOUR), rtol=0, atol=1)
  if form != "WEBP":
    np.testing.assert_array_equal(decode(saved(Image.fromarray(GREY), form)), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_kinds_are_close(form):
  smooth = np.linspace(20, 230, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
  data = saved(Image.fromarray(smooth), form, quality=95)
  np.testing.assert_allclose(decode(data).astype(int), smooth, rtol=0, atol=8)


def test_sixteen_bits_give_their_upper_eight():
  expected = np.stack([DEEP // 256] * 3, -1)
  for data in (png(DEEP, 16, 0), saved(Image.fromarray(DEEP)), tiff(DEEP, 1), saved(Image.fromarray(DEEP), "TIFF")):
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(data, "L")[..., 0], DEEP // 256)
  whole = GREY.astype(np.uint16) * 257  # how 8 bits are written as 16
  np.testing.assert_array_equal(decode(png(whole, 16, 0), "L")[..., 0], GREY)
  deep = RANDOM.integers(0, 65536, (5, 7, 3), np.uint16)
  for data in (png(deep, 16, 2), tiff(deep, 2)):
    np.testing.assert_array_equal(decode(data), deep // 256)
  alpha = RANDOM.integers(0, 65536, (5, 7), np.uint16)
  for kind, pixels in ((4, np.stack([DEEP, alpha], -1)), (6, np.concatenate([deep, alpha[..., None]], -1))):
    colour = pixels[..., :-1] // 256
    expected = over_white(np.broadcast_to(colour, (5, 7, 3)), alpha // 256)
    np.testing.assert_array_equal(decode(png(pixels, 16, kind)), expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_spread_over_all_greys(bits):
  levels = RANDOM.integers(0, 2**bits, (5, 7))
  np.testing.assert_array_equal(decode(png(levels, bits, 0), "L")[..., 0], levels * 255 // (2**bits - 1))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits):
  numbers = RANDOM.integers(0, 2**bits, (5, 7))
  colours = RANDOM.integers(0, 256, (2**bits, 3), np.uint8)
  palette = chunk(b"PLTE", colours.tobytes())
  data = png(numbers, bits, 3, palette)
  np.testing.assert_array_equal(decode(data), colours[numbers])
  np.testing.assert_allclose(decode(data, "L")[..., 0], grey_of(colours[numbers]), rtol=0, atol=1)
  alpha = RANDOM.integers(0, 256, 2**bits, np.uint8)
  for table in (alpha, np.array([0], np.uint8)):
    data = png(numbers, bits, 3, palette + chunk(b"tRNS", table.tobytes()))
    full = np.append(table, np.full(2**bits - len(table), 255))
    np.testing.assert_array_equal(decode(data), over_white(colours[numbers], full[numbers]))


def test_alpha_is_laid_over_white():
  alpha = RANDOM.integers(0, 256, (5, 7), np.uint8)
  alpha[0] = 0, 255, 1, 254, 128, 127, 2
  expected = over_white(COLOUR, alpha)
  rgba = Image.fromarray(np.dstack([COLOUR, alpha]))
  for data in (saved(rgba), saved(rgba, "TIFF"), saved(rgba, "WEBP", lossless=True, exact=True)):
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_allclose(decode(data, "L")[..., 0], grey_of(expected), rtol=0, atol=1)
  assert decode(saved(rgba), size=(3, 4)).min() >= 0
  np.testing.assert_array_equal(decode(saved(rgba), "RGBA"), np.dstack([COLOUR, alpha]))  # a set that wants it
  grey = saved(Image.fromarray(np.dstack([GREY, alpha])))
  np.testing.assert_array_equal(decode(grey, "L")[..., 0], over_white(np.stack([GREY] * 3, -1), alpha)[..., 0])


def test_one_transparent_colour():
  pixels = np.array([[3, 200], [7, 3]], np.uint8)
  data = png(pixels, 8, 0, chunk(b"tRNS", struct.pack(">H", 3)))
  np.testing.assert_array_equal(decode(data, "L")[..., 0], [[255, 200], [7, 255]])
  colour = np.dstack([pixels, pixels + 1, pixels + 2])
  data = png(colour, 8, 2, chunk(b"tRNS", struct.pack(">HHH", 7, 8, 9)))
  expected = colour.copy()
  expected[1, 0] = 255
  np.testing.assert_array_equal(decode(data), expected)
  data = png(np.array([[0, 1]]), 1, 0, chunk(b"tRNS", struct.pack(">H", 0)))
  np.testing.assert_array_equal(decode(data, "L")[..., 0], [[255, 255]])
  for bits, kind, key in ((2, 0, ">H"), (4, 0, ">H"), (16, 0, ">H"), (16, 2, ">HHH")):
    deep = np.ones((2, 2, 3) if kind else (2, 2), np.uint16)
    data = png(deep, bits, kind, chunk(b"tRNS", struct.pack(key, *[1] * (len(key) - 1))))
    with pytest.raises(UserError, match=r"here\.png: .*one colour of it is transparent"):
      decode(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_stand_upright(form):
  """The eight orientations, by the definition of EXIF: which side of the stored rows and columns is the visual top."""
  upright = np.zeros((16, 24, 3), np.uint8)
  upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
  stored = {  # what a camera writes that was held so
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.transpose(1, 0, 2),
    6: upright.transpose(1, 0, 2)[::-1],
    7: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: upright.transpose(1, 0, 2)[:, ::-1],
  }
  options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
  for orientation, pixels in stored.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(pixels))
    found = decode(saved(image, form, exif=exif, **options))
    np.testing.assert_allclose(found.astype(int), upright, rtol=0, atol=4, err_msg=f"{form} {orientation}")
  for nonsense in (0, 9, 255):
    exif[0x0112] = nonsense
    found = decode(saved(Image.fromarray(upright), form, exif=exif, **options))
    np.testing.assert_allclose(found.astype(int), upright, rtol=0, atol=4)


def test_a_deep_picture_is_turned_too():
  exif = Image.Exif()
  exif[0x0112] = 6
  data = saved(Image.fromarray(DEEP), exif=exif)
  np.testing.assert_array_equal(decode(data, "L")[..., 0], np.rot90(DEEP // 256, -1))
  assert decode(data, "L", size=(7, 5)).shape == (7, 5, 1)


def test_print_colours():
  cmyk = RANDOM.integers(0, 256, (5, 7, 4), np.uint8)
  image = Image.frombytes("CMYK", (7, 5), cmyk.tobytes())
  ink = cmyk.astype(np.float64)
  expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
  np.testing.assert_allclose(decode(saved(image, "TIFF")), expected, rtol=0, atol=1)
  flat = np.empty((16, 16, 4), np.uint8)
  flat[:] = 200, 40, 90, 30
  jpeg = saved(Image.frombytes("CMYK", (16, 16), flat.tobytes()), "JPEG", quality=100)
  expected = (255 - flat[..., :3].astype(np.float64)) * (255 - 30) / 255
  assert b"Adobe" in jpeg  # such files hold 255 - ink
  np.testing.assert_allclose(decode(jpeg).astype(int), expected, rtol=0, atol=4)
  at = jpeg.index(b"\xff\xee")
  unmarked = jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]
  with pytest.raises(UserError, match=r"here\.png: .*CMYK without Adobe's mark"):
    decode(unmarked)


def test_images_without_a_range_are_refused():
  for data, why in (
    (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "32-bit floats"),
    (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32-bit integers"),
    (tiff(DEEP, 0), "neither 8 bits nor 16 with white"),
    (tiff(DEEP.astype(np.int16), 1, form=2), ""),
    (tiff(DEEP.astype(np.uint32), 1), ""),
    (tiff(DEEP.astype(np.float64), 1, form=3), ""),
    (tiff(np.dstack([DEEP.astype(np.float32)] * 3), 2, form=3), ""),
    (tiff(RANDOM.integers(0, 256, (6, 12), np.uint8), 1, bits=12, width=8), "neither 8 bits nor 16 with white"),
  ):
    with pytest.raises(UserError, match=rf"here\.png: .*{why}") as refused:
      decode(data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_blocks_do_not_matter(form):
  """EXIF that ends too early, as in many photographs of the web: what can be read of it counts, without a word."""
  exif = Image.Exif()
  exif[0x0112] = 3
  exif[0x010F] = "a maker whose name is cut off"
  image = Image.fromarray(np.repeat(np.repeat(COLOUR, 8, 0), 8, 1))
  options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
  data = saved(image, form, exif=exif.tobytes()[:-12], **options)
  with pytest.warns(UserWarning, match="(?i)exif|entries|read"):
    assert 0x010F not in Image.open(io.BytesIO(data)).getexif()
  np.testing.assert_allclose(decode(data).astype(int), np.asarray(image)[::-1, ::-1], rtol=0, atol=8)


def frames():
  return [Image.fromarray(pixels) for pixels in (GREY, 255 - GREY, GREY // 2)]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_pictures_in_one_file_are_refused(form):
  first, *others = frames()
  data = saved(first, form, save_all=True, append_images=others)
  with pytest.raises(UserError, match=r"here\.png: .*it has 3 frames or pages; expected one picture"):
    decode(data)
  np.testing.assert_array_equal(decode(saved(first, "GIF"), "L")[..., 0], GREY)


def test_a_camera_s_several_pictures_are_its_first():
  shades = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in (50, 200)]
  exif = Image.Exif()
  exif[0x0112] = 6
  data = saved(shades[0], "MPO", save_all=True, append_images=shades[1:], exif=exif)
  assert Image.open(io.BytesIO(data)).format == "MPO"
  np.testing.assert_allclose(decode(data).astype(int), 50, atol=2)


def test_huge_pictures_are_a_sentence(monkeypatch):
  for shape, limit in (((20_000, 20_000), None), ((5, 7), 30), ((5, 7), 10)):
    if limit:
      monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    head = struct.pack(">IIBBBBB", *shape[::-1], 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      with pytest.raises(UserError, match=r"here\.png: has more than [\d,]+ pixels; expected a smaller picture"):
        decode(data)
    assert not caught


DAMAGED = {
  "PNG": {},
  "JPEG": {},
  "WEBP": {"lossless": True},
  "BMP": {},
  "TIFF": {},
  "GIF": {},
}


@pytest.mark.parametrize("form", DAMAGED)
def test_files_that_end_too_early(form):
  image = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), np.uint8))
  data = saved(image, form, **DAMAGED[form])
  for end in (0, 1, 8, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
    with pytest.raises(UserError, match=r"here\.png: is not a readable image: \w") as refused:
      decode(data[:end])
    assert "\n" not in str(refused.value) and "object at" not in str(refused.value)


def test_not_an_image():
  eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n"
  svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
  for data in (b"hello", eps, svg, b"GIF89a", b"\xff\xd8\xff", bytes(5000), saved(Image.fromarray(GREY), "PPM")):
    with pytest.raises(UserError, match=r"here\.png: is not a readable image"):
      decode(data)


def test_a_flipped_bit_in_a_png_is_found():
  data = saved(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), np.uint8)))
  broken = bytearray(data)
  broken[len(data) // 2] ^= 1
  with pytest.raises(UserError, match=r"here\.png: is not a readable image"):
    decode(bytes(broken))


def axis_filter(length, out, start, stop):
  """(out, length) weights of an antialiased triangle over `out` equal parts of [start, stop): by hand."""
  scale = (stop - start) / out
  width = max(scale, 1.0)
  centres = start + (np.arange(out) + 0.5) * scale
  weights = np.maximum(1 - np.abs(np.arange(length) + 0.5 - centres[:, None]) / width, 0)
  return weights / weights.sum(1, keepdims=True)


def by_hand(pixels, size, way):
  """The resized image as float64: which part of it is spread over which part of the result."""
  (rows, columns), (height, width) = pixels.shape[:2], size
  inner, box, corner = (height, width), [0.0, rows, 0.0, columns], (0, 0)
  if way == "crop":
    high, wide = min(rows, columns * height / width), min(columns, rows * width / height)
    box = [(rows - high) / 2, (rows + high) / 2, (columns - wide) / 2, (columns + wide) / 2]
  if way == "pad":
    share = min(height / rows, width / columns)
    inner = (round(rows * share), round(columns * share))
    corner = (round((height - inner[0]) / 2), round((width - inner[1]) / 2))
  down, across = axis_filter(rows, inner[0], *box[:2]), axis_filter(columns, inner[1], *box[2:])
  out = np.zeros((height, width, pixels.shape[2]))
  filled = np.einsum("ir,jc,rck->ijk", down, across, pixels.astype(np.float64))
  out[corner[0] : corner[0] + inner[0], corner[1] : corner[1] + inner[1]] = filled
  return out


@pytest.mark.parametrize("way", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(40, 23), (9, 31), (6, 5), (12, 16)])
@pytest.mark.parametrize("size", [(8, 12), (15, 9)])
def test_ways_to_resize_equal_numpy(way, shape, size):
  pixels = RANDOM.integers(0, 256, (*shape, 3), np.uint8)
  found = decode_image(saved(Image.fromarray(pixels)), "RGB", size, "x", way)
  assert found.shape == (*size, 3)
  np.testing.assert_allclose(found, by_hand(pixels, size, way), atol=1.01)


def test_padding_is_black_and_grey_images_are_padded_too():
  found = decode_image(saved(Image.fromarray(np.full((10, 20), 255, np.uint8))), "L", (8, 8), "x", "pad")
  assert found[:2].max() == found[6:].max() == 0 and found[2:6].min() == 255
  with pytest.raises(UserError, match="thin.png: .* 1x1000 pixels, of which a side is 0 wide when it is padded"):
    decode_image(saved(Image.fromarray(np.ones((1, 1000), np.uint8))), "L", (8, 8), "thin.png", "pad")

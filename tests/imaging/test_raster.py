import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medray.imaging.limits import Limits
from medray.imaging.reader import read
from medray.types import InputError

GREY = np.random.default_rng(0).integers(0, 256, (12, 17), np.uint8)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int, columns: int, depth: int, colour: int, samples: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(samples)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def code_of(source: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(source, limits or Limits())
    return caught.value.code


def test_grey_in_disguise_is_one_channel() -> None:
    palette = Image.fromarray(GREY % 16)
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([255 - 17 * (index // 3) for index in range(48)])
    three = Image.fromarray(np.stack([GREY] * 3, -1))
    opaque = three.convert("RGBA")
    np.testing.assert_array_equal(read(saved(three)).image, GREY[None])
    np.testing.assert_array_equal(read(saved(opaque)).image, GREY[None])
    np.testing.assert_array_equal(read(saved(three.convert("LA"))).image.shape, (1, 12, 17))
    np.testing.assert_array_equal(read(saved(palette)).image[0], 255 - 17 * (GREY % 16))


def test_colour_is_three_channels() -> None:
    colour = np.stack([GREY, 255 - GREY, GREY], -1)
    for mode in ("RGB", "RGBA"):
        case = read(saved(Image.fromarray(colour).convert(mode)))
        np.testing.assert_array_equal(case.image, np.moveaxis(colour, -1, 0))
        assert case.image.flags.c_contiguous


@pytest.mark.parametrize(("depth", "factor"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_every_depth_of_grey_spans_0_to_255(depth: int, factor: int) -> None:
    byte, count = 0b11100100, 8 // depth
    levels = [byte >> (8 - depth * (place + 1)) & (2**depth - 1) for place in range(count)]
    samples = bytes([0, byte])
    if count > 1:
        assert read(png(1, count, depth, 0, samples)).image[0, 0].tolist() == [level * factor for level in levels]
    seen = chunk(b"tRNS", struct.pack(">H", levels[0]))
    assert code_of(png(1, count, depth, 0, samples, seen)) == "wrong_channels"
    if depth == 4:
        unseen = chunk(b"tRNS", struct.pack(">H", 0))
        assert read(png(1, count, depth, 0, samples, unseen)).image.shape == (1, 1, 2)


def test_16_bits_are_kept_for_grey_and_refused_for_colour() -> None:
    deep = GREY.astype(np.uint16) * 257
    case = read(saved(Image.fromarray(deep)))
    np.testing.assert_array_equal(case.image[0], deep)
    assert case.image.dtype == np.uint16
    assert code_of(png(1, 1, 16, 2, bytes(7))) == "unsupported_dtype"


def test_transparency_is_refused() -> None:
    see_through = Image.fromarray(np.stack([GREY] * 4, -1))
    assert code_of(saved(see_through)) == "wrong_channels"
    assert code_of(saved(Image.fromarray(GREY), transparency=int(GREY[0, 0]))) == "wrong_channels"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_exif_orientation_is_applied_as_pillow_does(form: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(GREY), form, exif=exif)
    case = read(content)
    with Image.open(BytesIO(content)) as image:
        np.testing.assert_array_equal(case.image[0], np.asarray(ImageOps.exif_transpose(image)))
    assert case.image.flags.c_contiguous
    assert case.warnings == ()


def test_jpeg_equals_pillow_whatever_its_application_data() -> None:
    for image in (Image.fromarray(GREY), Image.fromarray(np.stack([GREY, 255 - GREY, GREY // 2], -1))):
        for options in ({}, {"progressive": True}, {"icc_profile": b"x" * 99, "comment": b"c", "dpi": (7, 7)}):
            content = saved(image, "JPEG", **options)
            with Image.open(BytesIO(content)) as other:
                expected = np.atleast_3d(np.asarray(other))
            np.testing.assert_array_equal(np.moveaxis(read(content).image, 0, -1), expected)


def test_exif_of_a_person_is_warned_of() -> None:
    exif = Image.Exif()
    exif[0x8298] = "DOE JANE"
    assert read(saved(Image.fromarray(GREY), "JPEG", exif=exif)).warnings == ("phi_in_header",)


def test_sizes_are_refused_before_decoding() -> None:
    assert code_of(png(2**31 - 1, 2**31 - 1, 8, 0, b"\0")) == "too_many_pixels"
    assert code_of(png(10, 0, 8, 0, b"\0")) == "empty_image"
    jpeg = saved(Image.fromarray(GREY), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    huge = jpeg[: frame + 5] + b"\xff\xff\xff\xff" + jpeg[frame + 9 :]
    assert code_of(huge) == "too_many_pixels"
    # A second frame header, larger than the first, must not be what the decoder takes memory for.
    length = int.from_bytes(jpeg[frame + 2 : frame + 4], "big") + 2
    assert code_of(jpeg[: frame + length] + jpeg[frame:]) == "corrupt"


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_bombs_are_refused(kind: bytes) -> None:
    head = b"k\0\1\0en\0k\0" if kind == b"iTXt" else b"k\0\0"
    small = png(1, 2, 8, 0, b"\0\1\2", chunk(kind, head + zlib.compress(bytes(100))))
    assert read(small).image[0, 0].tolist() == [1, 2]
    bomb = png(1, 2, 8, 0, b"\0\1\2", chunk(kind, head + zlib.compress(bytes(8 << 20))))
    assert code_of(bomb) == "too_large_decompressed"


def test_damage_is_told_apart() -> None:
    content = saved(Image.fromarray(GREY))
    middle = len(content) // 2
    assert code_of(content[:middle]) == "truncated"
    assert code_of(content[:-12]) == "truncated"
    assert code_of(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]) == "checksum"
    assert code_of(content + b"more") == "trailing_data"
    assert code_of(png(4, 4, 8, 0, bytes(7))) == "truncated"
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert code_of(saved(frames[0], save_all=True, append_images=frames[1:])) == "multi_frame"
    jpeg = saved(Image.fromarray(np.tile(GREY, (9, 9))), "JPEG")
    assert code_of(jpeg[: len(jpeg) // 2]) == "truncated"
    assert code_of(jpeg[:60]) == "truncated"
    assert code_of(saved(Image.fromarray(np.stack([GREY] * 3, -1)).convert("CMYK"), "JPEG")) == "unsupported_colour"
    frame = jpeg.index(b"\xff\xc0")
    assert code_of(jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :]) == "unsupported_dtype"
    pictures = b"\xff\xe2\x00\x08MPF\0xx"
    assert code_of(jpeg[:2] + pictures + jpeg[2:]) == "multi_frame"

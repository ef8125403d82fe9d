"""What a file says of its pixels holds: a transparent level of any depth, white as zero, the bits of a picture."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deploy.errors import DeployError
from deploy.processing.files import prepared
from deploy.processing.preprocess import Preprocessing

RED = Preprocessing(size=(4, 4), background=(255, 0, 0))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, depth, levels, clear, colours=1):
    """A PNG of 4 equal rows, whose ``levels`` (each repeated for all colours) in ``depth`` bits are clear at one."""
    words = [level for level in levels for _ in range(colours)]
    bits = "".join(format(word, f"0{depth}b") for word in words)
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    head = struct.pack(">IIBBBBB", 4, 4, depth, 2 if colours == 3 else 0, 0, 0, 0)
    key = chunk(b"tRNS", struct.pack(">H", clear) * colours)
    data = chunk(b"IDAT", zlib.compress((b"\0" + row) * 4))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + key + data + chunk(b"IEND", b""))
    return path


def tiff(path, kind, samples, rows):
    """A TIFF of 4 x 4 pixels, each of ``samples`` of 16 bits; ``kind`` is its photometric interpretation."""
    data, places = np.asarray(rows, "<u2").tobytes(), 8 + 2 + 9 * 12 + 4
    many = struct.pack(f"<{samples}H", *[16] * samples)
    bits = struct.unpack("<I", many.ljust(4, b"\0"))[0] if samples < 3 else places
    entries = [(256, 4), (257, 4), (258, bits), (259, 1), (262, kind), (273, places + len(many)), (277, samples)]
    entries += [(278, 4), (279, len(data))]
    tags = b"".join(
        struct.pack("<HHII", tag, *((3, samples) if tag == 258 else (4, 1)), value) for tag, value in entries
    )
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, 9) + tags + struct.pack("<I", 0) + many + data)
    return path


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_number_7_a_transparent_level_of_grey_is_that_level_and_no_other(depth, tmp_path):
    most = (1 << depth) - 1
    path = png(tmp_path / "grey.png", depth, (most, most - 1, 1, 0), most)
    found = RED(RED.load(path))[:, 0]
    assert found[:, 0].tolist() == [1, 0, 0]
    grey = np.array([most - 1, 1, 0]) * 255 // most / 255
    np.testing.assert_allclose(found[:, 1:], np.tile(grey, (3, 1)), atol=1.01 / 255 if depth == 16 else 1e-6)
    with Image.open(path) as image:
        np.testing.assert_array_equal(RED(image)[:, 0], found)


def test_number_7_a_transparent_colour_of_low_bits_is_refused_where_it_may_be_meant(tmp_path):
    path = png(tmp_path / "colour.png", 16, (300, 301, 40000, 60000), 300, colours=3)
    with pytest.raises(DeployError, match=r"colour\.png names a transparent colour in 16 bits"):
        RED.load(path)
    path = png(tmp_path / "absent.png", 16, (600, 700, 40000, 60000), 300, colours=3)
    assert RED(RED.load(path))[0, 0].tolist() == pytest.approx([2 / 255, 2 / 255, 156 / 255, 234 / 255])


def test_number_7_sixteen_bits_where_zero_is_white_are_turned_round(tmp_path):
    dark, light = (tiff(tmp_path / f"{kind}.tiff", kind, 1, [60000] * 16) for kind in (0, 1))
    assert RED(RED.load(light)).mean() == pytest.approx(234 / 255)
    assert RED(RED.load(dark)).mean() == pytest.approx(21 / 255)


def test_number_7_colours_of_twelve_bits_are_doubted_in_every_format(tmp_path):
    path = tiff(tmp_path / "cmyk.tiff", 5, 4, [4095, 0, 2000, 0] * 16)
    (tmp_path / "full.ppm").write_bytes(b"P6 4 4 65535\n" + struct.pack(">48H", *[4095] * 48))
    (tmp_path / "stated.ppm").write_bytes(b"P6 4 4 4095\n" + struct.pack(">48H", *[4095] * 48))
    for doubted in (path, tmp_path / "full.ppm"):
        with pytest.raises(DeployError, match=r"below 4096 in 16 bits.*state preprocessing\.bits"):
            RED.load(doubted)
    assert RED(RED.load(tmp_path / "stated.ppm")).min() == 1


def test_number_7_every_command_reads_by_the_bits_stated(tmp_path):
    from compress.cli.lowering import _fed
    from deploy.bench.labelled import _right

    class Seen:
        name, inputs = "seen", {"image": None}

        def run(self, feeds):
            self.fed = feeds["image"]
            return {"logits": np.zeros((1, 2))}

    path, engine = tmp_path / "deep.png", Seen()
    Image.fromarray(np.full((4, 4), 16000, np.uint16)).save(path)
    prepare = Preprocessing(size=(4, 4), mode="L", bits=14)
    _right(engine, prepare, [path], [0])
    (_, first, second), (calibrated,) = next(_fed([path], (prepare, prepare))), prepared([path], prepare)
    for found in (engine.fed, first, second, calibrated):
        assert found.min() == pytest.approx(250 / 255)

"""``python -m fastq predict``, where there may be no torch."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastq import runtime
from fastq.__main__ import main
from fastq.predict import read_netpbm

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = FIXTURES / "pools.safetensors"


@pytest.fixture
def images(tmp_path):
    x = np.load(FIXTURES / "pools.npz")["x"]
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy", x, np.load(FIXTURES / "pools.npz")["y"]


def expected(y, names=None):
    chance = np.exp(y.astype(np.float64)) / np.exp(y.astype(np.float64)).sum(1, keepdims=True)
    rows = zip(y.argmax(1), y.max(1), chance.max(1), strict=True)
    return [(str(best) if names is None else names[best], float(logit), float(p)) for best, logit, p in rows]


def printed(text):
    rows = [line.split("\t") for line in text.splitlines()]
    return [row[0] for row in rows], [(row[1], float(row[2]), float(row[3])) for row in rows]


def same(rows, others):
    assert len(rows) == len(others)
    for (name, logit, chance), (other, other_logit, other_chance) in zip(rows, others, strict=True):
        # printed with six digits, and four after the point
        assert name == other and logit == pytest.approx(other_logit, rel=1e-5) and chance == pytest.approx(other_chance, abs=6e-5)


def test_a_line_for_each_image(images, tmp_path, capsys):
    path, x, y = images
    (tmp_path / "names").write_text("cat\ndog\nowl\n")
    assert main(["predict", str(MODEL), str(path), "--batch", "2", "--names", str(tmp_path / "names")]) == 0
    labels, rows = printed(capsys.readouterr().out)
    assert labels == [f"x.npy[{i}]" for i in range(5)]
    same(rows, expected(y, ["cat", "dog", "owl"]))
    np.savez(tmp_path / "x.npz", a=x * 4, b=x)
    assert main(["predict", str(MODEL), str(tmp_path / "x.npz"), "--array", "a", "--scale", "1/4", "--threads", "1"]) == 0
    same(printed(capsys.readouterr().out)[1], expected(y))


def test_a_folder_of_pictures(tmp_path, capsys):
    """Of one channel and of three, 8 bits and 16, with comments; what is no picture is left."""
    rng = np.random.default_rng(0)
    gray, color = rng.integers(0, 256, (1, 9, 10), np.uint8), rng.integers(0, 1000, (3, 14, 17), np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5\n# of a scanner\n10 9\n255\n" + gray.tobytes())
    (tmp_path / "b.ppm").write_bytes(b"P6 17 14 999\n" + color.transpose(1, 2, 0).astype(">u2").tobytes())
    (tmp_path / "notes.txt").write_text("none")
    assert np.array_equal(read_netpbm((tmp_path / "a.pgm").read_bytes()), gray)
    assert np.array_equal(read_netpbm((tmp_path / "b.ppm").read_bytes()), color)
    model = FIXTURES / "convolutions.safetensors"
    (tmp_path / "a.pgm").unlink()
    assert main(["predict", str(model), str(tmp_path), "--scale", "1/999"]) == 0
    labels, rows = printed(capsys.readouterr().out)
    assert labels == ["b.ppm"]
    same(rows, expected(runtime.load(model)(color[None].astype(np.float32) * np.float32(1 / 999))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "x.npy"], "predict: [Errno 2] No such file or directory: 'absent'"),
        (["x.npy", "x.npy"], "predict: load: x.npy is truncated or no safetensors file"),
        ([str(MODEL), "absent.npy"], "predict: [Errno 2] No such file or directory: 'absent.npy'"),
        ([str(MODEL), "empty"], "predict: empty has no file whose name ends with one of .npy, .npz, .pgm, .ppm"),
        ([str(MODEL), "a.pgm"], "predict: cannot read a.pgm: it has 3 bytes for 10 x 9 pixels up to 255"),
        ([str(MODEL), "b.ppm"], "predict: cannot read b.ppm: it is no binary PGM or PPM image"),
        ([str(MODEL), "c.jpg"], "predict: cannot read c.jpg: its name ends with none of .npy"),
        ([str(MODEL), "text.npy"], "predict: cannot read text.npy: it is an array of <U1, not of numbers"),
        ([str(MODEL), "object.npy"], "predict: cannot read object.npy: Object arrays cannot be loaded"),
        ([str(MODEL), "cut.npz"], "predict: cannot read cut.npz: "),
        ([str(MODEL), "two.npz"], "predict: cannot read two.npz: it has the arrays a, b; --array says which"),
        ([str(MODEL), "two.npz", "--array", "c"], "predict: cannot read two.npz: it has no array 'c' but a, b"),
        ([str(MODEL), "damaged.npz"], "predict: cannot read damaged.npz: Error -3 while decompressing data"),
        ([str(MODEL), "method.npz"], "predict: cannot read method.npz: That compression method is not supported"),
        ([str(MODEL), "locked.npz"], "predict: cannot read locked.npz: File 'a.npy' is encrypted"),
        ([str(MODEL), "text.npz"], "predict: cannot read text.npz: a.txt in it is no array"),
        ([str(MODEL), "none.npz"], "predict: cannot read none.npz: it has no arrays"),
        ([str(MODEL), "nan.npy"], "predict: nan.npy[3] has NaN, or numbers that times --scale are not finite in float32"),
        ([str(MODEL), "x.npy", "--scale", "3e38"], "predict: x.npy[0] has NaN, or numbers that times --scale are not finite"),
        ([str(MODEL), "one.npy"], "predict: Network: x must have shape (B, 2, H, W), got (1, 1, 9, 10)"),
        ([str(MODEL), "x.npy", "--names", "b.ppm"], "predict: --names has 1 lines for 3 classes"),
        ([str(MODEL), "x.npy", "--threads", "2000"], "predict: load: threads must be from 1 to 1024, got 2000"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(images, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pgm").write_bytes(b"P5 10 9 255\nabc")
    (tmp_path / "b.ppm").write_bytes(b"P3 1 1 255 1 1 1")
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8")
    np.save("text.npy", np.array(["a"]))
    np.save("object.npy", np.array([{}], object), allow_pickle=True)
    np.save("one.npy", np.zeros((9, 10), np.float32))
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    nan = images[1].copy()
    nan[3, 0, 0, 0] = np.nan
    np.save("nan.npy", nan)
    for name, kind, member in (("text", 0, "a.txt"), ("damaged", 8, "a.npy"), ("method", 0, "a.npy"), ("locked", 0, "a.npy")):
        with zipfile.ZipFile(f"{name}.npz", "w", kind) as archive:
            archive.writestr(member, b"none" if name == "text" else (tmp_path / "one.npy").read_bytes())
    for name, local, central, value in (("method", 8, 10, 99), ("locked", 6, 8, 1)):  # fields of the two headers
        broken = bytearray((tmp_path / f"{name}.npz").read_bytes())
        broken[local] = broken[broken.index(b"PK\1\2") + central] = value
        (tmp_path / f"{name}.npz").write_bytes(broken)
    broken = bytearray((tmp_path / "damaged.npz").read_bytes())
    broken[35] = 0xFF
    (tmp_path / "damaged.npz").write_bytes(broken)
    np.savez("none.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:-40])
    assert main(["predict", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(message)


@pytest.mark.parametrize("scale", ["1/0", "nan", "inf", "1e39", "x", "1/x"])
def test_a_scale_that_is_none(capsys, scale):
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(MODEL), "x.npy", "--scale", scale])
    assert caught.value.code == 2
    message = f"argument --scale: must be a finite number of float32 or a fraction such as 1/255, got '{scale}'"
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_output_that_nobody_takes(images, command):
    """A reader who has gone is no error; a disk that is full is one line."""
    arguments = [sys.executable, "-m", "fastq", command, str(MODEL), *([str(images[0])] if command == "predict" else [])]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, open("/dev/full", "w") as full:
        for file, code, err in ((pipe, 0, ""), (full, 2, f"{command}: cannot print: No space left on device\n")):
            done = subprocess.run(arguments, stdout=file, stderr=subprocess.PIPE, text=True)
            assert (done.returncode, done.stderr) == (code, err)


def test_the_help_says_what_is_read():
    done = subprocess.run([sys.executable, "-m", "fastq", "predict", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "torch" not in done.stderr
    for part in (".npy", ".npz", ".pgm, .ppm", "--array NAME", "--scale X", "such as 1/255", "--batch N", "--names FILE", "logit"):
        assert part in done.stdout

"""What fastq.compat imports, and what it says where a library is missing."""

import subprocess
import sys

import pytest


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_other_library_is_imported_before_its_submodule() -> None:
    out = python(
        "import sys, fastq, fastq.compat\n"
        "others = lambda: sorted({m.split('.')[0] for m in sys.modules} & {'torchao', 'brevitas'})\n"
        "print(others(), fastq.compat.__all__)\n"
        "fastq.compat.torch_ao.FakeQuantize, fastq.compat.lsq_net.LsqQuan\n"
        "print(others())\n"
    )
    assert out.splitlines() == ["[] ['brevitas', 'lsq_net', 'torch_ao', 'torchao']", "[]"]


def test_a_missing_library_is_named_with_what_to_install() -> None:
    out = python(
        "import os, sys, torch, fastq.compat\n"
        "def refused(name):\n"
        "    try:\n        getattr(fastq.compat, name)\n"
        "    except ImportError as error:\n        print(error)\n"
        "for name in ('torchao', 'brevitas'):\n    sys.modules[name] = None\n    refused(name)\n"
        "sys.modules['torch.ao.quantization'] = None\nrefused('torch_ao')\n"
        "os.environ['BREVITAS_JIT'] = '1'\nrefused('brevitas')\n"
    )
    torchao, brevitas, torch_ao, jit = out.splitlines()
    for name, line in (("torchao", torchao), ("brevitas", brevitas)):
        assert line.startswith(f"fastq.compat.{name} needs {name}, which does not import here (ModuleNotFoundError: ")
        assert line.endswith(f"install it with: pip install {name}")
    assert torch_ao.startswith("fastq.compat.torch_ao needs a torch that still has torch.ao.quantization")
    assert jit.startswith("fastq.compat.brevitas: BREVITAS_JIT=1 compiles quantizers with TorchScript")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import fastq

    with pytest.raises(AttributeError, match=r"module 'fastq\.compat' has no attribute 'nncf'"):
        print(fastq.compat.nncf)

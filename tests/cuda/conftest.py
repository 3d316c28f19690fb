"""The CUDA library is built once, and every test that looks at what nvcc makes of a whole source file looks at that build.

``FASTQ_CUDA_PYTHON`` names the Python of an environment with a CUDA torch, which the library is linked against; unset, nothing is
built. Built by setup.py's own plan, for ``TORCH_CUDA_ARCH_LIST`` (unset: every architecture, which takes long); what it makes stays
in the build folder, and a wheel made after it compiles nothing again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))
from build_flags import LOOKED_AT, build_module, compiler, cuobjdump
from sources import ROOT


@pytest.fixture(scope="session")
def cuda_build() -> Path | None:
    """The folder of the build, whose objects have the PTX of ``LOOKED_AT`` as well; None where nothing is built."""
    python, nvcc = os.environ.get("FASTQ_CUDA_PYTHON"), compiler()
    if python is None and os.environ.get("FASTQ_REQUIRE_CUDA") == "1":
        pytest.fail("FASTQ_REQUIRE_CUDA=1, but FASTQ_CUDA_PYTHON names no Python with a CUDA torch")
    if python is None or nvcc is None:
        return None
    setup = build_module()
    torch = setup.Torch.of(python)
    assert torch is not None and torch.cuda is not None, f"{python} has no CUDA torch"
    (ROOT / "build").mkdir(exist_ok=True)
    # Processes that test side by side take turns: the first builds, the others find it done.
    with pytest.MonkeyPatch.context() as patch, FileLock(ROOT / "build" / "cuda_build.lock"):
        patch.setenv("FASTQ_BUILD_CUDA", "1")
        patch.setenv("MAX_JOBS", os.environ.get("MAX_JOBS", str(len(os.sched_getaffinity(0)))))
        # Not in the plan: a wheel has no use for it, and takes these objects because its commands are the plan's.
        kept = " ".join(f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in LOOKED_AT)
        patch.setenv("NVCC_APPEND_FLAGS", f"-Werror all-warnings {kept}")
        ninja, products, record = setup.plan()
        assert record["cuda"]["built"] and ("libfastq_cuda.so", "lib/libfastq_cuda.so") in products
        for made in ninja.folder.glob("*.cu.o"):
            listed = subprocess.run([cuobjdump(), "-lelf", "-lptx", str(made)], capture_output=True, text=True).stdout
            if "ELF" in listed and not all(f"sm_{arch}.ptx" in listed for arch in LOOKED_AT):
                made.unlink()  # by another build, and good for everything but these tests
        ninja.run()
    return ninja.folder

"""Builds the CPU kernels: one shared library, each file with the flags of its instruction set.

Without a compiler the package installs all the same: the reference backend runs, and says why.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, LinkError, PlatformError

_COMMON = ["-std=c++20", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-pthread"]
_COMMON += ["-Wall", "-Wextra", "-Wno-psabi"]
# GCC 12 warns of the deliberately undefined operands in its own intrinsics' headers.
_QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
_AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
_AVX512 = [
    *_AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi"),
    *("-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
]
# Files that run on any processor, to find out what it is, must not use what it may lack.
_PLAIN = ("api.cpp", "api_logits.cpp", "isa.cpp", "pool.cpp")
_FLAGS = {"avx512": _AVX512, "amx": _AVX512, "amx_emulated": _AVX512}


class BuildKernels(build_ext):
    """Compiles every file of an extension with its own flags, two at a time."""

    def build_extension(self, ext: Extension) -> None:
        """Build, or say what is missing and go on without."""
        try:
            self._build(ext)
        except (CompileError, LinkError, ExecError, PlatformError) as error:
            if os.environ.get("FATHOM_REQUIRE_KERNELS"):
                raise
            self.warn(f"the CPU kernels were not built, the reference will serve: {error}")

    def _build(self, ext: Extension) -> None:
        extra = os.environ.get("FATHOM_KERNEL_FLAGS", "").split()

        def compile_one(source: str) -> str:
            flags = [*_COMMON, *_flags_of(Path(source).name), *extra]
            compiled = self.compiler.compile(
                [source], output_dir=self.build_temp, extra_postargs=flags, depends=ext.depends
            )
            return str(compiled[0])

        self.compiler.mkpath(str(Path(self.build_temp) / "csrc"))
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=["-pthread", *extra], target_lang="c++"
        )

    def get_ext_filename(self, fullname: str) -> str:
        """A plain library's name: it does not depend on the version of Python."""
        return str(Path(*fullname.split("."))) + ".so"


def _flags_of(name: str) -> list[str]:
    if name in _PLAIN:
        return []
    for isa, flags in _FLAGS.items():
        if name.endswith(f"_{isa}.cpp"):
            return [*flags, *_QUIET]
    return _AVX2


setup(
    ext_modules=[
        Extension(
            "fathom.ops.backends.cpu.libfathom",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)

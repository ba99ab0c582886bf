"""The native kernel, the one thing pyproject.toml cannot say: the package is the same without it.

A setup.py and not `[tool.setuptools] ext-modules`: that table is experimental, and cannot leave the extension out where
CPython has no stable ABI, which would make the whole package fail to build there.
"""

import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup

native = Extension(
    "gradscope.hooks._native",
    sources=["gradscope/hooks/_native.c"],
    depends=glob("gradscope/hooks/_native_*.h"),
    extra_compile_args=[] if sys.platform == "win32" else ["-std=c11", "-O3", "-pthread"],
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
    py_limited_api=True,
    optional=True,  # without a compiler the install goes on, and torch does the work
)
stable_abi = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[native] if stable_abi else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)

"""Packaging: the folders at the root are the subpackages of `flashelmo`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT_FOLDERS = ("engine", "kernels", "export", "benchmarks")

packages = ["flashelmo"]
package_dir = {"flashelmo": "src/flashelmo"}
for folder in ROOT_FOLDERS:
    package_dir[f"flashelmo.{folder}"] = folder
    packages += [f"flashelmo.{folder}"] + [f"flashelmo.{folder}.{name}" for name in find_packages(folder)]

CPU = ["onnxruntime>=1.20"]
TORCH = ["torch>=2.4"]
OPENVINO = ["openvino>=2024.6"]

setup(
    name="flashelmo",
    version="0.1.0",
    description="Contextual word embeddings from ELMo, exact and as fast as the hardware allows",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={"flashelmo": ["py.typed"], "flashelmo.benchmarks": ["results/*.json"]},
    entry_points={"console_scripts": ["flashelmo=flashelmo.cli:main"]},
    install_requires=[
        "h5py>=3.8",
        "numpy>=1.26",
        "onnx>=1.16",
        "pyarrow>=15",
        "rich>=13",
        "safetensors>=0.4",
        "tqdm>=4.60",
        "typer>=0.12",
    ],
    extras_require={
        "cpu": CPU,
        "gpu": [*TORCH, "triton>=3.2", "onnxruntime-gpu>=1.20"],
        "openvino": OPENVINO,
        "torch": TORCH,
        "bench": ["pytest-benchmark>=4", "pytest>=8", "matplotlib>=3.8", "psutil>=5.9"],
        "dev": [
            *CPU, *TORCH, *OPENVINO,
            "hypothesis>=6", "matplotlib>=3.8", "mypy>=1.10", "psutil>=5.9", "pytest>=8", "pytest-benchmark>=4", "ruff>=0.8", "build>=1",
        ],
    },
)

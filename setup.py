"""Packaging: the folders at the root are the subpackages of `flashelmo`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
PUBLIC_FACE = "src/flashelmo"
ROOT_FOLDERS = ("engine", "kernels", "export", "benchmarks")


def version() -> str:
    """`flashelmo.__version__`, read without importing the package."""
    source = (ROOT / PUBLIC_FACE / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise ValueError(f'{PUBLIC_FACE}/__init__.py: no line __version__ = "..."')
    return match[1]


package_dir = {"flashelmo": PUBLIC_FACE}
packages = ["flashelmo", "flashelmo.cli", "flashelmo.integrations", "flashelmo.serve"]
for folder in ROOT_FOLDERS:
    package_dir[f"flashelmo.{folder}"] = folder
    packages += [f"flashelmo.{folder}", *(f"flashelmo.{folder}.{name}" for name in find_packages(str(ROOT / folder)))]

ONNX = ["onnx>=1.16"]  # builds the graphs that both runtimes of the CPU run, and exported files
CPU = ["onnxruntime>=1.20", *ONNX]
OPENVINO = ["openvino>=2024.6", *ONNX]
TORCH = ["torch>=2.4"]
TRITON = ["triton>=3.6,<3.10 ; sys_platform == 'linux'"]  # `kernels.compiled.KNOWN`
BULK = ["fsspec>=2023.1", "sacremoses>=0.1.1"]  # remote paths, the Moses tokenizer
DOWNLOAD = ["filelock>=3.12", "pooch>=1.8", "requests>=2.31"]
HUB = ["huggingface_hub>=0.23"]
RAY = ["ray[data,serve]>=2.51"]  # from it on a data set takes `compute=ActorPoolStrategy`
CLIENT = ["httpx>=0.27", "tenacity>=8.2"]
SERVE = [
    "fastapi>=0.115",
    "httptools>=0.6",
    "orjson>=3.10",
    "prometheus-client>=0.20",
    "pydantic>=2.7",
    "starlette>=0.40",
    "uvicorn>=0.30",
]
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"]
BENCH = ["matplotlib>=3.8", "pytest-benchmark>=4"]
SENSES = ["gensim>=4.3"]  # static vectors, beside which contextual ones stand
TRITON_CLIENT = ["grpcio>=1.63", "tritonclient>=2.68,<2.70"]  # the server's protocol; 2.70 forbids a newer ml_dtypes
TOOLS = [
    "duckdb>=1.1",  # reads shards in the tests
    "faiss-cpu>=1.9",  # is filled from them
    "hypothesis>=6",
    "mypy>=1.10",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.8",
    "setuptools>=70.1",
    *TRITON_CLIENT,
]

setup(
    name="flashelmo",
    version=version(),
    description="Fast, exact ELMo word vectors on CPUs and NVIDIA GPUs",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The flashelmo authors",
    keywords=["ELMo", "word embeddings", "contextual embeddings", "NLP", "protein embeddings", "ONNX", "Triton"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",  # what it is tested on
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/1802.05365"},  # the host's own when there is one
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "flashelmo": ["py.typed"],
        "flashelmo.serve": ["page.html"],
        "flashelmo.engine.cpu": ["*.c", "*.h"],
        "flashelmo.engine.cuda": ["*.c"],
        "flashelmo.kernels": ["*.c"],
        "flashelmo.benchmarks.kernels": ["*.c"],
        "flashelmo.engine.model": ["tiny/*"],
        "flashelmo.engine.model.named": ["*.json"],
        "flashelmo.benchmarks": ["results/gpu/*.json"],  # figures of cards to stand beside a run's own
    },
    entry_points={
        "console_scripts": ["flashelmo=flashelmo.cli:main"],
        "spacy_factories": ["flashelmo=flashelmo.integrations.spacy:make_component"],  # for nlp.add_pipe("flashelmo")
    },
    install_requires=[
        "h5py>=3.8",
        "numpy>=1.26",
        "pyarrow>=15",
        "rich>=13",
        "safetensors>=0.4",
        "tqdm>=4.60",
        "typer>=0.19",
        "typing_extensions>=4.4",
    ],
    extras_require={
        "cpu": CPU,
        "gpu": [*TORCH, *TRITON, "onnxruntime-gpu>=1.20", *ONNX],
        "export": [*CPU, *TORCH],
        "openvino": OPENVINO,
        "torch": TORCH,
        "bulk": BULK,
        "download": DOWNLOAD,
        "hub": HUB,
        "spacy": ["spacy>=3.7"],
        "ray": RAY,
        "sklearn": ["scikit-learn>=1.6"],
        "sentence-transformers": [*TORCH, "sentence-transformers>=6"],
        "flair": [*TORCH, "flair>=0.15"],
        "datasets": ["datasets>=3"],
        "langchain": ["langchain-core>=0.3"],
        "senses": [*CPU, *TORCH, *BENCH, *SENSES],
        "dev": [*CPU, *OPENVINO, *TORCH, *TRITON, *BULK, *DOWNLOAD, *SERVE, *CLIENT, *BENCH, *DOCS, *TOOLS],
        "client": CLIENT,
        "serve": [*SERVE, *CLIENT],
        "bench": BENCH,
        "docs": DOCS,
    },
)

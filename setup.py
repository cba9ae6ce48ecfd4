"""The package `local2global`, from `projects/`, and the command `l2g`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"

# `configs/` stays beside the package in a checkout, and is installed as `local2global.configs`.
CONFIGS = {
    ".".join(("local2global", *folder.relative_to(ROOT).parts)): str(folder.relative_to(ROOT))
    for folder in sorted({path.parent for path in (ROOT / "configs").rglob("*.py")})
}

setup(
    name="local2global",
    version="0.1.0",
    description="Local2Global query alignment for video instance segmentation",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_dir={"": "projects", **CONFIGS},
    packages=[*find_packages(where="projects"), *CONFIGS],
    package_data={"local2global": ["py.typed", "app/report/templates/*", "app/serve/templates/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "numpy",
        "scipy",
        "omegaconf>=2.3,<2.4",
        "hydra-core>=1.3",
        "PyYAML",
        "orjson",
        "fvcore",
        "pycocotools",
        "av",
        "Pillow",
        "rich",
        "typer",
        "tensorboard",
        "safetensors",
        "Jinja2",
        "contourpy",
    ],
    extras_require={
        "swin": ["transformers>=5"],
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "hub": ["huggingface_hub>=1"],
        "supervision": ["supervision"],
        "metrics": ["trackeval"],
        "serve": ["fastapi", "uvicorn", "websockets", "prometheus_client"],
        "cluster": ["submitit", "ray>=2.40", "fsspec"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "test": [
            "pytest",
            "hypothesis",
            "submitit",
            "fastapi",
            "httpx",
            "huggingface_hub>=1",
            "prometheus_client",
            "ray>=2.40",
            "transformers>=5",
            "uvicorn",
            "websockets",
            "playwright",
            "axe-playwright-python",
        ],
        "dev": ["pytest", "ruff", "mypy", "pre-commit"],
    },
    entry_points={"console_scripts": ["l2g = local2global.app.cli:main"]},
)

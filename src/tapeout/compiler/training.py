"""Training on the chip: forward, backward and the optimiser as one program.

Parameters and the optimiser's state lie in HBM from step to step; the host gives a batch and, each
time, the numbers that a schedule changes. Master weights are float32; how many bf16 passes products
take is PyTorch's setting (`torch.set_float32_matmul_precision("medium")` is one).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import export

from tapeout.chip import Chip

from .artifact import written_whole
from .backend import DEFAULT_CHIP, DEFAULT_TARGET, device
from .executable import Executable, build
from .operators import decompositions
from .operators.rounding import round_stochastically
from .trace import lower_graph

Tensors = list[torch.Tensor]


class UnsupportedOptimizer(ValueError):
    """An optimiser, or an option of one, that has no form on the chip."""


class _AdamW:
    """Decoupled weight decay (`torch.optim.AdamW`), or none but in the gradient (`Adam`)."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.decoupled = isinstance(optimizer, torch.optim.AdamW)
        _refuse(optimizer, "amsgrad", "maximize", "differentiable")

    def scalars(self, group: dict[str, Any], step: int) -> list[float]:
        """Learning rate, and the corrections of both averages."""
        one, two = group["betas"]
        return [float(group["lr"]), 1 - one**step, (1 - two**step) ** 0.5]

    def update(
        self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor, state: Tensors,
        scalars: torch.Tensor,
    ) -> tuple[torch.Tensor, Tensors]:  # fmt: skip
        lr, first, second = scalars.unbind()
        one, two = group["betas"]
        decay = group["weight_decay"]
        if decay and self.decoupled:
            p = p * (1 - lr * decay)
        elif decay:
            g = g + decay * p
        average = state[0] * one + g * (1 - one)
        square = state[1] * two + g * g * (1 - two)
        denominator = square.sqrt() / second + group["eps"]
        return p - (lr / first) * average / denominator, [average, square]


class _Sgd:
    """`torch.optim.SGD`: momentum, Nesterov's too, weight decay in the gradient."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        _refuse(optimizer, "maximize", "differentiable", "dampening")
        self.slots = tuple(
            ["momentum_buffer"] if any(g["momentum"] for g in optimizer.param_groups) else []
        )

    def scalars(self, group: dict[str, Any], step: int) -> list[float]:
        return [float(group["lr"]), 0.0, 0.0]

    def update(
        self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor, state: Tensors,
        scalars: torch.Tensor,
    ) -> tuple[torch.Tensor, Tensors]:  # fmt: skip
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        if self.slots:  # from zero, the first step leaves the gradient itself
            momentum = state[0] * group["momentum"] + g
            state = [momentum]
            g = g + group["momentum"] * momentum if group["nesterov"] else momentum
        return p - scalars[0] * g, state


def _refuse(optimizer: torch.optim.Optimizer, *options: str) -> None:
    for group in optimizer.param_groups:
        for name in options:
            if group.get(name):
                raise UnsupportedOptimizer(
                    f"{type(optimizer).__name__}({name}={group[name]}) has no form on the chip: "
                    f"leave {name} out"
                )


def _rule(optimizer: torch.optim.Optimizer) -> _AdamW | _Sgd:
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return _AdamW(optimizer)
    if isinstance(optimizer, torch.optim.SGD):
        return _Sgd(optimizer)
    raise UnsupportedOptimizer(
        f"{type(optimizer).__name__} has no form on the chip: take AdamW, Adam or SGD"
    )


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        return self.loss(self.model, *batch)


class TrainingStep:
    """One step of training as a program; calling it takes a batch and gives the loss.

    Args:
        model: float32, in train mode as a rule. Parameters in bfloat16 have no float32 masters:
            they and the optimiser's state are updated in float32 and rounded to bfloat16.
        loss: (model, *batch) -> a loss without dimensions.
        batch: an example; every batch has its shapes and types.
        optimizer: AdamW, Adam or SGD over the model's parameters; its state so far is taken along.
            Its `param_groups` are read at every step, so learning rate schedulers work.
        clip_norm: gradients are scaled so that their norm is at most this.
        stochastic_rounding: what is rounded to bfloat16 goes up or down at random, so that the
            mean is right (`operators.rounding`); `torch.manual_seed` decides.
        chip, target: as for `torch.compile`.

    Raises: UnsupportedOptimizer, UnsupportedGraph, ChipTooSmall; ValueError for stochastic
        rounding without a parameter in bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        batch: Sequence[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        stochastic_rounding: bool = False,
        chip: str | Chip = DEFAULT_CHIP,
        target: str = DEFAULT_TARGET,
    ) -> None:
        self.model, self.optimizer, self.clip_norm = model, optimizer, clip_norm
        self.stochastic_rounding = stochastic_rounding
        self.device = device(chip, target)
        self.rule = _rule(optimizer)
        self.wrapped = _Loss(model, loss)
        self.steps = 0
        trained = {id(p): g for g, group in enumerate(optimizer.param_groups)
                   for p in group["params"]}  # fmt: skip
        self.names = [n for n, p in self.wrapped.named_parameters() if id(p) in trained]
        parameters = dict(self.wrapped.named_parameters())
        self.groups = [trained[id(parameters[n])] for n in self.names]
        if stochastic_rounding and all(
            parameters[n].dtype != torch.bfloat16 for n in self.names
        ):  # fmt: skip
            raise ValueError(
                "stochastic_rounding is for parameters in bfloat16, and the model has none: take "
                "model.bfloat16(), or leave the option out"
            )
        self.fixed = {n: p for n, p in parameters.items() if id(p) not in trained}
        self.fixed |= dict(self.wrapped.named_buffers())
        self.executable = self._compile([t.detach() for t in batch])
        self._load_state()

    # --- compilation ------------------------------------------------------------------------------

    def _inputs(self, batch: Tensors) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        """(parameters, state, fixed tensors and buffers, scalars and batch)."""
        parameters = dict(self.wrapped.named_parameters())
        own = [parameters[n].detach() for n in self.names]
        state = [torch.zeros_like(p) for p in own for _ in self.rule.slots]
        scalars = torch.zeros(len(self.optimizer.param_groups), 3)
        return own, state, [t.detach() for t in self.fixed.values()], [scalars, *batch]

    def _compile(self, batch: Tensors) -> Executable:
        from torch.func import functional_call, functionalize, grad_and_value
        from torch.fx.experimental.proxy_tensor import make_fx

        parts = self._inputs(batch)
        traced = export(self.wrapped, tuple(batch), strict=False).module()
        sizes = [len(p) for p in parts]
        slots = len(self.rule.slots)
        groups = self.optimizer.param_groups

        def step(*tensors: torch.Tensor) -> Tensors:
            given = list(tensors)
            own, state, fixed, rest = (
                [given.pop(0) for _ in range(size)] for size in sizes
            )  # fmt: skip
            scalars, *inputs = rest

            def value(*trained: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
                held = dict(zip(self.fixed, [f.clone() for f in fixed], strict=True))
                named = {**dict(zip(self.names, trained, strict=True)), **held}
                loss = functional_call(traced, named, tuple(inputs))
                return loss, list(held.values())

            argnums = tuple(range(len(own)))
            gradients, (loss, held) = grad_and_value(value, argnums, has_aux=True)(*own)
            if self.clip_norm is not None:
                norm = sum((g * g).sum() for g in gradients) ** 0.5
                scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
                gradients = tuple(g * scale for g in gradients)
            news: Tensors = []
            states: Tensors = []
            for i, (p, g, group) in enumerate(zip(own, gradients, self.groups, strict=True)):
                old = state[i * slots : (i + 1) * slots]
                wide = [t.float() for t in (p, g, *old)]
                new, changed = self.rule.update(
                    groups[group], wide[0], wide[1], wide[2:], scalars[group]
                )
                new, *changed = self._stored([new, *changed], p.dtype)
                news.append(new)
                states += changed
            return [loss, *news, *states, *held]

        flat = [t for part in parts for t in part]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            graph = make_fx(
                functionalize(step), decomposition_table=decompositions(), tracing_mode="fake"
            )(*flat)
        graph.graph.eliminate_dead_code()
        lowered = lower_graph(graph)
        inputs, outputs = lowered.inputs, lowered.outputs
        resident = sum(sizes[:3])
        updates = [
            (b, v) for b, v in zip(inputs[:resident], outputs[1:], strict=True) if v is not b
        ]
        return build(self.device.chip, inputs, outputs[:1], seeds=lowered.seeds, updates=updates)

    def _stored(self, news: Tensors, dtype: torch.dtype) -> Tensors:
        """What an update gives, float32, as it lies in HBM."""
        if self.stochastic_rounding and dtype == torch.bfloat16:
            return round_stochastically(news)
        return [t.to(dtype) for t in news]

    # --- state ------------------------------------------------------------------------------------

    def _load_state(self) -> None:
        """Parameters, and what the optimiser has of them, to the chip."""
        own, state, fixed, _ = self._inputs([])
        parameters = dict(self.wrapped.named_parameters())
        for i, name in enumerate(self.names):
            known = self.optimizer.state.get(parameters[name], {})
            for j, slot in enumerate(self.rule.slots):
                if known.get(slot) is not None:
                    state[i * len(self.rule.slots) + j] = known[slot]
            if "step" in known:
                self.steps = int(known["step"])
        self.executable.bind(self.device.target)
        for number, tensor in enumerate((*own, *state, *fixed)):
            self.executable.write(number, tensor)

    def __call__(self, *batch: torch.Tensor) -> torch.Tensor:
        """Trains on a batch; the loss before the step."""
        self.steps += 1
        groups = self.optimizer.param_groups
        scalars = torch.tensor([self.rule.scalars(g, self.steps) for g in groups])
        resident = len(self.executable.inputs) - 1 - len(batch)
        inputs = [*[None] * resident, scalars, *[t.detach() for t in batch]]
        (loss,) = self.device.run(self.executable, inputs)
        return loss

    def timing(self) -> Any:
        """How long a step takes, without computing values: a `sim.Result`; `sim` only."""
        return self.executable.timing(self.device.target)

    def pull(self) -> None:
        """Copies parameters, buffers and the optimiser's state into the model and optimiser."""
        parameters = dict(self.wrapped.named_parameters())
        count, slots = len(self.names), self.rule.slots
        with torch.no_grad():
            for i, name in enumerate(self.names):
                p = parameters[name]
                p.copy_(self.executable.read(i))
                for j, slot in enumerate(slots):
                    at = count + i * len(slots) + j
                    self.optimizer.state[p][slot] = self.executable.read(at)
                if "exp_avg" in slots:
                    self.optimizer.state[p]["step"] = torch.tensor(float(self.steps))
            for i, tensor in enumerate(self.fixed.values()):
                if not isinstance(tensor, nn.Parameter):
                    tensor.copy_(self.executable.read(count * (1 + len(slots)) + i))

    def save(self, path: Path) -> None:
        """The model's state as safetensors, whole or not at all; PyTorch reads it."""
        from safetensors.torch import save_file

        self.pull()
        with written_whole(path) as scratch:
            save_file({n: t.contiguous() for n, t in self.model.state_dict().items()}, scratch)

"""Regional compilation: `torch.compile` of every decoder layer, and of those of the vision encoder.

Parameters are inputs of a graph, so layers that are alike share one: a model of 32 layers compiles one for those that
train and one for those that don't. A layer's forward method is compiled, its hooks are not: those of FSDP2, DeepSpeed
and transformers' recorders run around the graph.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from striate.models.interventions.patched_forward import without_checkpointing
from striate.models.structure.anatomy import decoder_layers, find_anatomy, unwrap
from striate.models.structure.vision_stack import encoder_layers
from striate.models.visual_token_skipping.skipped_layer import skipping_form
from striate.training.compile.equivalence_check import difference
from striate.training.compile.lora_dropout import draw_keys, keyed_dropout, keyed_dropouts

# More kinds of decoder layers than this and compiling them takes longer than most trainings.
MOST_KINDS = 12
# The same of a stack of vision layers, which are a small part of a step: each kind takes several seconds.
MOST_VISION_KINDS = 4
# Graphs of one function: kinds of layers, times forms of batches, times with and without gradients.
_MOST_GRAPHS = 64
# Hooks by which transformers notes attention weights where they are asked for, which training does not do.
_RECORDERS = "transformers.utils.output_capturing"
# What DeepSpeed notes on each module: numbers of its own, and counts.
_DEEPSPEED = ("ds_", "applied_pre_backward_ref_cnt")
Notify = Callable[[str], None]
Signature = tuple[Any, ...]


class CompiledLayers:
    """The compiled layers of one model.

    Attributes:
        paused: whether layers run without the compiler for the moment, such as while a proof is made.
        compile_seconds: what compiling and comparing took.
        recomputed: how many layers keep their input alone.
    """

    def __init__(
        self, notify: Notify, backend: Any, options: Mapping[str, Any] | None, lengths_vary: bool = False
    ) -> None:
        """Hold no layer yet."""
        self.lengths_vary = lengths_vary
        self.paused = False
        self.compile_seconds = 0.0
        self.recomputed = 0
        self._notify = notify
        self._backend, self._options = backend, {**(options or {}), "guard_filter_fn": _guards_kept}
        self._reasons: dict[Signature, str] = {}
        self._decoder_kinds = 0
        self._layers: list[_Layer] = []

    def add(self, layer: nn.Module, *, compiled: bool = True, recomputed: bool = False, decoder: bool = True) -> None:
        """Let `layer` run compiled, or have its activations recomputed in the backward pass, or both.

        Of a `decoder` the number of tokens may vary, and it runs as it is if `MOST_KINDS` of its kinds are compiled.
        """
        entry = _Layer(self, layer, compiled=compiled, recomputed=recomputed, decoder=decoder)
        self._layers.append(entry)
        self.recomputed += entry.recomputed

    def remove(self) -> None:
        """Let every layer run as it is again."""
        for entry in self._layers:
            entry.remove()

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Run the layers without the compiler for a while."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def recheck(self) -> None:
        """Compare layers again at their next call: what trains, or in which mode, has changed."""
        for entry in self._layers:
            entry.checked = False

    def describe(self) -> str:
        """Return in one line how many layers run compiled, and of how many kinds."""
        checked = [entry for entry in self._layers if entry.compiled and entry.checked]
        kinds = sum(not reason for reason in self._reasons.values())
        return (
            f"{sum(not entry.refused for entry in checked)} of {len(checked)} layers run compiled, as {kinds} kinds"
            f" ({self.compile_seconds:.0f} s to compile and compare)"
        )

    def reason_against(self, entry: _Layer, args: Any, kwargs: Mapping[str, Any]) -> str:
        """Return why a layer can't run compiled, or nothing: one layer of each kind is compared with itself."""
        signature = layer_signature(entry.layer)
        if signature not in self._reasons:
            begin = time.perf_counter()
            self._reasons[signature] = self._compared(entry, args, kwargs)
            self.compile_seconds += time.perf_counter() - begin
        return self._reasons[signature]

    def compile(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a layer's forward method, compiled at its first call."""
        # A dictionary each: torch.compile takes the filter out of it.
        compiled: Callable[..., Any] = torch.compile(forward, backend=self._backend, options=dict(self._options))
        return compiled

    def _compared(self, entry: _Layer, args: Any, kwargs: Mapping[str, Any]) -> str:
        """Return why a layer of a new kind can't run compiled, or nothing; tells that, or where its graph breaks."""
        name = type(entry.layer).__name__
        self._decoder_kinds += entry.decoder
        if self._decoder_kinds > MOST_KINDS:
            reason = f"there are more than {MOST_KINDS} kinds"
        else:
            before = Counter(counters["graph_break"])
            reason = difference(
                entry.layer,
                partial(entry.run, entry.first),
                partial(entry.run, entry.forward),
                args,
                kwargs,
            )
            breaks = Counter(counters["graph_break"]) - before
            if breaks and not reason:
                why = next(iter(breaks)).strip().splitlines()[0]
                self._notify(f"{name} is compiled in pieces: {why}")
        if reason:
            self._notify(f"{name} runs uncompiled: {reason}")
        return reason


class _Layer:
    """Stands in for a layer's forward method: its compiled form, once that has been compared."""

    def __init__(self, owner: CompiledLayers, layer: Any, *, compiled: bool, recomputed: bool, decoder: bool) -> None:
        self.owner, self.layer, self.compiled, self.decoder = owner, layer, compiled, decoder
        self.recomputed = recomputed or bool(getattr(layer, "gradient_checkpointing", False))
        self._before = {
            name: vars(layer)[name] for name in ("forward", "gradient_checkpointing") if name in vars(layer)
        }
        self._dropouts = keyed_dropouts(layer)
        # Families share the code that recomputes activations, and the compiler takes sizes of one code for alike.
        self.forward = without_checkpointing(layer)
        self.compiled_forward = owner.compile(self.forward) if compiled else self.forward
        self.checked, self.refused = not compiled, not compiled
        self._recorders: list[tuple[nn.Module, int, Any]] = []
        # Recomputation is decided here, outside the graph.
        layer.gradient_checkpointing = False
        layer.forward = self._forward

    def remove(self) -> None:
        """Put back what was there."""
        for name in ("forward", "gradient_checkpointing"):
            vars(self.layer).pop(name, None)
        vars(self.layer).update(self._before)
        for module, key, hook in self._recorders:
            module._forward_hooks[key] = hook

    def drop_recorders(self) -> None:
        """Take away hooks inside the layer that would break its graph in pieces and note nothing in training."""
        for module in self.layer.modules():
            hooks = module._forward_hooks.items() if module is not self.layer else ()
            self._recorders += [(module, key, hook) for key, hook in hooks if hook.__module__ == _RECORDERS]
        for module, key, _ in self._recorders:
            module._forward_hooks.pop(key, None)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        if not (self.checked or self.owner.paused):
            self.drop_recorders()
            self.refused = bool(self.owner.reason_against(self, args, kwargs))
            self.checked = True
            compiled = self.first
        else:
            compiled = self.compiled_forward
        forward = partial(self.run, self.forward if self.refused or self.owner.paused else compiled)
        if self.recomputed:
            forward = partial(checkpoint, forward, use_reentrant=False)
        return forward(*args, **kwargs)

    def first(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the compiled layer gives at its first call, where the compiler looks at what may vary."""
        if self.owner.lengths_vary and self.decoder:
            _mark_lengths(args, kwargs)
        return self.compiled_forward(*args, **kwargs)

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what `forward` gives, with new random keys of its dropouts."""
        if self._dropouts:
            draw_keys(self._dropouts, args[0] if args else kwargs["hidden_states"])
        return forward(*args, **kwargs)


@contextmanager
def compiled_layers(
    model: nn.Module,
    notify: Notify = lambda line: None,
    *,
    compiled: bool = True,
    recomputed: Collection[int] = (),
    vision: bool = True,
    lengths_vary: bool = False,
    backend: Any = "inductor",
    options: Mapping[str, Any] | None = None,
) -> Iterator[CompiledLayers]:
    """Let the decoder layers of `model`, and those of its vision encoder, run compiled for a while.

    Before a kind of layer is first used compiled, it is compared with itself uncompiled on the batch at hand. Without
    gradients every layer runs as it is.

    Args:
        model: plain, wrapped by PEFT, or prepared by Accelerate.
        notify: told in one line what stays uncompiled, and why.
        compiled: whether to compile at all; else layers are only recomputed.
        recomputed: which decoder layers keep their input alone, by index (activation checkpointing).
        vision: whether frozen vision encoders run at all; their features may be cached.
        lengths_vary: whether decoder layers are compiled for any number of tokens at once, not first for the first one.
        backend: of `torch.compile`.
        options: of Inductor.
    """
    layers = CompiledLayers(notify, backend, options, lengths_vary)
    with ExitStack() as stack:
        stack.callback(layers.remove)
        if compiled:
            stack.enter_context(keyed_dropout(model))
            limits = {"recompile_limit": _MOST_GRAPHS, "accumulated_recompile_limit": 16 * _MOST_GRAPHS}
            stack.enter_context(torch._dynamo.config.patch(limits))
        for index, layer in enumerate(decoder_layers(model)):
            if compiled or index in recomputed:
                layers.add(layer, compiled=compiled, recomputed=index in recomputed)
        for layer in _vision_layers(model, notify, frozen=vision) if compiled else ():
            layers.add(layer, decoder=False)
        yield layers


def _mark_lengths(args: Any, kwargs: Mapping[str, Any]) -> None:
    """Tell the compiler that the number of tokens varies from call to call."""
    length = (args[0] if args else kwargs["hidden_states"]).shape[1]
    for tensor in tree_leaves((args, dict(kwargs))):
        for axis in range(tensor.ndim) if isinstance(tensor, torch.Tensor) else ():
            if tensor.shape[axis] == length:
                torch._dynamo.maybe_mark_dynamic(tensor, axis)


def _vision_layers(model: nn.Module, notify: Notify, *, frozen: bool) -> list[Any]:
    """Return the layers of the model's vision encoders that are worth compiling; tells of those that are not."""
    found: dict[int, Any] = {}
    stacks: list[list[Any]] = [*map(list, frozen_encoders(model) if frozen else ()), trained_encoder(model)]
    for stack in stacks:
        kinds = len(set(map(layer_signature, stack)))
        if kinds <= MOST_VISION_KINDS:
            found |= {id(layer): layer for layer in stack}
        else:
            notify(f"{len(stack)} layers of the vision encoder run uncompiled: they are of {kinds} kinds")
    return list(found.values())


def trained_encoder(model: nn.Module) -> list[Any]:
    """Return the layers of the vision encoder if one of them trains, else none."""
    layers = encoder_layers(model)
    return layers if any(parameter.requires_grad for layer in layers for parameter in layer.parameters()) else []


def frozen_encoders(model: nn.Module) -> list[nn.ModuleList]:
    """Return the stacks of layers inside the vision encoder of which nothing trains."""
    modules = dict(unwrap(model).named_modules())
    stacks: list[nn.ModuleList] = []
    for name in find_anatomy(model).vision_names:
        for module in modules[name].modules():
            inner = any(module is part for stack in stacks for part in stack.modules())
            alike = isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(one) for one in module}) == 1
            if alike and not inner and not any(parameter.requires_grad for parameter in module.parameters()):
                stacks.append(module)
    return stacks


def layer_signature(layer: nn.Module) -> Signature:
    """Return what layers share that are of one kind: modules, settings, modes, shapes, what trains and what skips."""
    modules = tuple((name, type(module), module.training, _settings(module)) for name, module in layer.named_modules())
    tensors = tuple(
        (name, tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
    )
    return modules, tensors, skipping_form(layer)


def _guards_kept(guards: Sequence[Any]) -> list[bool]:
    """Return which conditions bind a graph: all but DeepSpeed's number of a weight, which is another in each layer."""
    return [not guard.name.endswith(".ds_id") for guard in guards]


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Return a module's plain attributes, other than its place in the stack."""
    places = ("idx", "layer_id", "layer_index", "layer_number")
    plain = (bool, int, float, str, type(None), torch.dtype)
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if not name.startswith(("_", *_DEEPSPEED))
        and isinstance(value, plain)
        and not isinstance(value, PretrainedConfig)
        and not name.endswith(places)
    )

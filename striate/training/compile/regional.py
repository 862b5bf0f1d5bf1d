"""Decoder layers that run compiled and, where memory asks for it, are run again in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch._dynamo
from torch import nn

from striate.models.structure.anatomy import decoder_layers, find_anatomy, unwrap
from striate.models.structure.families import INJECTED
from striate.training.compile.cuda_graphs.recorded import Recorder
from striate.training.compile.cuda_graphs.stack_graphs import StackGraphs
from striate.training.compile.last_layer_answers import AnswerFunction, has_known_form
from striate.training.compile.layer_form import Kind, kind_of, refusal
from striate.training.compile.layer_function import LayerFunction
from striate.training.compile.led_layer import LedLayer, Way

# More kinds than this and compiling them takes longer than most trainings.
MOST_KINDS = 12
Say = Callable[[str], None]


class FastLayers:
    """The layers of one model, each led through the compiled function of its kind.

    A layer whose kind changes (another part of it trains, another mode) is led through that kind's function from then
    on. Outside training (no gradients, a cache) every layer runs as it is.

    Attributes:
        functions: one a kind, in the order of their first use.
        compile_seconds: what compiling and checking took.
        plain: whether functions run without the compiler, such as while a proof is made.
        recomputed: how many layers keep their input alone.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        compiled: bool = True,
        recomputed: Collection[int] = (),
        lean: bool = False,
        answers_last: bool = False,
        say: Say = lambda line: None,
        backend: str = "inductor",
        options: Mapping[str, Any] | None = None,
        recorder: Recorder | None = None,
        merged: bool = True,
    ) -> None:
        """Take `layers`; nothing changes before `install`.

        Args:
            layers: of one stack, first to last.
            compiled: whether to compile at all; else layers are only recomputed.
            recomputed: which layers keep their input alone, by index.
            lean: whether frozen layers that run compiled run their attention again in the backward pass.
            answers_last: whether nothing but a norm and the LM head follows the last layer, so that it may leave out
                what `answer_places` does not name.
            say: told in one line what can't be compiled and why.
            backend: of `torch.compile`.
            options: of the backend.
            recorder: of compiled layers' kernels, for each form of batch; None launches them one by one.
            merged: whether linear layers that read the same tensor are one product.
        """
        self.functions: dict[tuple[Way, Kind], LayerFunction] = {}
        self.merged = merged
        self.compile_seconds = 0.0
        self.plain = False
        self._say, self._lean = say, lean
        self._backend, self._options = backend, options
        self.recomputed = len(recomputed)
        self.graphs = StackGraphs(recorder, say) if recorder and compiled else None
        # A layer with a forward method of its own is not its template: it runs by its own `.compile()`.
        own = ["forward" in vars(layer) for layer in layers]
        self._own: list[Any] = [
            layer for index, layer in enumerate(layers) if compiled and own[index] and index not in recomputed
        ]
        self._layers = [
            LedLayer(self, layer, compiled and not own[index], index in recomputed)
            for index, layer in enumerate(layers)
        ]
        for index, layer in enumerate(self._layers):
            layer.index = index
        if answers_last:
            self._layers[-1].can_answer = not own[-1] and has_known_form(self._layers[-1].layer)

    def install(self) -> None:
        """Lead the layers' calls through their functions."""
        for layer in self._layers:
            if layer.layer not in self._own:
                layer.install()
        options = dict(self._options) if self._options else None
        for own in self._own:
            own.compile(fullgraph=True, backend=self._backend, options=options)

    def remove(self) -> None:
        """Give the layers back as they were."""
        for layer in self._layers:
            if layer.layer not in self._own:
                layer.remove()
        for own in self._own:
            own._compiled_call_impl = None

    def keep_last_whole(self) -> None:
        """Let the last layer run at every position."""
        self._layers[-1].can_answer = False

    @contextlib.contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Run the functions without the compiler for a while: the same operations, one by one."""
        before, self.plain = self.plain, True
        try:
            yield
        finally:
            self.plain = before

    def describe(self) -> str:
        """Return in one line how many layers run compiled, and of how many kinds."""
        good = [function for function in self.functions.values() if function.checked and not function.refused]
        count = sum(layer.function in good for layer in self._layers) + len(self._own)
        return (
            f"{count} of {len(self._layers)} decoder layers run compiled, as {len(good)} kinds"
            f" ({self.compile_seconds:.0f} s to compile and check)"
            + (f"; {self.graphs.describe()}" if self.graphs and self.graphs.recorded else "")
        )

    def function_of(self, layer: nn.Module, way: Way) -> LayerFunction | None:
        """Return the function of the layer's kind for one way to run it, or None if it has none."""
        kind = (way, kind_of(layer))
        if kind not in self.functions:
            reason = refusal(layer)
            if not reason and len(self.functions) >= MOST_KINDS:
                reason = f"there are more than {MOST_KINDS} kinds"
            if reason:
                self.tell(layer, reason)
                return None
            answers = way
            if answers:
                made: LayerFunction = AnswerFunction(layer, self._backend, self._options)
            else:
                lean = self._lean and not any(parameter.requires_grad for parameter in layer.parameters())
                made = LayerFunction(layer, self._backend, self._options, lean)
            self.functions[kind] = made
        return self.functions[kind]

    def tell(self, layer: nn.Module, reason: str) -> None:
        """Say once that layers like `layer` run as Hugging Face has them."""
        self._say(f"{type(layer).__name__} runs uncompiled: {reason}")

    def tell_unmerged(self, layer: nn.Module, reason: str) -> None:
        """Say once that linear layers of layers like `layer` are computed one by one."""
        self._say(f"linear layers of {type(layer).__name__} that share their input run one by one: {reason}")


@contextlib.contextmanager
def fast_layers(
    model: nn.Module,
    *,
    compiled: bool,
    recomputed: Collection[int] = (),
    lean: bool = False,
    say: Say = lambda line: None,
    backend: str = "inductor",
    options: Mapping[str, Any] | None = None,
    recorder: Recorder | None = None,
    merged: bool = True,
) -> Iterator[FastLayers]:
    """Lead the decoder layers of `model`, and those of its frozen vision encoder, through compiled functions.

    See `FastLayers`; what is given is the decoder's. The encoder keeps nothing and so has nothing to recompute.
    """
    how: dict[str, Any] = {"compiled": compiled, "say": say, "backend": backend, "options": options}
    how["merged"] = merged
    last = reads_last_by_position(model)
    more: dict[str, Any] = {"recorder": recorder}
    layers = FastLayers(decoder_layers(model), recomputed=recomputed, lean=lean, answers_last=last, **more, **how)
    with contextlib.ExitStack() as stack:
        # Layers with a forward method of their own share its code, by which the compiler counts.
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=64))
        for one in (layers, *(FastLayers(encoder, **how) for encoder in frozen_encoders(model) if compiled)):
            one.install()
            stack.callback(one.remove)
        yield layers


def frozen_encoders(model: nn.Module) -> list[nn.ModuleList]:
    """Return the stacks of layers inside the vision encoder of which nothing trains."""
    core = unwrap(model)
    modules = dict(core.named_modules())
    found: list[nn.ModuleList] = []
    for name in find_anatomy(model).vision_names:
        for module in modules[name].modules():
            inner = any(module is part for stack in found for part in stack.modules())
            alike = isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(one) for one in module}) == 1
            if alike and not inner and not any(parameter.requires_grad for parameter in module.parameters()):
                found.append(module)
    return found


def reads_last_by_position(model: nn.Module) -> bool:
    """Return whether nothing adds to single positions behind the decoder layers, as injected vision features would."""
    vision = getattr(unwrap(model).config, "vision_config", None)
    injected = [field for name in INJECTED if (field := getattr(vision, name, None))]
    return all(len(field) < len(decoder_layers(model)) for field in injected)

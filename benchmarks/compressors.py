"""Foveate and its peers in compression, each used in the way that its own documentation shows.

Every quantiser takes a float network and images to calibrate on, and gives a program that runs;
every pruner takes a network and a share of its channels, and gives a smaller one.
"""

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from foveate.deploy.formats import save_openvino
from foveate.deploy.overflow import fitting_bits
from foveate.deploy.quantise import has_attention
from foveate.deploy.quiet import quiet
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store

LAYERS = {"Convolution", "FullyConnected", "MatMul"}
MOST = 4096

Call = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Program:
    """A network that runs.

    Attributes:
        call: float32 images (N, 3, H, W) to logits (N, K).
        bytes: of what is written to keep it.
        integer, layers: how many of its convolutions and products run in integers.
    """

    call: Call
    bytes: int
    integer: int = 0
    layers: int = 0


def named(package: str) -> str:
    """A peer with its version."""
    return f"{package} {version(package)}"


# ---------------------------------------------------------------- quantisers


def in_float(model: nn.Module, images: Tensor) -> Program:
    """The network as it is, in OpenVINO."""
    return _openvino(_converted(model, images))


def int8_by_foveate(model: nn.Module, images: Tensor) -> Program:
    """Ranges by mean squared error, biases corrected, stored in 8 bits; run by OpenVINO."""
    batches = images.split(128)
    simulate = Simulate(weight_bits=fitting_bits(), every_output=False)
    quantised, _ = simulate.apply(model, batches)
    quantised, _ = CorrectBias().apply(quantised, batches)
    quantised, _ = Store().apply(quantised)
    return _openvino(_converted(quantised.eval(), images))


def int8_by_nncf(model: nn.Module, images: Tensor, fixed: bool = True) -> Program:
    """`nncf.quantize` of the OpenVINO model; transformers are named as such.

    Args:
        model, images: as for the others.
        fixed: where sums of products of 8 bits overflow, its fix for that is on for all layers,
            and not as it comes, for the first.
    """
    import nncf

    program = _converted(model, images)
    kind = nncf.ModelType.TRANSFORMER if has_attention(program) else None
    fix = nncf.OverflowFix.ENABLE if fixed and fitting_bits() < 8 else None
    with quiet():
        return _openvino(
            nncf.quantize(
                program,
                nncf.Dataset([image[None].numpy() for image in images]),
                subset_size=len(images),
                model_type=kind,
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
            )
        )


def int8_by_torchao(model: nn.Module, images: Tensor, compiled: bool = True) -> Program:
    """Export quantisation for x86.

    Args:
        model, images: as for the others.
        compiled: lower it with torch.compile and frozen weights, which is what makes it fast.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    with quiet():
        dynamic = ({0: torch.export.Dim("batch", min=1, max=MOST)},)
        graph = torch.export.export(model, (images[:2],), dynamic_shapes=dynamic).module()
        quantiser = x86.X86InductorQuantizer()
        quantiser.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared: Any = prepare_pt2e(graph, quantiser)
        with torch.no_grad():
            for batch in images.split(128):
                prepared(batch)
        converted: Any = convert_pt2e(prepared)
    layers = [node for node in converted.graph.nodes if _is_layer(node)]
    integer = sum("dequantize" in str(node.args[0].target) for node in layers)
    run = converted
    if compiled:
        from torch._inductor import config

        config.freezing = True
        run = torch.compile(converted, dynamic=False)

    @torch.no_grad()
    def call(images: np.ndarray) -> np.ndarray:
        return run(torch.from_numpy(images)).numpy()

    return Program(call, _kept_by_export(converted, images), integer, len(layers))


def _is_layer(node: torch.fx.Node) -> bool:
    name = str(node.target)
    return node.op == "call_function" and any(
        name.startswith(f"aten.{kind}") for kind in ("conv", "linear", "matmul", "bmm")
    )


def _kept_by_export(converted: nn.Module, images: Tensor) -> int:
    file, few = io.BytesIO(), images[:2].clone()  # it writes its example, all that lies behind it
    with quiet():
        torch.export.save(torch.export.export(converted, (few,)), file)
    return len(file.getvalue())


def _converted(model: nn.Module, images: Tensor) -> Any:
    """A network as an OpenVINO model of any batch."""
    import openvino

    dynamic = ({0: torch.export.Dim("batch", min=1, max=MOST)},)
    with quiet(), torch.no_grad():
        program = torch.export.export(model.eval(), (images[:2],), dynamic_shapes=dynamic)
        return openvino.convert_model(program)


def _openvino(model: Any) -> Program:
    """A program of an OpenVINO model as it comes, on as many threads as PyTorch has.

    It is compiled for each size of batch: of any size, quantised InceptionNeXt gives wrong answers
    (OpenVINO 2026.4, AVX2).
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        save_openvino(model, Path(folder, "model.xml"))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}

    @cache
    def compiled(batch: int) -> Any:
        fixed, shape = model.clone(), model.input(0).get_partial_shape()
        shape[0] = batch
        fixed.reshape(shape)
        return openvino.compile_model(fixed, "CPU", threads)

    kinds = [node.get_rt_info() for node in compiled(1).get_runtime_model().get_ops()]
    layers = [
        info["runtimePrecision"].astype(str)
        for info in kinds
        if info["layerType"].astype(str) in LAYERS
    ]
    integer = sum(kind in ("u8", "i8") for kind in layers)
    return Program(lambda images: compiled(len(images))(images)[0], size, integer, len(layers))


# ---------------------------------------------------------------- pruners


def pruned_by_foveate(
    model: nn.Module, images: Tensor, share: float, only: tuple[str, ...] = ("*",)
) -> nn.Module:
    """The channels that weigh least, of every group that may lose some.

    Args:
        model: stays as it is.
        images: a batch that it takes.
        share: of the channels.
        only: patterns of groups.
    """
    return Narrow(share=share, only=only).apply(model, images)[0]


def pruned_by_torch_pruning(
    model: nn.Module,
    images: Tensor,
    share: float,
    kept: Sequence[nn.Module] = (),
    by_gradients: bool = False,
) -> nn.Module:
    """Its `BasePruner` set up as its example for timm's networks does.

    Heads are named, the classifier is left, attention that is one operation is unrolled, and
    timm's vision transformers get the forward that takes its width off what comes in.

    Args:
        model: is changed.
        images: a batch that it takes; one of them is enough.
        share: of the channels.
        kept: layers that keep their outputs, besides the last.
        by_gradients: what goes is chosen among all channels by weights times their gradients,
            which the model has; else by magnitudes, the same share of each group.
    """
    import torch_pruning

    of = torch_pruning.importance
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # pyright: ignore
        if type(module) is Attention:
            module.forward = MethodType(_open_attention, module)
        for projection in _projections(module):
            heads[projection] = module.num_heads  # pyright: ignore
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    classes = model(images[:1]).shape[1]
    last = [layer for layer in linear if layer.out_features == classes]
    with quiet():
        pruner = torch_pruning.pruner.BasePruner(
            model,
            images[:1],
            importance=of.GroupTaylorImportance()
            if by_gradients
            else of.GroupMagnitudeImportance(),
            global_pruning=by_gradients,
            pruning_ratio=share,
            num_heads=heads,
            ignored_layers=[*last, *kept],
        )
        pruner.step()
    for module in model.modules():
        for projection in _projections(module):
            module.num_heads = pruner.num_heads[projection]  # pyright: ignore
            module.head_dim = projection.out_features // (3 * module.num_heads)  # pyright: ignore
    return model


def _projections(module: nn.Module) -> list[Any]:
    """What makes queries, keys and values of a module that says how many heads it has."""
    names = ("qkv", "qkv_proj") if hasattr(module, "num_heads") else ()
    return [getattr(module, name) for name in names if hasattr(module, name)]


def _open_attention(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """timm's attention of vision transformers, with no width that was told it."""
    b, n, _c = x.shape
    qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = self.q_norm(q) * self.scale @ self.k_norm(k).transpose(-2, -1)
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
    return self.proj(self.norm(y))

"""Dynamic Perceiver: a network extracts features while a latent code beside it classifies, early
where that is enough.

Source: dyn_perceiver (arXiv 2306.11248, section 3). The authors' code is under MIT.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.backbones.base import ADAMW, Backbone, Explanation
from foveate.backbones.parts import require_stages
from foveate.catalog import implements
from foveate.ops.dyn_perceiver import LastStage, LatentStage, State, VectorNorm

HEADS = (1, 2, 4, 8)
Step = Callable[..., tuple[State, Tensor]]


class MergeHead(nn.Module):
    """Average pool, batch norm, a hidden layer if it has a width, dropout, linear.

    Args:
        dim, num_classes, drop: channels, outputs, rate of dropout.
        hidden: width of the hidden layer, or None for none.

    Shapes: (B, dim, H, W) to (B, num_classes).
    """

    def __init__(self, dim: int, num_classes: int, drop: float, hidden: int | None) -> None:
        super().__init__()
        self.norm = VectorNorm(dim)
        self.hidden = nn.Sequential(*self._before(dim, hidden, drop))
        self.fc = nn.Linear(hidden or dim, num_classes) if num_classes else nn.Identity()
        self.cnn: nn.Sequential | None = None
        self.drop, self.hidden_width = drop, hidden

    def add_exit(self, dim: int, num_classes: int) -> None:
        """Classify the network's own map of `dim` channels."""
        before = self._before(dim, self.hidden_width, self.drop) or [nn.Dropout(self.drop)]
        self.cnn = nn.Sequential(*before, nn.Linear(self.hidden_width or dim, num_classes))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.hidden(self.norm(x.mean((2, 3))))
        return x if pre_logits else self.fc(x)

    def _before(self, dim: int, hidden: int | None, drop: float) -> list[nn.Module]:
        return [nn.Linear(dim, hidden), nn.Hardswish(), nn.Dropout(drop)] if hidden else []


@implements("dyn_perceiver")
class DynamicPerceiver(Backbone):
    """Any network of stages with a latent code beside it, and four exits.

    The code classifies twice, then the network, then both together. Without
    classes there are no early exits, and nothing that they would hand on.

    Args:
        num_classes, in_chans: outputs and input channels.
        stem, bodies: of the network; the stem begins with `first`.
        dims: channels that each stage sees, and that the last one gives.
        strides: total ones of the stages.
        hidden: width of the hidden layer of the last two exits, or None for none.
        drop_rate: dropout of the last two exits.
        latents: vectors of the code at first; each stage halves them.
        thoughts: self-attention layers of each stage.
        widening: hidden width of the code's channel mixers over its channels.
        side: maps are pooled to that many places a side before the code looks at them.
        first: name of the first convolution.

    Attributes:
        exits: names of the modules that give each exit's logits, in order.
    """

    recipe: ClassVar[dict[str, Any]] = ADAMW | {"learning_rate": 1e-3}
    common_rules: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^latent$", "stages.0.latent"),
        *((rf"^(dwc|cross_att|self_att){i + 1}", rf"stages.{i}.\1") for i in range(4)),
        *((rf"^cnn_body_stage{i + 1}\.", f"stages.{i}.body.") for i in range(4)),
        *((rf"^cnn_body\.block{i + 1}\.", f"stages.{i}.body.") for i in range(4)),
        *((rf"^token_mixer\.{i}\.", f"stages.{i + 1}.mix.") for i in range(3)),
        *((rf"^token_expander\.{i}\.", f"stages.{i + 1}.expand.") for i in range(3)),
        (r"^cnn_stem\.", "stem."),
        (r"^last_cross_att_z2x\.", "stages.3.merge.attention."),
        (r"\.dwc_x2z\.", ".dwconv."),
        (r"\.cross_att_x2z\.", ".to_latent."),
        (r"\.cross_att_z2x\.", ".to_map."),
        (r"\.self_att\.", ".think."),
        (r"\.(cross|self)_attn\.(q_)?norm\.", ".norm."),
        (r"\.cross_attn\.kv_norm\.", ".norm_seen."),
        (r"\.(cross|self)_attn\.attention\.", "."),
        (r"\.relative_position_bias$", ".places"),
        (r"\.([qkv])_proj\.", r".\1."),
        (r"\.o_proj\.", ".proj."),
        (r"\.mlp\.layernorm\.", ".mlp.0."),
        (r"\.mlp\.fc1\.", ".mlp.1."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^early_classifier3\.", "stages.2.exit."),
        (r"^classifier_att\.", "stages.3.exit."),
        (r"^isc3\.", "stages.3.recall."),
        (r"^isc4\.", "stages.3.merge.recall."),
        (r"^classifier_cnn\.(weight|bias)$", r"head.cnn.1.\1"),
        (r"^classifier_cnn\.", "head.cnn."),
        (r"^classifier_merge\.0\.", "head.norm."),
        (r"^classifier_merge\.$", "head."),
    )

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        stem: nn.Sequential,
        bodies: list[nn.Module],
        dims: list[int],
        strides: list[int],
        *,
        hidden: int | None = None,
        drop_rate: float = 0.0,
        latents: int = 128,
        thoughts: tuple[int, ...] = (3, 3, 9, 3),
        widening: int = 4,
        side: int = 7,
        first: str = "stem.0.0",
    ) -> None:
        super().__init__()
        require_stages(thoughts=thoughts, strides=tuple(strides))
        self.stem = stem
        last = len(bodies) - 1
        stages: list[LatentStage] = []
        for i, body in enumerate(bodies):
            before = (latents // 2 ** (i - 1), dims[i - 1]) if i else None
            shape = (dims[i], latents // 2**i, before, thoughts[i], HEADS[i], widening, side, body)
            stages.append(LastStage(*shape, width=dims[-1]) if i == last else LatentStage(*shape))
        self.stages = nn.Sequential(*stages)
        self.early, self.late = last - 1, last
        self.map_width = dims[-1]
        width = dims[-1] + (2 if num_classes else 1) * dims[last]
        self.head = MergeHead(width, num_classes, drop_rate, hidden)
        if num_classes:
            self._add_exits(num_classes)
        self._finish(num_classes, in_chans, [*dims[1:-1], width], strides)
        for i, info in enumerate(self.feature_info):
            info["module"] = f"stages.{i}." + ("merge" if i == last else "body")
        said = [f"stages.{last}.recall.0", f"stages.{last}.merge.recall.0"]
        classifiers = [*self.exits[:2], *said, f"head.cnn.{3 if hidden else 1}", "head.fc"]
        self.default_cfg["classifier"] = tuple(classifiers) if num_classes else "head.fc"
        self.default_cfg["first_conv"] = first

    def _add_exits(self, num_classes: int) -> None:
        early: Any = self.stages[self.early]
        late: Any = self.stages[self.late]
        head: Any = self.head
        early.add_exit(num_classes, recalls=False)
        late.add_exit(num_classes, recalls=True)
        head.add_exit(self.map_width, num_classes)

    # ------------------------------------------------------------ exits

    @property
    def exits(self) -> tuple[str, ...]:
        """Names of the modules that give each exit's logits, in order."""
        if getattr(self.head, "cnn", None) is None:
            return (self.classifier_name,)
        inner = (f"stages.{i}.exit" for i in (self.early, self.late))
        return (*inner, "head.cnn", self.classifier_name)

    def steps(self) -> tuple[Step, ...]:
        """The way to each exit from the one before.

        Each takes the state that the one before gave, the first the images, and
        gives a state, whose tensors have an image a row, and logits.
        """
        if len(self.exits) == 1:
            return (lambda images: ((images,), self(images)),)
        return self._to_early, self._to_late, self._to_network, self._to_merged

    def _to_early(self, images: Tensor) -> tuple[State, Tensor]:
        self._check_size(images)
        state: Any = (self.stem(images),)
        for stage in self.stages[: self.early]:
            state = self._run(stage, state)
        state = self._stage(self.early).look(*state)
        return state, state[2]

    def _to_late(self, x: Tensor, z: Tensor, said: Tensor) -> tuple[State, Tensor]:
        x = self._run(self._stage(self.early).body, x)
        state = self._stage(self.late).look(x, z, said)
        return state, state[2]

    def _to_network(self, x: Tensor, z: Tensor, said: Tensor) -> tuple[State, Tensor]:
        x = self._run(self._stage(self.late).body, x)
        network: Any = self.head.get_submodule("cnn")
        return (x, z, said), network(x.mean((2, 3)))

    def _to_merged(self, x: Tensor, z: Tensor, said: Tensor) -> tuple[State, Tensor]:
        x = self._stage(self.late).merge(x, z, said)
        return (x,), self.head(x)

    def _stage(self, index: int) -> Any:
        return self.stages[index]

    # ------------------------------------------------------------ as a backbone

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last exit.

        In training all exits are computed, so that there can be a loss on each; they
        hang on by a zero, so that all of their parameters have a gradient.
        """
        if not self.training:
            return super().forward(x)
        state, said = (x,), []
        for step in self.steps() if len(self.exits) > 1 else ():
            state, logits = step(*state)
            said.append(logits)
        return said[-1] + 0 * sum(said[:-1]) if said else super().forward(x)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """As of any backbone: the maps without the code."""
        found = super().forward_intermediates(*args, **kwargs)
        if isinstance(found, list):
            return found
        last, maps = found
        return (last[0] if isinstance(last, tuple) else last), maps

    def _as_map(self, index: int, x: Any, images: Tensor) -> Tensor:
        return x[0] if isinstance(x, tuple) else x

    def explanation(self) -> Explanation:
        """The map that the last exit pools."""
        return Explanation(self.feature_info[-1]["module"])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers at all exits; 0 classes take off the last one alone, for features."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes and len(self.exits) > 1:
            reference = next(self.parameters())
            self._add_exits(num_classes)
            self.to(reference.device, reference.dtype).train(self.training)

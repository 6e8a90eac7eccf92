"""The grammar: a program draws its model as text, so what is printed is what was run."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from tests.sweep.drawn import MODULES, Draw, Shape, norms, ours
from tests.sweep.program import Program

__all__ = ["COMPILED", "WRAPPERS", "programs"]


class _Model:
    """Draws a model, keeping the shape that its activations have."""

    def __init__(self, draw: Draw, kinds: str) -> None:
        self.draw, self.kinds = draw, kinds
        self.definitions: list[str] = []
        self._shared: dict[tuple[int, int], str] = {}

    def norm(self, shape: Shape) -> str:
        """Draw a layer, now and then one that stands elsewhere already."""
        key = (shape[0], len(shape))
        how = self.draw(st.sampled_from(["new"] * 6 + ["shared", "residual"]))
        if how == "shared":
            if key not in self._shared:
                c, d = shape[0], max(len(shape) - 1, 1)
                package = self.draw(st.sampled_from(["nn", "nk"]))
                name = f"shared{len(self._shared)}"
                self.definitions.append(f"{name} = {package}.BatchNorm{d}d({c})")
                self._shared[key] = name
            return self._shared[key]
        if how == "residual" and "ours" in self.kinds:
            return f"Shortcut({ours(self.draw, shape)})"
        return norms(self.draw, shape, self.kinds)

    def body(self, shape: Shape, depth: int, most: int = 4) -> tuple[str, Shape]:
        """Draw a Sequential of blocks."""
        blocks: list[str] = []
        for _ in range(self.draw(st.integers(1, most))):
            block, shape = self.block(shape, depth)
            blocks.append(block)
        return f"nn.Sequential({', '.join(blocks)})", shape

    def same(self, shape: Shape, depth: int) -> str:
        """Draw a body that keeps the shape."""
        c, rank = shape[0], len(shape) - 1
        linear = f"nn.Conv{rank}d({c}, {c}, 1)" if rank else f"nn.Linear({c}, {c})"
        if depth and self.draw(st.booleans()):
            inner = self.same(shape, depth - 1)
            return f"nn.Sequential({inner}, {self.norm(shape)})"
        return f"nn.Sequential({linear}, {self.norm(shape)})"

    def block(self, shape: Shape, depth: int) -> tuple[str, Shape]:
        """Draw one block: a layer or a structure around others."""
        c, rank = shape[0], len(shape) - 1
        kinds = ["norm", "norm", "linear", "act", "dropout"]
        if depth:
            kinds += ["sequential", "residual", "twice", "levels", "siamese", "unused", "again"]
            kinds += ["branches"] if rank == 2 else []
        if rank == 1:
            kinds += ["swap", "attention"]
        if rank:
            kinds += ["pool", "pool to one", "flatten"]
        return self._block(self.draw(st.sampled_from(kinds)), shape, c, rank, depth)

    def _block(self, kind: str, shape: Shape, c: int, rank: int, depth: int) -> tuple[str, Shape]:
        draw = self.draw
        if kind == "linear":
            wide = draw(st.sampled_from([4, 3, 6]))
            if not rank:
                return f"nn.Linear({c}, {wide})", (wide,)
            bias = draw(st.sampled_from(["", ", bias=False"]))
            return f"nn.Conv{rank}d({c}, {wide}, 3, padding=1{bias})", (wide, *shape[1:])
        if kind == "act":
            return draw(st.sampled_from(MODULES)), shape
        if kind == "dropout":
            return "nn.Dropout()", shape
        if kind == "pool" and min(shape[1:]) > 1:
            return f"nn.AvgPool{rank}d(2)", (c, *(s // 2 for s in shape[1:]))
        if kind == "pool to one":
            return f"nn.AdaptiveAvgPool{rank}d(1)", (c, *(1 for _ in shape[1:]))
        if kind == "flatten" and math.prod(shape) <= 64:
            return "nn.Flatten()", (math.prod(shape),)
        if kind == "swap":
            return "Swap()", shape[::-1]
        if kind == "attention":
            return f"Attention({c})", shape
        if kind == "sequential":
            return self.body(shape, depth - 1, 3)
        if kind == "residual":
            return f"Residual({self.same(shape, depth - 1)})", shape
        if kind == "twice":
            return f"Twice({self.same(shape, depth - 1)})", shape
        if kind == "again":
            return f"Again({self.same(shape, depth - 1)})", shape
        if kind == "siamese":
            return f"Siamese({self.same(shape, depth - 1)})", shape
        if kind == "levels":
            return f"Levels({self.same(shape, depth - 1)})", (3 * c, *shape[1:])
        if kind == "unused":
            return f"Unused({self.same(shape, depth - 1)}, {self.norm(shape)})", shape
        if kind == "branches":
            pooled = f"nn.AdaptiveAvgPool2d(1), {self.same((c, 1, 1), depth - 1)}"
            first = self.same(shape, depth - 1)
            return f"Branches({first}, nn.Sequential({pooled}))", (2 * c, *shape[1:])
        after = draw(st.sampled_from([None, None, "nn.LeakyReLU(0.2)", *MODULES]))
        return ", ".join([self.norm(shape), *([after] if after else [])]), shape


CHANGES = [
    "model.eval()",
    "norm(model, {k}).eval()",
    "norm(model, {k}).momentum = 0",
    "norm(model, {k}).requires_grad_(False)",
    "_ = nk.freeze(norm(model, {k}))",
    "_ = nk.accelerate(model)",
    "_ = nk.convert(model, 'batch')",
    "_ = nk.convert(model, ('ghost', 2))",
    "tie(model)",
    "_ = norm(model, {k}).register_forward_hook(lambda module, args, y: 2 * y)",
    "_ = norm(model, {k}).register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))",
    "prune_weight(norm(model, {k}))",
    "bound_weight(norm(model, {k}))",
    "replace_forward(norm(model, {k}))",
    "to_inference(norm(model, {k}))",
    "half_norm(norm(model, {k}))",
    "model = copy.deepcopy(model)",
    "norm(model, {k}).requires_grad_(False)",
    "model = model.to(memory_format=torch.channels_last)",
    "step(model)",
    "reparametrize(model, parametrizations.weight_norm)",
    "_ = norm(model, {k}).to('meta')",
    "model = model.train()",
]
WRAPPERS = ["nn.DataParallel({m})", "AveragedModel({m})"]
COMPILED = "torch.compile({m}, backend='eager')"
"""Importing the compiler takes longer than the tests may: only the long run adds it."""


@st.composite
def programs(
    draw: Draw,
    kinds: str = "torch ours foreign",
    outputs: bool = True,
    deep: int = 2,
    values: tuple[str, ...] = ("normal", "unlike", "sorted", "constant", "offset", "nan"),
    small: int = 1,
    flat: bool = False,
) -> Program:
    """Draw a program.

    Args:
        kinds: whose layers.
        outputs: whether the model may return other things than a tensor.
        deep: how far structures nest.
        values: of the data.
        small: how many of about eight models are a single layer, or one and an activation.
        flat: inputs without space, whose outputs are scores of classes.
    """
    shapes = [(4, 4, 4), (4,), (3, 5), (2, 1, 1), (3, 1), (2, 2, 3, 2)]
    shape = (4,) if flat else draw(st.sampled_from(shapes))
    model = _Model(draw, kinds)
    kinds_of_model = ["", "", "", "", "", "", "tokens"] + ["alone", "chain"] * small
    start = draw(st.sampled_from(kinds_of_model))
    if start == "tokens":
        shape = (3, 5)
    text, out = "", shape
    if start in ("", "tokens"):
        text, out = model.body(shape, deep)
    if start == "tokens":
        text = f"nn.Sequential(nn.Embedding(5, 3), Swap(), {text})"
    elif start == "alone":
        text, out = norms(draw, shape, kinds), shape
    elif start == "chain":
        activation = draw(st.sampled_from(MODULES))
        text, out = f"nn.Sequential({norms(draw, shape, kinds)}, {activation})", shape
    changes = ["scramble(model)"]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        changes.append(draw(st.sampled_from(CHANGES)).format(k=draw(st.integers(0, 3))))
    changes = [c for c in changes if len(shape) == 3 or "channels_last" not in c]
    sizes = draw(
        st.sampled_from(
            [(6, 6, 6), (4, 4, 4, 3), (8,), (9, 9, 9, 9, 1), (2, 2, 2, 2), (1, 1, 1, 1), (5, 0, 3),
             (16,) * 6, (), (0,), (1,)]
        )
    )  # fmt: skip
    dtype = draw(st.sampled_from(["float64", "float32", "bfloat16", "float16"]))
    if dtype != "float32":
        changes.insert(1, f"model = model.to(torch.{dtype})")
    value = draw(st.sampled_from(values))
    if start == "tokens":
        shape, value = (5,), "tokens"
    inputs = f"data({sizes}, {shape}, {value!r}, torch.{dtype})"
    batches, whole = _batches(draw, sizes, model, text, outputs, out)
    if draw(st.integers(0, 9)) == 9:
        whole = draw(st.sampled_from(WRAPPERS)).format(m=whole)
    return Program(tuple(model.definitions), whole, tuple(changes), inputs, batches)


def _batches(
    draw: Draw, sizes: tuple[int, ...], model: _Model, text: str, outputs: bool, out: Shape
) -> tuple[str, str]:
    """Draw how batches hold the inputs, and a model around the body that takes them so."""
    how = draw(st.sampled_from(["plain", "pairs", "lists", "dicts", "loader", "stream", "variadic",
                                "holds", "scalars", "returns", "two", "loss"]))  # fmt: skip
    if how == "pairs":
        return "as_pairs(inputs)", text
    if how == "lists":
        return "as_lists(inputs)", text
    if how == "dicts":
        return "as_dicts(inputs)", f"Keyword({text})"
    if how == "scalars":
        return "as_scalars(inputs)", f"Keyword({text})"
    if how == "variadic":
        return "as_scalars(inputs)", f"Variadic({text})"
    if how == "loader" and sum(sizes) and len({*sizes[:-1]}) == 1 and sizes[-1] <= sizes[0]:
        return f"as_loader(inputs, {sizes[0]})", text
    if how == "stream":
        return "stream(as_pairs(inputs))", text
    if how == "two":
        return "as_two(inputs)", f"TwoInputs({text})"
    if how == "loss" and outputs and len(out) == 1 and out[0] > 1:
        return "as_dicts(inputs)", f"ReturnsLoss({text})"
    if how == "holds":
        return "inputs", f"Holds({text})"
    if how == "returns" and outputs:
        kind = draw(st.sampled_from(["tuple", "dict", "dataclass", "list"]))
        return "as_pairs(inputs)", f"Returns({text}, {kind!r})"
    return "inputs", text

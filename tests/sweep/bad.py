"""Bad input: every tool refuses it with an error of the package, and changes nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

import normkit as nk
from tests.sweep import pieces
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.program import Program
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import SkipTrial, attempt

__all__ = ["CALLS", "bad", "bad_cases"]

MODELS = ["None", "'model'", "[model]", "nn.BatchNorm1d", "{'a': model}", "model.parameters()",
          "model.state_dict()", "torch.jit.script(nn.BatchNorm1d(2))", "lambda x: x"]  # fmt: skip
TOOLS = {
    "recalibrate": "nk.recalibrate({}, inputs, progress=False)",
    "consistency": "nk.consistency({}, inputs, progress=False)",
    "freeze": "nk.freeze({})",
    "unfreeze": "nk.unfreeze({})",
    "accelerate": "nk.accelerate({})",
    "convert": "nk.convert({}, 'batch')",
    "scale_momentum": "nk.scale_momentum({}, 2)",
    "average_buffers": "nk.average_buffers({})",
    "batch_statistics": "nk.batch_statistics({}).__enter__()",
    "use_domain": "nk.use_domain({}, 0).__enter__()",
}
MEASURES = ("recalibrate", "consistency")
BATCHES = ["None", "3", "'data'", "torch.ones(4, 3)", "{'x': inputs}", "model", "[]", "[None]",
           "[[]]", "['a']", "[{}]", "[{'y': 3}]", "[()]", "[torch.tensor(3.0)]", "inputs[0].dtype",
           "object()", "list", "[torch.ones(4, 3, dtype=torch.int64)]", "iter([])",
           "(x for x in ())", "[x.to('meta') for x in inputs]"]  # fmt: skip
CALLS: list[tuple[str, str]] = [
    *((tool, call.format(model)) for tool, call in TOOLS.items() for model in MODELS),
    *((tool, f"nk.{tool}(model, {b}, progress=False)") for tool in MEASURES for b in BATCHES),
    *((tool, f"nk.{tool}(inputs, model, progress=False)") for tool in MEASURES),
    *((tool, f"nk.{tool}(model, inputs, samples={s}, progress=False)")
      for tool in MEASURES for s in ("0", "-1", "2.5", "True", "'3'", "float('nan')")),
    *((tool, f"nk.{tool}(model, inputs, forward={f}, progress=False)")
      for tool in MEASURES for f in ("3", "'f'", "inputs")),
    *(("recalibrate", f"nk.recalibrate(model, inputs, tolerance={t}, progress=False)")
      for t in ("0", "-1", "float('nan')", "float('inf')", "'1'", "True", "inputs")),
    *(("recalibrate", f"nk.recalibrate(model, inputs, process_group={g}, progress=False)")
      for g in ("3", "'world'", "True")),
    ("recalibrate", "nk.recalibrate(model, iter(inputs), layerwise=True, progress=False)"),
    *(("consistency", f"nk.consistency(model, inputs, loss={f}, progress=False)")
      for f in ("3", "'cross_entropy'")),
    *((tool, f"nk.{tool}(model, statistics=False, affine=False)")
      for tool in ("freeze", "unfreeze")),
    *(("convert", f"nk.convert(model, {to})")
      for to in ("'batchnorm'", "3", "None", "('ghost',)", "('ghost', 0)", "('ghost', 2.5)",
                 "('ghost', True)", "('domain', -1)", "('batch', 2)", "'ghost'", "('x', 1)",
                 "nn.BatchNorm2d", "('ghost', 2, 3)", "['sync', 2]", "()", "('ghost', None)")),
    *(("scale_momentum", f"nk.scale_momentum(model, {k})")
      for k in ("0", "-1", "1.5", "True", "'2'", "None", "inputs")),
    *(("use_domain", f"nk.use_domain(model, {k}).__enter__()")
      for k in ("-1", "99", "'0'", "1.5", "None", "True", "inputs", "torch.tensor([0, 1])")),
]  # fmt: skip


def bad_cases() -> st.SearchStrategy[Any]:
    """Draw a program and a bad call."""
    return st.tuples(programs(values=("normal",), outputs=False), st.sampled_from(CALLS))


def bad(program: Program, call: tuple[str, str]) -> str:
    """Hold a tool to its refusal."""
    tool, text = call
    if "Embedding" in program.model and "int64" in text:
        raise SkipTrial("tokens are its input")
    built = program.build()
    names: dict[str, Any] = {name: getattr(pieces, name) for name in pieces.__all__}
    names |= {"model": built.model, "inputs": built.inputs}
    before = snapshot(built.model)
    outcome = attempt(tool, lambda: eval(text, names))
    if changed := differences(before, snapshot(built.model)):
        raise Fault(tool, "bad input changed the model", f"{text}: {changed[:4]}")
    if outcome.error is None:
        raise Fault(tool, f"took {text}", repr(outcome.result)[:200])
    error = outcome.error
    of_the_model = any("inputs[0]" in text or b in text for b in ("[torch.tensor(3.0)]", "int64)]"))
    if not isinstance(error, nk.NormkitError) and not of_the_model:
        raise Fault(tool, f"did not refuse {text}", repr(outcome.error)[:200])
    return f"refused by {tool}"

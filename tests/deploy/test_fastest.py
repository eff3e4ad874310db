"""The fastest program computes what the network does, keeps the guard, and is remembered."""

from importlib import import_module

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveate import FoveateError, memory
from foveate.deploy import Search, fastest, load_fastest, overflow
from foveate.deploy.candidates import promising
from foveate.deploy.fallback import Switched, fallbacks
from foveate.deploy.formats import save_openvino, to_openvino, write_program
from foveate.deploy.quantise import (
    SMOOTHED,
    in_float,
    quantise,
    quantise_onnx,
    quantised_layers,
)
from foveate.deploy.runtimes import OnnxRuntime, OpenVinoRuntime
from foveate.deploy.soundness import is_sound
from foveate.measure import Timing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
programs = import_module("foveate.deploy.programs")


ORT = [("onnxruntime", "float32")]
"""A way that takes no time to find."""
ORT_INT8 = ("onnxruntime", "int8")
OTHERS = [way for way in promising() if way != ORT_INT8]
"""The ways that are looked among by default, the same with VNNI and without."""
VNNI, NO_VNNI = ["AVX2", "VNNI"], ["AVX2"]


class Small(nn.Module):
    """Two convolutions with norms, one of them beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.mix, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.norm(self.mix(x))).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_the_network_does(model, images, tmp_path):
    made = fastest(model, images, batch=2, guard=0, seconds=0.02)
    expected = model(images).detach().numpy()
    for batch in (1, 2, 5):
        given = made(images[:batch])
        assert given.shape == (batch, 5)
        assert np.abs(given - expected[:batch]).max() < 0.1 * np.abs(expected).max()
    assert any("one convolution" in change for _, change in made.coverage)
    precisions = {row.precision for row in made.table}
    assert {"float32", "int8"} <= precisions
    float32 = [row for row in made.table if row.precision == "float32"]
    assert all(row.error < 1e-4 for row in float32)
    able = [row for row in made.table if not row.why]
    assert made.chosen == made.table[0]
    assert all(row.score >= 100 for row in able)
    made.save(tmp_path / "saved")
    again = load_fastest(tmp_path / "saved")
    assert again.chosen == made.chosen
    assert np.array_equal(again(images[:2]), made(images[:2]))


def test_what_was_measured_is_remembered(model, images, cache, monkeypatch):
    first = fastest(model, images, ways=ORT, seconds=0.02)
    assert len(list(cache.rglob("*.json"))) == 1

    def never(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(Search, "_measured", never)
    second = fastest(model, images, ways=ORT)
    assert second.chosen == first.chosen
    assert np.array_equal(second(images[:1]), first(images[:1]))
    with pytest.raises(AssertionError, match="measured again"):
        fastest(model, images, ways=ORT, again=True)
    with torch.no_grad():
        other = Small()
    with pytest.raises(AssertionError, match="measured again"):
        fastest(other.eval(), images, ways=ORT)
    with pytest.raises(AssertionError, match="measured again"):
        fastest(model, images, ways=ORT, targets=np.zeros(24, np.int64))
    with pytest.raises(AssertionError, match="measured again"):
        fastest(model, images, ways=ORT, score=lambda logits: 100.0)


def test_who_judges_decides(model, images):
    """A judge whom only exact logits please gets no INT8."""
    expected = model(images).detach().numpy()

    def strict(logits):
        return 100.0 if np.allclose(logits, expected, atol=1e-4) else 0.0

    made = fastest(model, images, score=strict, seconds=0.02)
    assert made.chosen.precision == "float32"
    assert all(row.why for row in made.table if row.precision == "bfloat16")


def test_python_that_cannot_be_followed_is_deployed_as_it_comes(model, images, monkeypatch):
    def refuse(*args, **kwargs):
        raise FoveateError("the graph of Small cannot be captured")

    monkeypatch.setattr(programs, "lean", refuse)
    made = fastest(model, images, ways=ORT, seconds=0.02)
    assert {row.graph for row in made.table} == {"plain"}
    assert "cannot be captured" in made.coverage[0][1]


def test_programs_serve_every_batch_size(model, images, monkeypatch):
    """What is written, quantised and judged for one batch size is not for the next."""
    asked = []

    def counted(name):
        original = getattr(programs, name)

        def count(*args, **kwargs):
            asked.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(programs, name, count)

    for name in ("lean", "write_program", "quantise", "is_sound"):
        counted(name)
    search = Search(model, images, seconds=0.02)
    one, many = search.fastest(1), search.fastest(8)
    assert asked.count("lean") == 1
    assert asked.count("write_program") == asked.count("quantise") == 2
    assert asked.count("is_sound") == 2
    assert (one.batch, many.batch) == (1, 8)
    assert one.folder != many.folder
    assert {row.name for row in one.table} & {row.name for row in many.table}
    for made in (one, many):
        assert sorted(f.stem for f in made.folder.iterdir() if f.suffix != ".bin") == sorted(
            ["fastest", made.chosen.program.rpartition(".")[0]]
        )


class Curved(nn.Module):
    """A convolution and two layers that see one pixel, with activations between them."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 16, 3, 2), act(), nn.Conv2d(16, 32, 1), act(), nn.Conv2d(32, 16, 1)
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU, nn.ReLU])
def test_what_is_in_integers_may_take_hard_swish(images, act):
    torch.manual_seed(0)
    model = Curved(act).eval()
    ways = [("torch", "float32"), ("openvino", "float32"), ("openvino", "int8")]
    search = Search(model, images, ways=ways, seconds=0.02)
    made = search.fastest(2)
    hard = [row for row in made.table if row.graph == "hard"]
    assert {row.precision for row in hard} == (set() if act is nn.ReLU else {"int8"})
    expected = model(images).detach().numpy()
    for row in hard:
        given = search.programs.start(row, 2)(images[:2].numpy())
        assert 0 < np.abs(given - expected[:2]).max() < 0.1 * np.abs(expected).max()
        assert len(search.programs.hardened) == 2
        operations = onnx.load(search.programs.folder / "hard.onnx").graph.node
        assert [node.op_type for node in operations].count("HardSwish") == 2
    said = any("hard-swish" in change for _, change in made.coverage)
    assert said == (made.chosen.graph == "hard")


class Attending(nn.Module):
    """Tokens that look at one another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        looks = (tokens @ tokens.transpose(1, 2)).softmax(-1)
        return self.head((looks @ tokens).mean(1))


def test_attention_gets_tight_ranges_first_and_then_stays_in_float(images, monkeypatch):
    asked = []

    def noted(model, images, *, together, is_transformer):
        asked.append((together, is_transformer))
        return quantise(model, images, together=together, is_transformer=is_transformer)

    monkeypatch.setattr(programs, "quantise", noted)
    torch.manual_seed(0)
    model, ways = Attending().eval(), [("torch", "float32"), ("openvino", "int8")]
    expected = model(images).detach().numpy()

    def score(logits):
        return 100.0 if np.allclose(logits, expected, rtol=0, atol=1e-5) else 0.0

    table = Search(model, images, guard=0, score=score, ways=ways).fastest(2).table
    assert asked[:3] == [(16, False), (1, False), (16, True)]
    found = [(row.tight, row.gentle) for row in table if row.is_quantised and row.graph == "plain"]
    assert sorted(found) == [(False, False), (False, True), (True, False)]


def test_a_remembered_answer_needs_one_graph_alone(model, images, monkeypatch):
    first = fastest(model, images, ways=ORT, seconds=0.02)
    written = []
    original = programs.write_program

    def noted(network, images, path):
        written.append(path.stem)
        original(network, images, path)

    monkeypatch.setattr(programs, "write_program", noted)
    second = fastest(model, images, ways=ORT)
    assert written == [second.chosen.graph]
    assert second.coverage == first.coverage


def test_a_spent_budget_is_said(model, images, monkeypatch):
    monkeypatch.setattr(overflow, "instruction_sets", lambda: NO_VNNI)
    made = fastest(model, images, batch=2, seconds=0.02, budget=1e-6)
    untried = [row for row in made.table if "budget" in row.why]
    assert {row.runtime for row in untried if row.is_quantised} == {"openvino", "onnxruntime"}
    assert not made.chosen.is_quantised
    assert not made.chosen.why


def test_only_the_ways_asked_for_are_tried(model, images):
    ways = [("onnxruntime", "float32"), ("torch", "float32")]
    made = fastest(model, images, ways=ways, seconds=0.02)
    assert {row.way for row in made.table} == set(ways)
    torch_alone = fastest(model, images, ways=[("torch", "float32")], seconds=0.02)
    expected = model(images).detach().numpy()
    np.testing.assert_allclose(torch_alone(images), expected, atol=1e-4)
    with pytest.raises(FoveateError, match="runs from memory"):
        torch_alone.save("nowhere")


@pytest.mark.parametrize(("sets", "most"), [(NO_VNNI, 64), (VNNI, 127)])
def test_onnx_runtimes_integers_fit_the_processor(model, images, tmp_path, monkeypatch, sets, most):
    monkeypatch.setattr(overflow, "instruction_sets", lambda: sets)
    program, to = tmp_path / "small.onnx", tmp_path / "int8.onnx"
    write_program(model, images, program)
    quantise_onnx(program, images.numpy(), to)
    runtime = OnnxRuntime(to)
    assert len(runtime.in_integers()) == 3
    expected = model(images).detach().numpy()
    assert 0 < np.abs(runtime(images.numpy()) - expected).max() < 0.1 * np.abs(expected).max()
    held = [numpy_helper.to_array(tensor) for tensor in onnx.load(to).graph.initializer]
    assert (
        max(np.abs(x.astype(int)).max() for x in held if x.dtype == np.int8 and x.ndim > 1) == most
    )


def test_onnx_runtimes_integers_leave_attention_in_float(images, tmp_path):
    torch.manual_seed(0)
    net = VisionTransformer(16, 8, embed_dim=32, depth=1, num_heads=2, num_classes=5).eval()
    program, to = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    write_program(net, images, program)
    quantise_onnx(program, images.numpy(), to)
    assert len(OnnxRuntime(to).in_integers()) == 6
    graph = onnx.load(to).graph
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    sources = [{makers[name].op_type for name in node.input} for node in products]
    assert sum("DequantizeLinear" not in kinds for kinds in sources) == 2
    rounded = {
        makers[n.input[0]].op_type
        for n in graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] in makers
    }
    assert "Conv" in rounded
    assert not rounded & {"Gemm", "MatMul"}
    expected = net(images).detach().numpy()
    assert np.abs(OnnxRuntime(to)(images.numpy()) - expected).max() < 0.1 * np.abs(expected).max()


def test_onnx_runtime_computes_in_integers_where_there_is_no_vnni(
    model, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(overflow, "instruction_sets", lambda: VNNI)
    assert ORT_INT8 not in promising()
    monkeypatch.setattr(overflow, "instruction_sets", lambda: NO_VNNI)
    assert ORT_INT8 in promising()
    made = fastest(model, images, ways=[ORT_INT8], guard=100, seconds=0.02)
    assert made.chosen.way == ORT_INT8
    made.save(tmp_path / "saved")
    assert np.array_equal(load_fastest(tmp_path / "saved")(images[:3]), made(images[:3]))


def test_ways_are_those_that_there_are(model, images, monkeypatch):
    for ways, said in ([("openvino", "int3")], "openvino int3"), ([], "none at all"):
        with pytest.raises(FoveateError, match=f"{said} is no way.*choose from openvino float32"):
            Search(model, images, ways=ways)
    for room in ("candidates", "fastest"):
        module = import_module(f"foveate.deploy.{room}")
        monkeypatch.setattr(module, "computes_bfloat16", lambda: False)
    assert not any("bfloat16" in precision for _, precision in promising())
    ways = [("torch", "float32"), ("openvino", "bfloat16")]
    table = fastest(model, images, ways=ways, seconds=0.02).table
    assert {row.way for row in table if not row.why} == {ways[0]}
    assert [row.way for row in table if "bfloat16" in row.why] == [ways[1]]


class Namesake(nn.Module):
    """A buffer that is called as PyTorch's graph calls an operation on constants."""

    def __init__(self):
        super().__init__()
        self.register_buffer("unsqueeze", torch.ones(5))

    def forward(self, images):
        rows = torch.arange(images.shape[2]).unsqueeze(1)
        return (images * rows).mean((1, 2, 3))[:, None] + self.unsqueeze


def test_a_buffer_may_be_called_as_an_operation(images, tmp_path):
    net = Namesake().eval()
    write_program(net, images, tmp_path / "net.onnx")
    given = OnnxRuntime(tmp_path / "net.onnx")(images.numpy())
    np.testing.assert_allclose(given, net(images).numpy(), rtol=1e-5)


def test_threads_and_streams_change_no_result(model, images, tmp_path):
    write_program(model, images, tmp_path / "small.onnx")
    expected = model(images).detach().numpy()
    for batch, streams, threads in ((1, 1, 1), (4, 2, 0), (1, 3, 0)):
        runtime = OpenVinoRuntime(
            tmp_path / "small.onnx", batch=batch, streams=streams, threads=threads
        )
        for batch in (1, 4, 6, 7):
            given = runtime(images[:batch].numpy())
            np.testing.assert_allclose(given, expected[:batch], atol=1e-4)
            runtime(images[-batch:].numpy())
            np.testing.assert_allclose(given, expected[:batch], atol=1e-4)


@pytest.fixture(scope="module")
def quantised(model, images, tmp_path_factory):
    """The float OpenVINO model of the network, and its INT8 one."""
    path = tmp_path_factory.mktemp("quantised") / "small.onnx"
    write_program(model, images, path)
    program = to_openvino(path)
    return program, quantise(program, images.numpy())


def test_layers_in_float_have_their_own_weights_and_biases(quantised, images):
    program, int8 = quantised
    pixels = images.numpy()
    layers = quantised_layers(int8)
    assert len(layers) == 3
    edited = in_float(int8, program, layers)
    assert not quantised_layers(edited)
    expected, whole, given = (OpenVinoRuntime(m)(pixels) for m in (program, int8, edited))
    assert np.abs(given - expected).max() < 0.5 * np.abs(whole - expected).max()

    def held(model):
        constants = [op.get_data() for op in model.get_ops() if op.get_type_name() == "Constant"]
        floats = [x.ravel().tolist() for x in constants if x.dtype == np.float32 and x.size >= 5]
        return {tuple(values) for values in floats}

    def biases(model):
        return {values for values in held(model) if len(values) in (5, 8)}

    assert len(held(program)) == 2 * len(layers)
    assert held(program) <= held(edited)
    assert not held(program) - biases(program) & held(int8)
    assert not biases(program) <= biases(int8)
    assert set(quantised_layers(in_float(int8, program, layers[:1]))) == set(layers[1:])


def test_what_was_smoothed_is_taken_back_with_its_inputs(images, tmp_path):
    torch.manual_seed(0)
    net = VisionTransformer(16, 8, embed_dim=32, depth=1, num_heads=2, num_classes=5).eval()
    with torch.no_grad():
        net.blocks[0].norm2.weight[::8] *= 50
    write_program(net, images, tmp_path / "net.onnx")
    program = to_openvino(tmp_path / "net.onnx")
    int8 = quantise(program, images.numpy(), is_transformer=True)
    assert any(op.get_friendly_name().endswith(SMOOTHED) for op in int8.get_ops())
    edited = in_float(int8, program, quantised_layers(int8))
    expected, whole, given = (OpenVinoRuntime(m)(images.numpy()) for m in (program, int8, edited))
    assert np.abs(given - expected).max() < 0.3 * np.abs(whole - expected).max()


def test_switches_do_what_edits_do(quantised, images):
    program, int8 = quantised
    pixels = images.numpy()
    layers = quantised_layers(int8)
    switched = Switched(int8, layers, pixels.shape[1:])
    exact = OpenVinoRuntime(program)(pixels)
    whole = np.abs(switched(pixels, []) - OpenVinoRuntime(int8)(pixels)).max()
    errors = [np.abs(switched(pixels, layers[:n]) - exact).max() for n in (0, 3)]
    assert whole < 0.5 * errors[0]
    assert errors[1] < errors[0]


def test_fallback_stops_where_the_guard_is_kept(quantised, images):
    program, int8 = quantised
    pixels = images.numpy()
    expected = OpenVinoRuntime(program)(pixels)
    seen = []

    def keeps(logits):
        seen.append(float(np.abs(logits - expected).max()))
        return len(seen) > 1

    found = list(fallbacks(int8, pixels, expected, keeps, lambda: 60.0))
    assert [len(names) for names in found] == [2, 3]
    assert set(found[1]) == set(quantised_layers(int8))
    assert not list(fallbacks(int8, pixels, expected, keeps, lambda: 0.0))


def test_nothing_falls_back_where_nothing_is_quantised(quantised, images):
    program, _ = quantised
    pixels = images.numpy()
    expected = OpenVinoRuntime(program)(pixels)
    assert not list(fallbacks(program, pixels, expected, lambda logits: True, lambda: 60.0))


def times_are(monkeypatch, taken):
    """Let every look take a second, and races what a function of a candidate's name says."""

    def told(calls, **options):
        return {name: Timing(*3 * [taken(name)], 5) for name in calls}

    monkeypatch.setattr("foveate.deploy.timed.race", told)
    for room in ("timed", "fastest"):
        monkeypatch.setattr(import_module(f"foveate.deploy.{room}"), "pace", lambda call: 1.0)


def test_the_search_returns_layers_to_float(model, images, monkeypatch):
    """A guard that INT8 cannot keep, and timings by which INT8 wins: a mixed program is found.

    Single images to calibrate on cut off what layers in float bring back.
    """
    monkeypatch.setattr(programs, "CALIBRATION_BATCH", 1)
    expected = model(images).detach().numpy()

    def score(logits):
        return 100 - 1e3 * float(np.abs(logits - expected).max())

    options = {"score": score, "ways": OTHERS, "seconds": 0.02}
    whole = Search(model, images, guard=100, **options).fastest(2)
    worst = min(row.score for row in whole.table if row.way == ("openvino", "int8"))
    times_are(monkeypatch, lambda name: 1.0 + ("int8" not in name))
    guard = (100 - worst) / 2
    made = fastest(model, images, guard=guard, batch=2, **options)
    kept = [row for row in made.table if row.floats]
    assert kept
    assert made.chosen.is_quantised
    assert all(row.score >= 100 - guard for row in kept)


def test_a_program_that_crashes_is_turned_away(model, images, quantised, tmp_path, monkeypatch):
    save_openvino(quantised[1], tmp_path / "good.xml")
    assert is_sound(tmp_path / "good.xml", (3, 16, 16))
    (tmp_path / "bad.xml").write_text("no network")
    assert not is_sound(tmp_path / "bad.xml", (3, 16, 16))
    monkeypatch.setattr(programs, "is_sound", lambda *asked: False)
    made = fastest(model, images, ways=OTHERS, seconds=0.02)
    assert not made.chosen.is_quantised
    assert {row.why for row in made.table if row.is_quantised} == {
        "not safe: in a trial its process crashed"
    }


def test_loading_to_predict_keeps_memory(model, images, tmp_path):
    fastest(model, images, ways=[("openvino", "float32")], seconds=0.02).save(tmp_path / "saved")
    works = memory.keep()
    memory.restore()
    assert not memory.is_kept()
    try:
        load_fastest(tmp_path / "saved")
        assert memory.is_kept() == works
    finally:
        memory.restore()


def test_mistakes_are_said(model, images, tmp_path):
    with pytest.raises(FoveateError, match="two or more"):
        fastest(model, images[:1])
    with pytest.raises(FoveateError, match="guard"):
        fastest(model, images, guard=-1)
    with pytest.raises(FoveateError, match="batch 0"):
        fastest(model, images, batch=0)
    with pytest.raises(FoveateError, match="deploy the model again"):
        load_fastest(tmp_path)


@pytest.mark.parametrize(("int8", "wins"), [(1.0, "float32"), (0.9, "int8")])
def test_of_those_that_are_even_the_most_accurate_leads(model, images, monkeypatch, int8, wins):
    times_are(monkeypatch, lambda name: int8 if "int8" in name else 1.0)
    expected = model(images).detach().numpy()
    ways = [("openvino", "float32"), ("openvino", "int8")]
    made = fastest(
        model,
        images,
        score=lambda logits: 100 - float(np.abs(logits - expected).max()),
        guard=100,
        ways=ways,
        seconds=0.02,
    )
    assert made.chosen.precision == wins
    assert made.table[0] == made.chosen

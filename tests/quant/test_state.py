import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import voxelquant as vq
from voxelquant.errors import CalibrationError, QuantStateError
from voxelquant.quant.insert import quantization_of
from voxelquant.sparse import SparseConv3d


def features(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.features


def test_a_saved_model_comes_back_bit_for_bit(
    tmp_path, calibrated, make_network, frames_of, network_name
) -> None:
    qmodel = calibrated(network_name)
    path = tmp_path / "ptq.safetensors"
    vq.QuantState.of(qmodel, {"config": "tiny", "frames": 4}).save(path)
    assert [item.name for item in tmp_path.iterdir()] == ["ptq.safetensors"]
    state = vq.QuantState.load(path)
    assert state.metadata == {"config": "tiny", "frames": 4}
    assert state.recipe == quantization_of(qmodel).recipe
    assert state.plan == quantization_of(qmodel).plan
    fresh = make_network(network_name)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)  # nothing of the fresh model may survive
    restored = state.apply(fresh)
    frame = frames_of(network_name)[2]
    with torch.no_grad():
        assert torch.equal(features(restored(frame)), features(qmodel(frame)))
        assert torch.equal(features(vq.lower(restored)(frame)), features(vq.lower(qmodel)(frame)))
    again = vq.QuantState.of(restored)
    assert again.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(again.tensors[key], state.tensors[key]) for key in state.tensors)
    assert not hasattr(fresh, "voxelquant_quantization")


def test_a_model_has_one_file(tmp_path, calibrated) -> None:
    state = vq.QuantState.of(calibrated("residual"), {"config": "tiny"})
    files = [tmp_path / f"{index}.safetensors" for index in range(6)]
    for file in files:
        state.save(file)
    assert len({file.read_bytes() for file in files}) == 1


def test_weights_are_stored_as_fp16_steps(calibrated) -> None:
    state = vq.QuantState.of(calibrated("residual", "reference"))
    for node in state.plan.graph.nodes:
        if node.kind != "conv":
            continue
        weight = state.tensors[f"{node.path}.weight"]
        assert weight.dtype == torch.float16
        assert state.tensors[f"{node.path}.bias"].dtype == torch.float16
        if state.plan.precision[node.name] == "int8":
            scale = (state.weight_amax(node.path) / 127).view(-1, 1, 1, 1, 1)
            codes = torch.round(weight.float() / scale)
            assert codes.abs().max() == 127
            assert torch.equal((codes * scale).half(), weight)
        else:
            assert f"weight_amax/{node.path}" not in state.tensors
    assert state.tensors["head.0.weight"].dtype == torch.float32


def test_four_bit_weights_are_stored_by_the_same_law(make_network, frames_of) -> None:
    recipe = vq.Recipe(name="w4", weights={"bits": 4})
    qmodel = vq.quantize(make_network("residual"), recipe)
    vq.calibrate(qmodel, frames_of("residual"))
    state = vq.QuantState.of(qmodel)
    scale = (state.weight_amax("conv1.0.conv1") / 7).view(-1, 1, 1, 1, 1)
    codes = torch.round(state.tensors["conv1.0.conv1.weight"].float() / scale)
    assert codes.unique().tolist() == list(range(-7, 8))
    engine = vq.lower(qmodel)
    assert torch.equal(engine.conv1[0].conv1.weight_q.float(), codes)


def test_saving_names_the_channel_that_fp16_cannot_hold(calibrated, tmp_path) -> None:
    qmodel = calibrated("residual")
    quantizer = qmodel.conv1[1].conv2.weight_quantizer
    amax = quantizer.amax.clone()
    amax[5] = 3e-7
    with torch.no_grad():
        weight = qmodel.conv1[1].conv2.weight
        weight[5] *= 3e-7 / weight[5].abs().max()
    quantizer.set_amax(amax)
    with pytest.raises(
        QuantStateError, match=r"^conv1\.1\.conv2: got a weight in output channel 5"
    ):
        vq.QuantState.of(qmodel)
    with pytest.raises(
        QuantStateError, match=r"^conv1\.1\.conv2: got a weight in output channel 5"
    ):
        vq.lower(qmodel)


def test_saving_checks_what_it_writes(calibrated, tmp_path) -> None:
    state = vq.QuantState.of(calibrated("residual"))
    tensors = dict(state.tensors)
    weight = tensors["conv1.0.conv1.weight"].clone()
    weight[3, 1, 1, 1, 0] += state.weight_amax("conv1.0.conv1")[3] / 400  # between two codes
    tensors["conv1.0.conv1.weight"] = weight
    path = tmp_path / "bad.safetensors"
    with pytest.raises(QuantStateError, match=r"conv1\.0\.conv1: .* channel 3"):
        vq.QuantState(tensors, state.recipe, state.plan).save(path)
    tensors = {**state.tensors, "head.0.bias": torch.full((8,), torch.nan)}
    with pytest.raises(QuantStateError, match=r"NaN or infinite values in head\.0\.bias"):
        vq.QuantState(tensors, state.recipe, state.plan).save(path)
    with pytest.raises(QuantStateError, match="metadata that is not JSON"):
        vq.QuantState(state.tensors, state.recipe, state.plan, {"x": object()}).save(path)
    assert list(tmp_path.iterdir()) == []


def test_an_uncalibrated_model_has_no_state(make_network, make_frame) -> None:
    qmodel = vq.quantize(make_network("residual"), example=make_frame(0))
    with pytest.raises(CalibrationError, match="got a quantizer without a range"):
        vq.QuantState.of(qmodel)


def test_an_fp8_model_comes_back_bit_for_bit(
    tmp_path, calibrated, make_network, frames_of, network_name
) -> None:
    qmodel = calibrated(network_name, "fp8")
    path = tmp_path / "ptq.safetensors"
    vq.QuantState.of(qmodel).save(path)
    state = vq.QuantState.load(path)
    restored = state.apply(make_network(network_name))
    frame = frames_of(network_name)[2]
    with torch.no_grad():
        assert torch.equal(features(restored(frame)), features(qmodel(frame)))
        assert torch.equal(features(vq.lower(restored)(frame)), features(vq.lower(qmodel)(frame)))
    again = vq.QuantState.of(restored)
    assert all(torch.equal(again.tensors[key], state.tensors[key]) for key in state.tensors)
    for node in state.plan.quantized_convs:
        scale = (state.weight_amax(node.path) / 448).view(-1, 1, 1, 1, 1)
        codes = (state.tensors[f"{node.path}.weight"].float() / scale).to(torch.float8_e4m3fn)
        assert torch.equal((codes.float() * scale).half(), state.tensors[f"{node.path}.weight"])


@pytest.fixture
def saved(calibrated, tmp_path) -> Path:
    path = tmp_path / "ptq.safetensors"
    vq.QuantState.of(calibrated("plain")).save(path)
    return path


def rewrite(path: Path, edit) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    edit(tensors, header)
    safetensors.torch.save_file(tensors, path, metadata=header)


EDITS = {
    "foreign": (lambda t, h: h.clear(), "got a safetensors file that is no quantized state"),
    "future": (lambda t, h: h.update(version="9"), "version '9'"),
    "recipe": (lambda t, h: h.update(recipe='{"nam": 1}'), "damaged header .*'nam'"),
    "plan": (lambda t, h: h.update(plan="{}"), "damaged header"),
    "plan kind": (lambda t, h: h.update(plan="[]"), "damaged header"),
    "header": (lambda t, h: h.pop("plan"), "damaged header"),
    "json": (lambda t, h: h.update(plan="{"), "damaged header"),
    "missing amax": (lambda t, h: t.pop("weight_amax/squeeze"), "without weight_amax/squeeze"),
    "missing weight": (lambda t, h: t.pop("stem.weight"), r"without stem\.weight"),
    "zero amax": (lambda t, h: t["activation_amax/stem"].zero_(), "with a range of 0, need"),
    "nan": (lambda t, h: t["stem.bias"].fill_(torch.nan), r"NaN or infinite values in stem\.bias"),
}


@pytest.mark.parametrize("case", list(EDITS))
def test_damaged_files_are_named_in_one_line(saved, case) -> None:
    edit, message = EDITS[case]
    rewrite(saved, edit)
    with pytest.raises(QuantStateError, match=message) as caught:
        vq.QuantState.load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 300, -40])
def test_truncated_files_are_refused(saved, keep) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(QuantStateError, match="truncated or not safetensors"):
        vq.QuantState.load(saved)


def test_missing_files_are_refused(tmp_path) -> None:
    with pytest.raises(QuantStateError, match="no such file"):
        vq.QuantState.load(tmp_path / "none.safetensors")


def test_a_code_in_the_plan_that_is_unknown_is_refused(saved) -> None:
    def edit(tensors, header) -> None:
        plan = json.loads(header["plan"])
        plan["precision"]["squeeze"] = "int9"
        header["plan"] = json.dumps(plan)

    rewrite(saved, edit)
    with pytest.raises(QuantStateError, match="'int9' is no precision"):
        vq.QuantState.load(saved)


def test_models_that_do_not_fit_are_refused(calibrated, make_network) -> None:
    state = vq.QuantState.of(calibrated("plain"))
    with pytest.raises(
        QuantStateError, match=r"^stem: got a state with a layer that the model lacks"
    ):
        state.apply(make_network("pointwise"))
    strided = make_network("plain")
    strided.squeeze = SparseConv3d(16, 24, (3, 1, 1), (1, 1, 1))
    with pytest.raises(QuantStateError, match=r"^squeeze: got ConvGeometry"):
        state.apply(strided)
    wider = make_network("plain")
    wider.squeeze = SparseConv3d(16, 32, (3, 1, 1), (2, 1, 1))
    with pytest.raises(QuantStateError, match=r"^squeeze: got a weight \(32,"):
        state.apply(wider)
    more = make_network("plain")
    more.head = nn.Linear(3, 3)
    with pytest.raises(QuantStateError, match=r"^head\.bias: got a key that only the model has"):
        state.apply(more)
    with pytest.raises(QuantStateError, match=r"^stem: got a QuantSubMConv3d"):
        state.apply(calibrated("plain"))
    other = make_network("plain")
    other.stem_norm = nn.ReLU()
    with pytest.raises(QuantStateError, match="the state needs a BatchNorm1d"):
        state.apply(other)

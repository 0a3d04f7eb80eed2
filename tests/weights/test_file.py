# SPDX-License-Identifier: Apache-2.0
"""pydet's own files: what they hold, what breaks them, and how that is said."""

import argparse
import json
import math
import os
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pydet
from pydet.commands import train
from pydet.models._registry import override
from pydet.models.retinanet import RetinaNetConfig
from pydet.models.ssd import SSDConfig
from pydet.preprocessing import Preprocessing
from pydet.training.checkpoint import save_checkpoint
from pydet.weights import read_metadata
from pydet.weights._formats import family_of, trunk_of
from pydet.weights._state import read_state

SMALL = {"fpn_channels": 16, "head_convs": 1, "preprocessing": {"size": 64, "max_size": 96}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    names = ["red", "green", "blue"]
    return pydet.create_model(
        "retinanet_resnet18_fpn", 3, class_names=names, score_threshold=0.2, **SMALL
    )


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "model.safetensors"
    pydet.save(model, path, metrics={"ap50": 0.875})
    return path


def test_one_file_holds_everything(model, path):
    assert os.listdir(path.parent) == [path.name]
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["pydet"])
        assert set(file.keys()) == set(model.state_dict())
    assert about["model"] == "retinanet_resnet18_fpn"
    assert about["class_names"] == ["red", "green", "blue"]
    assert about["config"]["score_threshold"] == 0.2
    assert about["config"]["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert about["pydet_version"] == pydet.__version__
    assert about["metadata"] == {"metrics": {"ap50": 0.875}}
    assert read_metadata(path) == about


def test_overrides_change_the_config_and_parts_of_parts(model, path):
    loaded = pydet.load(path, score_threshold=0.4, preprocessing={"size": 32})
    assert loaded.config.score_threshold == 0.4
    assert loaded.config.preprocessing == Preprocessing(size=32, max_size=96)
    whole = pydet.load(path, preprocessing=Preprocessing(resize="none"))
    assert whole.preprocessing.resize == "none"
    with pytest.raises(ValueError, match="nearest is 'score_threshold'"):
        pydet.load(path, score_treshold=0.4)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"name": "fcos_resnet18_fpn"}, "name must be 'retinanet_resnet18_fpn', that of "),
        ({"norm_eps": 0.0}, "norm_eps must be left out for .*weights of pydet, got 0.0"),
        ({"keep_background": True}, "keep_background must be left out for "),
    ],
)
def test_arguments_that_mean_nothing_are_refused(path, option, words):
    with pytest.raises(ValueError, match=f"load: {words}"):
        pydet.load(path, **option)
    assert pydet.load(path, name="retinanet_resnet18_fpn").name == "retinanet_resnet18_fpn"


def test_other_number_of_classes_begins_anew(model, path):
    with pytest.warns(UserWarning, match=r"for 3 classes, the model for 5: head\.cls_logits"):
        loaded = pydet.load(path, num_classes=5)
    assert loaded.num_classes == 5
    assert loaded.class_names is None
    own, new = model.state_dict(), loaded.state_dict()
    different = [key for key in own if own[key].shape != new[key].shape]
    assert different == ["head.cls_logits.weight", "head.cls_logits.bias"]
    assert all(torch.equal(own[key], new[key]) for key in own if key not in different)


def test_channels_last_weights_are_saved(model, path):
    twin = pydet.load(path).to(memory_format=torch.channels_last)
    pydet.save(twin, path)
    for key, value in pydet.load(path).state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_failed_save_leaves_the_old_file(model, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="metadata must be what JSON can hold"):
        pydet.save(model, path, function=print)
    with pytest.raises(OSError, match="folder that exists"):
        pydet.save(model, path.parent / "none" / "model.safetensors")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("keep", [0, 5, 9, 100, 100_000, -1])
def test_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"load: .*model\.safetensors must .*damaged"):
        pydet.load(path)


@pytest.mark.parametrize("content", [b"not weights at all", b"\x80\x02}q\x00.", b"PK\x03\x04" * 9])
def test_other_kinds_of_file_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"load: .*model\.safetensors must"):
        pydet.load(path)


def test_files_of_no_weights_are_said_to_be_such(tmp_path):
    path = tmp_path / "photo.pth"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    with pytest.raises(ValueError, match=r"of another kind \(it begins with b'\\x89PNG"):
        pydet.load(path)


def test_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        pydet.load(tmp_path / "none.safetensors")


def test_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(ValueError, match="must hold tensors only") as refused:
        pydet.load(path)
    assert "mkdir" in str(refused.value)  # torch's text says which, in colours that are taken out
    assert "\x1b" not in str(refused.value)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="load:"):
        pydet.load(path)
    assert not (tmp_path / "ran").exists()


def rewrite(path, change):
    """Changes the JSON of a file and leaves its tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["pydet"])
    header["__metadata__"]["pydet"] = change(about)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: "{", "damaged"),
        (lambda about: json.dumps({**about, "format": 2}), "must have format 1, got 2"),
        (lambda about: json.dumps({**about, "model": "retinanet_resnet_fpn"}), "nearest is"),
        (lambda about: json.dumps({k: about[k] for k in ("format", "model")}), "num_classes"),
        (lambda about: json.dumps({**about, "num_classes": 7, "class_names": None}), "cls_logits"),
        (
            lambda about: json.dumps({**about, "config": {**about["config"], "head_convs": 2}}),
            r"missing: head\.cls_convs\.3\.weight",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_name(path, change, words):
    rewrite(path, change)
    with pytest.raises(ValueError, match=words):
        pydet.load(path)


def test_tensors_of_no_known_model_are_listed(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"got tensors named layer\.weight"):
        pydet.load(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="tensors by name"):
        pydet.load(path)


def test_arguments_of_a_script_may_stand_beside_the_weights(tmp_path):
    """As torchvision's references/detection/train.py saves them."""
    state, path = {"layer.weight": torch.ones(1)}, tmp_path / "model_3.pth"
    content = {"model": state, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path)
    assert read_state(path) == (state, {})


@pytest.mark.parametrize(
    "keys", [["model"], ["state_dict"], ["model_state_dict"], ["net"], ["checkpoint", "model"]]
)
def test_where_training_scripts_put_weights(tmp_path, keys):
    state, path = {"layer.weight": torch.ones(1)}, tmp_path / "checkpoint.pth"
    content = state
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    torch.save(content, path)
    if keys[0] == "checkpoint":
        with pytest.raises(ValueError, match=r"within one of model, .*; got 'checkpoint', 'epoch'"):
            read_state(path)
    else:
        assert read_state(path) == (state, {})


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "model.module.",
        "model.model.",
        "module.model._orig_mod.model.",
    ],
)
def test_names_of_wrapped_models(tmp_path, prefix):
    path = tmp_path / "wrapped.pth"
    torch.save({prefix + "layer.weight": torch.ones(1), prefix + "model": torch.ones(2)}, path)
    assert list(read_state(path)[0]) == ["layer.weight", "model"]


def test_checkpoint_of_a_training_is_said_to_be_one(model, tmp_path):
    state = {"identity": {}, "model": model.state_dict(), "position": 8, "average": None}
    save_checkpoint(tmp_path, state)
    with pytest.raises(ValueError, match=r"checkpoint of a training, .* best\.safetensors"):
        pydet.load(tmp_path / "last.ckpt")


# Not the detector of other tests, which is there if they run, too.
@pytest.mark.parametrize("name", [name for name in pydet.list_models() if name != "tiny"])
def test_state_without_settings_is_said_to_lack_them(name, tmp_path):
    with torch.device("meta"):
        state = pydet.create_model(name, 2).state_dict()
    assert family_of(state) is None and trunk_of(state) is None
    path = tmp_path / "state.pth"
    torch.save({key: torch.empty(0) for key in state}, path)
    with pytest.raises(ValueError, match=r"alone says none of its settings: .*load_state_dict"):
        pydet.load(path)


@pytest.mark.parametrize(
    "wrap", [lambda m: torch.compile(m, backend="eager"), torch.nn.DataParallel]
)
def test_wrapped_models_are_saved_without_the_wrapper(model, tmp_path, wrap):
    pydet.save(wrap(model), tmp_path / "model.safetensors")
    loaded = pydet.load(tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_what_is_no_detector_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="save: model must be a Detector, got Linear"):
        pydet.save(torch.nn.Linear(2, 2), tmp_path / "model.safetensors")


def test_unnamed_model_is_not_saved(model, tmp_path):
    unnamed = type(model)(model.config, 3)
    with pytest.raises(ValueError, match="built by create_model"):
        pydet.save(unnamed, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("fcos_resnet18_fpn", {"nms_iou_threshold": 60}, r"nms_iou_threshold must be in \[0, 1\]"),
        ("fcos_resnet18_fpn", {"score_threshold": "0,05"}, "score_threshold must be a number"),
        ("fcos_resnet18_fpn", {"focal_gamma": -0.5}, r"focal_gamma must be in \[0, 100\]"),
        ("retinanet_resnet18_fpn", {"max_detections": 1.5}, "max_detections must be an integer"),
        ("retinanet_resnet18_fpn", {"levels": 3}, "levels must be tuple"),
        ("retinanet_resnet18_fpn", {"head_convs": -1}, "head_convs must be at least 0"),
        ("retinanet_resnet18_fpn", {"preprocessing": 64}, "preprocessing must be Preprocessing"),
        ("retinanet_resnet18_fpn", {"preprocessing": {"mean": "abc"}}, "preprocessing.mean must"),
        ("retinanet_resnet18_fpn", {"norm_eps": math.nan}, "norm_eps must be in"),
        ("faster_rcnn_resnet18_fpn", {"fpn_channels": 0}, "fpn_channels must be at least 1, got 0"),
        ("ssd300_vgg16", {"nms_iou_threshold": True}, "nms_iou_threshold must be a number"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_learnt(name, option, words):
    with pytest.raises(ValueError, match=words):
        pydet.create_model(name, 2, **option)


def test_parts_of_a_config_change_field_by_field(model, path):
    ssd = pydet.create_model("ssd300_vgg16", 2, width=0.1, **{"preprocessing.size": [200, 300]})
    expected = replace(SSDConfig().preprocessing, size=(200, 300))
    assert ssd.preprocessing == expected
    # Of two changes of one field the later counts; the others stay.
    both = {"preprocessing": {"size": 32, "antialias": False}, "preprocessing.size": 48}
    assert override(model.config, both).preprocessing == Preprocessing(
        size=48, max_size=96, antialias=False
    )
    loaded = pydet.load(path, **{"preprocessing.size": 48})
    assert loaded.preprocessing == Preprocessing(size=48, max_size=96)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("size", "size is not one of its fields, .* the nearest is 'preprocessing.size'"),
        ("preprocessing.sise", "preprocessing.sise is not one of its fields, .* is 'size'"),
        ("levels.first", r"levels must be tuple.*, got \{'first': 3\}"),
    ],
)
def test_names_of_parts_are_suggested(option, words):
    with pytest.raises(ValueError, match=words):
        pydet.create_model("retinanet_resnet18_fpn", 2, **{option: 3})


def test_option_flags_reach_into_parts():
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    flags = ["retinanet_resnet18_fpn", "--option", "preprocessing.max-size=300"]
    options = train._config(parser.parse_args(flags)).model.options
    preprocessing = override(RetinaNetConfig(), options).preprocessing
    assert preprocessing == Preprocessing(max_size=300)


def test_numpy_counts_of_classes():
    assert pydet.create_model("ssd300_vgg16", np.int64(2), width=0.1).num_classes == 2
    for wrong in (True, 2.0, np.float64(2), "2", None, -1):
        with pytest.raises(ValueError, match="num_classes must be a positive int, got"):
            pydet.create_model("ssd300_vgg16", wrong)


def test_create_model_refuses_in_words():
    with pytest.raises(ValueError, match="class_names must be a sequence of names, got the string"):
        pydet.create_model("retinanet_resnet18_fpn", 2, class_names="ab")
    with pytest.raises(ValueError, match=r"nearest is 'retinanet_resnet18_fpn'"):
        pydet.create_model("retinanet_resnet19_fpn", 3)
    with pytest.raises(ValueError, match="num_classes must be a positive int, got 0"):
        pydet.create_model("retinanet_resnet18_fpn", 0)
    with pytest.raises(ValueError, match="class_names must be 3 names, got 2"):
        pydet.create_model("retinanet_resnet18_fpn", 3, class_names=["a", "b"])

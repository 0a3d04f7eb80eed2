# SPDX-License-Identifier: Apache-2.0
"""The commands train, eval and detect, from their arguments to their files."""

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pydet.cli import COMMANDS, main
from pydet.commands._common import load_detector
from pydet.data import open_dataset, write_synthetic_dataset
from pydet.inference import detect_files
from pydet.training import RunConfig, load_checkpoint
from tests.training import tiny_detector  # noqa: F401 - registers "tiny"

ROOT = Path(__file__).parents[1]
QUICK = ["--device", "cpu", "--threads", "1", "--no-tensorboard", "--no-progress",
         "--batch-size", "4"]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_dataset(
        tmp_path_factory.mktemp("drawn"), num_images=12, image_size=48, val_fraction=0.25,
        min_object_size=8, max_object_size=24,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "tiny"
    flags = ["--epochs", "2", "--learning-rate", "0.05"]
    assert (
        main(["train", "tiny", "--data", str(drawn), "--output", str(output), *flags, *QUICK]) == 0
    )
    return output


def test_train_takes_train_and_val_by_itself(trained, capsys):
    config = RunConfig.read(trained / "config.toml")
    assert (config.model.name, config.train.epochs, config.train.learning_rate) == ("tiny", 2, 0.05)
    state = load_checkpoint(trained / "last.ckpt")
    assert state["identity"]["images"] == 9
    assert state["config"] == config.to_dict()
    assert state["metrics"]["epoch"] == 2


@pytest.mark.parametrize(
    ("capability", "layout"),
    [("AVX512", torch.channels_last), ("AVX2", torch.contiguous_format)],
)
def test_a_detector_is_loaded_in_the_layout_of_the_machine(
    trained, monkeypatch, capability, layout
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    weights = str(trained / "last.safetensors")
    model = load_detector(argparse.Namespace(weights=weights, device="cpu"))
    kernels = [p for p in model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)


def test_resume_needs_no_setting_again(trained, drawn, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(trained, output)
    assert main(["train", "--output", str(output), "--resume", "--epochs", "3"]) == 0
    state = load_checkpoint(output / "last.ckpt")
    assert state["config"]["train"]["learning_rate"] == 0.05
    assert state["position"] >= 27
    assert main(["train", "tiny", "--data", str(drawn), "--output", str(output), *QUICK]) == 2
    assert "which holds a training" in capsys.readouterr().err


def test_a_file_given_to_go_on_must_agree_with_the_checkpoint(trained, tmp_path, capsys):
    output, file = tmp_path / "copy", tmp_path / "config.toml"
    shutil.copytree(trained, output)
    resume = ["train", "--output", str(output), "--resume", "--config", str(file)]
    file.write_text('[model]\nname = "tiny"\n[train]\nepochs = 2\nbatch_size = 4\n')
    assert main([*resume, "--print-config"]) == 0
    assert "learning_rate = 0.05\n" in capsys.readouterr().out  # the checkpoint's: not in the file
    file.write_text(
        '[model]\nname = "tiny"\nchannels = 4\n[train]\nepochs = 9\nlearning_rate = 1\n'
        "[augment]\ntransforms = []\n"
    )
    assert main([*resume, "--print-config"]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert f"--config must agree with {output / 'last.ckpt'}" in line
    for words in (
        "[model] channels = 4 where the checkpoint has none;",
        "[train] epochs = 9 where the checkpoint has 2;",
        "[train] learning_rate = 1.0 where the checkpoint has 0.05;",
        '[augment] transforms = [] where the checkpoint has [{ name = "random_horizontal_flip" }]',
    ):
        assert words in line
    flags = ["--option", "channels=8", "--epochs", "3", "--learning-rate", "0.5", "--no-augment"]
    assert main([*resume, *flags]) == 0
    settings = load_checkpoint(output / "last.ckpt")["config"]
    assert (settings["train"]["epochs"], settings["train"]["learning_rate"]) == (3, 0.5)
    assert (settings["train"]["batch_size"], settings["augment"]["transforms"]) == (4, [])


def test_a_file_names_the_folder_and_begins_where_there_is_no_checkpoint(
    trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.toml"
    file.write_text('[model]\nname = "tiny"\n[train]\nepochs = 9\n')
    resume = ["train", "--resume", "--config", str(file), "--print-config"]
    assert main(resume) == 0
    assert "epochs = 9\n" in capsys.readouterr().out
    shutil.copytree(trained, tmp_path / "runs" / "tiny")
    assert main(resume) == 2
    assert "epochs = 9 where the checkpoint has 2" in capsys.readouterr().err


def test_settings_of_another_pydet_are_mended_in_a_file(trained, tmp_path, capsys):
    file, checkpoint = tmp_path / "config.toml", tmp_path / "last.ckpt"
    state = load_checkpoint(trained / "last.ckpt")
    state["config"]["train"]["channels_last"] = True
    torch.save(state, checkpoint)
    resume = ["train", "--resume-from", str(checkpoint), "--print-config"]
    assert main(resume) == 2
    assert "unknown key 'channels_last'" in capsys.readouterr().err
    file.write_text('[model]\nname = "tiny"\n[train]\nepochs = 9\n')
    assert main([*resume, "--config", str(file)]) == 0
    assert "epochs = 9\n" in capsys.readouterr().out


def test_eval_prints_and_writes_all_measures(trained, drawn, tmp_path, capsys):
    weights = str(trained / "best.safetensors")
    arguments = ["--weights", weights, "--data", str(drawn), "--split", "val", "--device", "cpu",
                 "--output", str(tmp_path), "--no-progress", "--pictures", "2"]  # fmt: skip
    assert main(["eval", *arguments]) == 0
    assert [p.name for p in sorted((tmp_path / "pictures").iterdir())] == ["00.png", "01.png"]
    text = capsys.readouterr().out
    assert "AP50" in text
    assert "11 points" in text
    assert "circle" in text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    best = json.loads((trained / "metrics.json").read_text())["best"]
    assert metrics["coco"]["ap"] == best["ap"]  # what training measured is what the file gives
    assert metrics["images"] == 3
    assert (tmp_path / "precision_recall.png").stat().st_size > 1000
    results = json.loads((tmp_path / "detections.json").read_text())
    assert results
    assert results[0].keys() == {"image_id", "category_id", "bbox", "score"}


def test_check_names_what_is_wrong(drawn, tmp_path, capsys):
    assert main(["check", "--data", str(drawn), "--split", "train", "--decode"]) == 0
    assert "no problems" in capsys.readouterr().out
    root = tmp_path / "broken"
    shutil.copytree(drawn, root)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    twice, flat = dict(content["annotations"][0]), dict(content["annotations"][1])
    twice["id"], flat["id"], flat["bbox"] = 10_001, 10_002, [1, 1, 0, 5]
    content["annotations"] += [twice, flat]
    file.write_text(json.dumps(content))
    (name,) = {i["file_name"] for i in content["images"]} - {
        i["file_name"] for i in content["images"][1:]
    }
    image = next(root.rglob(name))
    image.write_bytes(image.read_bytes()[:-200])
    assert main(["check", "--data", str(root), "--split", "train", "--decode"]) == 1
    printed = capsys.readouterr().out
    for words in ("id 10001", "repeats annotation", "id 10002", "has no area", name, "3 problems"):
        assert words in printed
    assert main(["check", "--data", str(root), "--split", "train", "--duplicate-iou", "1.1"]) == 1
    assert "1 problems" in capsys.readouterr().out


def test_detect_writes_pictures_and_coco_results(trained, drawn, tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    originals = sorted((drawn / "val").glob("*.jpg"))
    Image.open(originals[0]).save(folder / "a.png")
    Image.open(originals[1]).convert("L").resize((31, 77)).save(folder / "deeper" / "grey.jpg")
    (folder / "broken.jpg").write_bytes(originals[2].read_bytes()[:150])
    output = tmp_path / "out"
    weights = str(trained / "last.safetensors")
    arguments = [str(folder), "--weights", weights, "--output", str(output), "--device", "cpu",
                 "--score-threshold", "0"]  # fmt: skip
    assert main(["detect", *arguments]) == 0
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    assert "2 images, 1 left out" in captured.out
    assert {p.relative_to(output).as_posix() for p in output.rglob("*.png")} == {
        "a.png.png", "deeper/grey.jpg.png",
    }  # fmt: skip
    listing = json.loads((output / "images.json").read_text())
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in listing["images"]}
    assert sizes["deeper/grey.jpg"] == (31, 77)
    assert listing["skipped"][0]["file_name"] == "broken.jpg"
    results = json.loads((output / "detections.json").read_text())
    assert {r["image_id"] for r in results} == {image["id"] for image in listing["images"]}
    assert {r["category_id"] for r in results} <= {c["id"] for c in listing["categories"]}
    assert all(len(r["bbox"]) == 4 and 0 <= r["score"] <= 1 for r in results)


def test_detect_leaves_out_what_it_has_drawn(trained, drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(min((drawn / "val").glob("*.jpg")), tmp_path / "a.jpg")
    weights = str(trained / "last.safetensors")
    for _ in range(2):
        assert main(["detect", ".", "--weights", weights, "--device", "cpu"]) == 0
        assert "in 1 images, 0 left out" in capsys.readouterr().out
    assert main(["detect", "detections", "--weights", weights, "--device", "cpu"]) == 2
    assert "--output must be another folder" in capsys.readouterr().err


def test_detect_takes_several_files_and_folders(trained, drawn, tmp_path, monkeypatch):
    first, second = sorted((drawn / "val").glob("*.jpg"))[:2]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(first, tmp_path / folder / "x.jpg")
    shutil.copy(second, tmp_path / "y.jpg")
    monkeypatch.chdir(tmp_path)
    weights = ["--weights", str(trained / "last.safetensors"), "--device", "cpu", "--output", "out"]
    for images, names in (
        (["a/x.jpg", str(tmp_path / "a")], ["x.jpg"]),
        (["a", "b"], ["a/x.jpg", "b/x.jpg"]),
        (["y.jpg", "b/x.jpg"], ["y.jpg", "b/x.jpg"]),
        (["b/../y.jpg"], ["y.jpg"]),
    ):
        assert main(["detect", *images, *weights]) == 0
        listing = json.loads(Path("out/images.json").read_text())
        assert [image["file_name"] for image in listing["images"]] == names
        assert {p.relative_to("out").as_posix() for p in Path("out").rglob("*.png")} == {
            f"{name}.png" for name in names
        }
        shutil.rmtree("out")


def test_detect_keeps_what_it_has_found_when_interrupted(
    trained, drawn, tmp_path, capsys, monkeypatch
):
    from pydet.commands import detect

    def interrupted(*arguments, **options):
        yield from itertools.islice(detect_files(*arguments, **options), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(detect, "detect_files", interrupted)
    arguments = ["--weights", str(trained / "last.safetensors"), "--device", "cpu",
                 "--output", str(tmp_path), "--score-threshold", "0"]  # fmt: skip
    assert main(["detect", str(drawn / "train"), *arguments]) == 130
    captured = capsys.readouterr()
    assert "in 2 images" in captured.out
    assert "pydet detect: interrupted" in captured.err
    assert len(json.loads((tmp_path / "images.json").read_text())["images"]) == 2
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2}


def test_eval_makes_its_folder_first(trained, drawn, tmp_path, capsys, monkeypatch):
    from pydet.commands import eval as command

    monkeypatch.setattr(command, "evaluate", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "file").touch()
    data = ["--data", str(drawn), "--split", "val", "--output", str(tmp_path / "file" / "x")]
    weights = ["--weights", str(trained / "last.safetensors"), "--device", "cpu"]
    assert main(["eval", *weights, *data]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_pycocotools_reads_the_results(trained, drawn, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    weights, data = str(trained / "last.safetensors"), str(drawn)
    common = ["--device", "cpu", "--output", str(tmp_path), "--no-progress"]
    assert main(["eval", "--weights", weights, "--data", data, "--split", "val", *common]) == 0
    truth = coco.COCO(str(drawn / "annotations" / "instances_val.json"))
    assert truth.loadRes(str(tmp_path / "detections.json")).getAnnIds()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "NAME must be the name of a detector, got none"),
        (["train", "tiny"], "--data must be the path of a data set, got none"),
        (["train", "tiny", "--data", "/nowhere"], "/nowhere does not exist"),
        (["train", "tinny", "--data", "DATA"], "'tinny'; the nearest is 'tiny'"),
        (["train", "tiny", "--data", "DATA", "--option", "chanels=4"], "channels"),
        (["train", "tiny", "--data", "DATA", "--option", "channels"], "must be KEY=VALUE"),
        (
            ["train", "tiny", "--data", "DATA", "--option", "num_classes=3"],
            "num_classes must be left",
        ),
        (["train", "tiny", "--data", "DATA", "--split", "tset"], "tset"),
        (["train", "tiny", "--data", "DATA", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["train", "tiny", "--data", "DATA", "--import", "no_such_module"], "no_such_module"),
        (["train", "tiny", "--data", "DATA", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["train", "--resume-from", "/nowhere.ckpt"], "there is no such checkpoint"),
        (["eval", "--weights", "/nowhere.safetensors", "--data", "DATA"], "/nowhere.safetensors"),
        (["eval", "--weights", "W", "--data", "DATA", "--device", "tpu"], "must be one of cpu"),
        (["detect", "/nowhere", "--weights", "W"], "/nowhere is neither a file nor a folder"),
        (["detect", "x", "--weights", "W", "--score-threshold", "2"], "lie in 0 ... 1, got 2.0"),
        (["detect", "x", "--weights", "W", "--score-threshold", "nan"], "lie in 0 ... 1, got nan"),
    ],
)
def test_errors_of_users_are_one_sentence(arguments, words, drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(drawn) if argument == "DATA" else argument for argument in arguments]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith(f"pydet {arguments[0]}: error: ")
    assert words in line
    with pytest.raises(Exception, match=re.escape(words)):
        main([*arguments, "--debug"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_while_training_is_named(drawn, tmp_path, capsys, workers):
    data = tmp_path / "data"
    shutil.copytree(drawn, data)
    victim = sorted((data / "train").glob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:600])  # its head, which is read first, is whole
    arguments = ["--data", str(data), "--output", str(tmp_path / "run"), *QUICK]
    assert main(["train", "tiny", *arguments, "--workers", str(workers)]) == 2
    line = capsys.readouterr().err.strip().split("\n")[-1]
    assert line.startswith("pydet train: error: ")
    assert str(victim) in line
    assert "Traceback" not in line
    skipping = ["--workers", str(workers), "--on-error", "skip", "--epochs", "1", "--resume"]
    assert main(["train", "tiny", *arguments, *skipping]) == 0


def test_what_is_trained_on_is_not_evaluated_on_unasked(drawn, tmp_path, capsys):
    file = drawn / "annotations" / "instances_train.json"
    root = tmp_path / "only_val"
    shutil.copytree(drawn / "val", root / "val")
    (root / "annotations").mkdir()
    shutil.copy(drawn / "annotations" / "instances_val.json", root / "annotations")
    flags = ["--epochs", "1", "--output", str(tmp_path / "run"), *QUICK]
    for data, words in ((file, "nothing"), (root, "nothing"), (drawn, "CocoDataset")):
        assert main(["train", "tiny", "--data", str(data), *flags]) == 0
        assert f"evaluate on: {words}" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "run")
    for data, split in ((file, "--val-split"), (file, "--split"), (drawn, "--val-split")):
        assert main(["train", "tiny", "--data", str(data), split, "tset", *flags]) == 2
        assert "the split 'tset'" in capsys.readouterr().err


@pytest.mark.parametrize("labels", ["missing", "empty"])
def test_a_data_set_without_any_object_is_refused(trained, drawn, tmp_path, capsys, labels):
    shutil.copytree(drawn / "train", tmp_path / "data" / "images")
    if labels == "empty":
        (tmp_path / "data" / "labels").mkdir()
        for image in (tmp_path / "data" / "images").iterdir():
            (tmp_path / "data" / "labels" / f"{image.stem}.txt").touch()
    names = open_dataset(drawn, "train").class_names
    yaml = f"train: images\nval: images\nnames: [{', '.join(names)}]\n"
    (tmp_path / "data" / "data.yaml").write_text(yaml)
    output = tmp_path / "out"
    data = ["--data", str(tmp_path / "data"), "--output", str(output), "--on-error", "skip"]
    weights = ["--weights", str(trained / "last.safetensors"), "--device", "cpu"]
    assert main(["train", "tiny", *data, *QUICK]) == 2
    line = capsys.readouterr().err
    assert "--data must have objects to learn, got YoloDataset(" in line
    assert ("none of the 9 images has a label file" in line) == (labels == "missing")
    assert main(["eval", *data, *weights]) == 2
    assert "--data must have objects of the model's classes" in capsys.readouterr().err
    assert not output.exists()


def test_an_unknown_setting_in_a_file_names_the_nearest(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text("[train]\nlearning_rat = 0.1\n")
    assert main(["train", "tiny", "--config", str(path), "--data", "x"]) == 2
    assert "did you mean 'learning_rate'?" in capsys.readouterr().err


def test_flags_override_the_file_and_the_result_is_printed(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(
        '[model]\nname = "tiny"\nchannels = 4\n[train]\nepochs = 7\nseed = 5\ncompile = true\n'
    )
    arguments = ["--config", str(path), "--epochs", "9", "--no-compile", "--option", "dropout=0.5",
                 "--step-epochs", "3", "6", "--no-augment", "--print-config"]  # fmt: skip
    assert main(["train", *arguments]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    config = RunConfig.read(printed)
    assert (config.train.epochs, config.train.seed, config.train.compile) == (9, 5, False)
    assert config.train.step_epochs == (3.0, 6.0)
    assert config.model.options == {"channels": 4, "dropout": 0.5}
    assert config.augment.transforms == ()


def test_weights_to_start_from(trained, drawn, tmp_path, capsys):
    weights = str(trained / "last.safetensors")
    arguments = [
        "--data",
        str(drawn),
        "--weights",
        weights,
        "--epochs",
        "1",
        "--learning-rate",
        "0",
    ]
    for name in ("a", "b"):
        output = ["--output", str(tmp_path / name), "--seed", "1" if name == "a" else "2"]
        assert main(["train", "tiny", *arguments, *output, *QUICK]) == 0
    states = [load_checkpoint(tmp_path / n / "last.ckpt")["model"] for n in ("a", "b")]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])


def test_a_loss_that_is_not_finite_is_one_sentence_with_code_1(drawn, tmp_path, capsys):
    arguments = ["--data", str(drawn), "--output", str(tmp_path / "run"), "--learning-rate", "1e30",
                 "--clip-norm", "1e30", "--warmup-epochs", "0"]  # fmt: skip
    assert main(["train", "tiny", *arguments, *QUICK]) == 1
    text = capsys.readouterr().err
    assert "is not finite" in text
    assert "image_id" in text
    assert str(drawn / "train") in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as leave:
        main([name, "--help"])
    assert leave.value.code == 0
    assert f"pydet {name}" in capsys.readouterr().out


def test_wrong_commands_and_flags_leave_with_code_2(capsys):
    for arguments in ([], ["tarin"], ["train", "--epochz", "3"], ["train", "--epochs", "many"]):
        with pytest.raises(SystemExit) as leave:
            main(arguments)
        assert leave.value.code == 2


def test_a_fault_keeps_its_traceback(monkeypatch):
    from pydet.commands import train

    def fail(_):
        raise AssertionError("cannot happen")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(AssertionError, match="cannot happen"):
        main(["train"])


def test_the_module_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pydet", "train", "nothing", "--data", "nowhere"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("pydet train: error: ")
    assert "Traceback" not in done.stderr

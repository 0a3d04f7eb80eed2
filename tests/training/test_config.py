# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults, files, checks and their words."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydet.training._toml import format_value, parse_value
from pydet.training.config import SECTIONS, RunConfig, TrainConfig


def test_every_field_is_documented():
    for section in SECTIONS.values():
        for field in dataclasses.fields(section):
            assert field.metadata.get("help") or field.name == "options", field.name


def test_toml_of_a_configuration_reads_as_the_same_configuration(tmp_path: Path):
    config = RunConfig.from_dict(
        {
            "model": {"name": "some_model", "score_threshold": 0.1, "levels": [3, 4, 5]},
            "data": {"path": 'a "quoted" path', "val_split": "val"},
            "augment": {"transforms": [{"name": "random_horizontal_flip", "p": 0.25}]},
            "train": {"epochs": 7, "learning_rate": 1e-5, "compile": True, "step_epochs": [2, 3]},
        }
    )
    for comments in (False, True):
        path = tmp_path / f"{comments}.toml"
        path.write_text(config.to_toml(comments))
        assert RunConfig.read(path).to_dict() == config.to_dict()
    assert config.model.options == {"score_threshold": 0.1, "levels": [3, 4, 5]}
    assert config.train.step_epochs == (2.0, 3.0)


def test_committed_configurations_are_valid():
    paths = sorted((Path(__file__).parents[2] / "configs").rglob("*.toml"))
    assert paths
    for path in paths:
        assert RunConfig.read(path).model.name, path


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"trian": {}}, r"unknown table 'trian'; did you mean 'train'\?"),
        ({"train": {"epocs": 3}}, r"\[train\]: unknown key 'epocs'; did you mean 'epochs'\?"),
        ({"data": {"xyzzy": 3}}, r"unknown key 'xyzzy'; known are path, split"),
        ({"train": {"epochs": 0}}, "epochs must be at least 1, got 0"),
        ({"train": {"momentum": 1.5}}, "momentum must be at most 1, got 1.5"),
        ({"train": {"schedule": "cosin"}}, "schedule must be one of cosine, step, constant"),
        ({"train": {"batch_size": 8, "accumulate": 3}}, "accumulate must divide batch_size"),
        ({"train": {"epochs": 2, "warmup_epochs": 2}}, "warmup_epochs must be less than epochs"),
        ({"train": {"step_epochs": [5, 3]}}, "step_epochs must be positive and rising"),
        ({"train": {"learning_rate": float("nan")}}, "learning_rate must be at least 0, got nan"),
    ],
)
def test_wrong_values_are_refused_in_words(tables, words):
    with pytest.raises(ValueError, match=words):
        RunConfig.from_dict(tables)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"compile": 1}, "compile must be true or false, got 1"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1'"),
        ({"step_epochs": 3}, "step_epochs must be a list, each item a number, got 3"),
    ],
)
def test_wrong_types_are_refused_in_words(values, words):
    with pytest.raises(TypeError, match=words):
        TrainConfig(**values)


def test_overrides_change_only_what_they_name():
    config = RunConfig.from_dict({"train": {"epochs": 5, "seed": 3}, "model": {"name": "a"}})
    changed = config.override({"train": {"epochs": 9}, "model": {"score_threshold": 0.5}})
    assert (changed.train.epochs, changed.train.seed) == (9, 3)
    assert changed.model.options == {"score_threshold": 0.5}
    assert config.train.epochs == 5


_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii")), inner),
    max_leaves=8,
)


@given(_values)
def test_written_values_read_back(value):
    assert parse_value(format_value(value)) == value


def test_what_is_no_toml_value_is_a_string():
    assert parse_value("group") == "group"
    assert parse_value("1\nother = 2") == "1\nother = 2"
    assert parse_value("[1, 2]") == [1, 2]

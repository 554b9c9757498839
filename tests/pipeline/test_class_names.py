"""Numbers of classes that mean the same wherever they come from."""

import json
from pathlib import Path

import pytest

from pipeline import class_names
from pipeline.errors import UserError
from pipeline.index import DataConfig


def data(folder: Path, **more: object) -> DataConfig:
    content = {"shards": f"{folder}/train-{{000000..000001}}.tar", "num_classes": 3, "image_size": 8, **more}
    return DataConfig.model_validate_json(json.dumps(content))


def names(folder: Path, *classes: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(classes))


def test_equal_numbers_renamed_classes_and_files_of_others_are_fine(tmp_path: Path) -> None:
    train, test, foreign = (tmp_path / name for name in ("train", "test", "foreign"))
    class_names.check(data(train), [f"{test}/x.tar"])
    names(train, "cat", "cow", "dog")
    names(test, "cat", "cow", "dog")
    foreign.mkdir()
    (foreign / "classes.json").write_text('{"cat": 0}')
    for settings in ({}, {"classes": ["cat", "cow", "dog"]}, {"classes": ["Katze", "Kuh", "Hund"]}):
        class_names.check(data(train, **settings), [f"{test}/x.tar", f"{foreign}/*.tar", "nowhere/*/x.tar"])


def test_other_numbers_of_the_same_classes_are_refused(tmp_path: Path) -> None:
    train, test = tmp_path / "train", tmp_path / "test"
    names(train, "cat", "cow", "dog")
    names(test, "cat", "dog")
    with pytest.raises(UserError, match=r"numbers the classes cat, .*: import the images again with --classes .*json"):
        class_names.check(data(train), [f"{test}/x.tar"])
    class_names.check(data(train, labels=str(tmp_path / "labels.csv")), [f"{test}/x.tar"])
    with pytest.raises(UserError, match=r"cat, cow, dog, but data.classes has dog, cow, cat: name them in the order"):
        class_names.check(data(train, classes=["dog", "cow", "cat"]))

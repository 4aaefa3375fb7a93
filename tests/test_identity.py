"""The identity of a run: what counts, and how a run's directory is bound to it."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from funmatch.config import identity, schema
from funmatch.config.errors import UserError

Compose = Callable[..., DictConfig]


def written(cfg: DictConfig) -> Path:
    """The config.yaml of a run, in a directory of the run's name."""
    directory = identity.run_directory(cfg)
    directory.mkdir(parents=True)
    path = directory / "config.yaml"
    path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return path


def test_every_key_that_is_declared_aside_changes_no_identity(compose: Compose) -> None:
    base, excluded = identity.identity(compose()), schema.non_identity_keys(schema.Train)
    assert {"name", "checkpoint_every", "trainer", "paths"} <= excluded
    counted = {each.name for each in fields(schema.Train)} - excluded - {"transfer", "origin"}
    assert counted - {"targets", "init_seed"} <= base.keys()
    assert not excluded & base.keys()
    assert base["version"] == 2


def test_read_returns_what_was_written(compose: Compose, tmp_path: Path) -> None:
    cfg = compose(f"paths.logs={tmp_path}")
    assert identity.identity(identity.read(written(cfg))) == identity.identity(cfg)


@pytest.mark.parametrize(
    ("old", "new"), [("temperature: 5", "temperature: 2"), ("mild:\n  - 160", "mild:\n  - 161")]
)
def test_read_refuses_an_edited_configuration(
    compose: Compose, tmp_path: Path, old: str, new: str
) -> None:
    path = written(compose(f"paths.logs={tmp_path}"))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"config\.yaml: is not the configuration by which its "):
        identity.read(path)


def test_read_of_a_directory_with_another_name_compares_nothing(
    compose: Compose, tmp_path: Path
) -> None:
    path = written(compose(f"paths.logs={tmp_path}"))
    moved = path.parent.rename(tmp_path / "moved") / "config.yaml"
    moved.write_text(moved.read_text().replace("seed: 0", "seed: 1", 1))
    assert identity.read(moved).seed == 1


def test_read_accepts_that_a_file_of_weights_is_lost(compose: Compose, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"weights")
    cfg = compose(f"paths.logs={tmp_path}", f"teacher.weights={weights}")
    settings, path = identity.identity(cfg), written(cfg)
    weights.unlink()
    with pytest.raises(UserError, match="is not the configuration"):  # nothing tells its digest
        identity.read(path)
    path.with_name("summary.json").write_text(json.dumps({"settings": settings}))
    assert identity.read(path).teacher.weights == str(weights)
    path.write_text(path.read_text().replace("temperature: 5", "temperature: 2"))
    with pytest.raises(UserError, match="is not the configuration"):
        identity.read(path)

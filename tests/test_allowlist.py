"""The allowlist of configuration targets, foreign code and secrets."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from commands import QUICK, command, command_here
from funmatch.models import user_models
from funmatch.runs.directory import Run
from funmatch.runtime import allowlist
from funmatch.runtime.hydra_versions import HAS_WHITELIST

pytestmark = pytest.mark.fault(13)
CANARY = "canary-5f2b9c1e77aa4d10"


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "subprocess.run", "builtins.eval", "posix.system", "torch.os.system"),
        *(
            "torch.hub.load",
            "torch.load",
            "funmatch.runtime.atomic_files.write",
            "funmatch.cli.app.os.system",
        ),
        *("timmy.models.net", "system", "toysome.forgetful"),
        *("timm.models.load_state_dict", "torchvision.models._api.load_state_dict_from_url"),
        *("torch.nn.functional.warnings.warn", "funmatch.data.datasets.digits.np.load"),
    ],
)
def test_configuration_with_foreign_target_is_refused(target: str) -> None:
    for node in ({"a": {"_target_": target}}, {"a": [{"b": {"_target_": target}}]}):
        with pytest.raises(ValueError, match=rf"a.*_target_={target}: a configuration may call"):
            allowlist.check(OmegaConf.create(node))


@pytest.mark.parametrize("path", ["os:system", "logs.x-s0.evil:f", "os.system"])
def test_function_path_is_checked_in_any_node(path: str) -> None:
    splits = {"_target_": "funmatch.models.user_models.from_path", "path": path, "num_classes": 3}
    with pytest.raises(ValueError, match=f"data.splits.path={path}: a configuration may call"):
        allowlist.check(OmegaConf.create({"data": {"splits": splits}}))


def test_instantiate_raises_the_error_of_the_function() -> None:
    net = {"_target_": "funmatch.models.user_models.from_path", "path": "a-b:f", "num_classes": 1}
    with pytest.raises(ValueError, match=r"^path=a-b:f: give package\.module:function"):
        allowlist.instantiate(OmegaConf.create({"net": net}))


@pytest.mark.skipif(not HAS_WHITELIST, reason="of Hydra 1.4")
def test_hydra_checks_the_module_of_the_returned_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lender.py").write_text("from torch import nn\nclass Net(nn.Identity): pass\n")
    (tmp_path / "borrower.py").write_text("import lender\ndef net(): return lender.Net()\n")
    net = {"_target_": "funmatch.models.user_models.from_path", "num_classes": 1}
    cfg = OmegaConf.create({**net, "path": "borrower:net"})
    monkeypatch.setenv("FUNMATCH_ALLOW", "borrower")
    with pytest.raises(ValueError, match=r"'lender\.Net'.*FUNMATCH_ALLOW"):
        allowlist.instantiate(cfg)
    monkeypatch.setenv("FUNMATCH_ALLOW", "borrower,lender")
    assert type(allowlist.instantiate(cfg)).__name__ == "Net"


def test_from_path_refuses_invalid_module_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-b.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match=r"path=a-b:f: give package\.module:function"):
        user_models.from_path("a-b:f", num_classes=1)


def test_interpolated_target_is_checked_after_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = OmegaConf.create({"name": "os.system", "net": {"_target_": "${name}"}, "later": "???"})
    with pytest.raises(ValueError, match=r"net._target_=os.system"):
        allowlist.check(cfg)
    monkeypatch.setenv("FUNMATCH_ALLOW", "other,os")
    allowlist.check(cfg)


def test_shipped_configurations_are_allowed(compose: Callable[..., DictConfig]) -> None:
    allowlist.check(compose())
    allowlist.check(compose("optimizer=sgd", "student=bit_r50", "logger=none"))
    allowlist.check(compose(name="finetune"))


@pytest.mark.parametrize(
    "override",
    ["+callbacks.evil._target_=os.system", "student.net._target_=os.system"],
)
def test_command_with_foreign_target_is_refused_before_anything_runs(
    tmp_path: Path, override: str
) -> None:
    evil = f"+{override.removeprefix('+').partition('._target_')[0]}.command='touch executed'"
    code, _, err = command_here("train", override, evil, *QUICK, cwd=tmp_path)
    assert code == 1
    key = override.removeprefix("+")
    assert err.startswith(f"error: {key}: a configuration may call networks, data, ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_run_directory_with_foreign_target_is_refused(workplace: Path, tmp_path: Path) -> None:
    (there,) = (workplace / "logs" / "first").glob("*/config.yaml")
    stranger = tmp_path / "logs" / "given" / "run"
    shutil.copytree(there.parent, stranger)
    cfg = OmegaConf.load(stranger / "config.yaml")
    cfg.data.splits = {"_target_": "os.system", "command": f"touch {tmp_path}/executed"}
    OmegaConf.save(cfg, stranger / "config.yaml")
    code, _, err = command_here("evaluate", f"run={stranger}", cwd=tmp_path)
    assert code == 1
    assert err.startswith("error: data.splits._target_=os.system: a configuration may call")
    assert not (tmp_path / "executed").exists()


def test_foreign_hydra_callback_is_refused(tmp_path: Path) -> None:
    """Its own callbacks are called before ours."""
    evil = ("+hydra.callbacks.evil._target_=os.system", "+hydra.callbacks.evil.command=id")
    done = command("train", *evil, *QUICK, cwd=tmp_path)
    assert done.returncode == 1
    assert "uid=" not in done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.fault(14)
def test_run_files_contain_no_secrets(workplace: Path, record_property) -> None:
    (workplace / ".env").write_text(f"ANOTHER_TOKEN={CANARY}-env\n")
    secrets = {"WANDB_API_KEY": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "WANDB_MODE": "offline"}
    given = ("steps=6", "schedule.warmup_steps=1", "name=secret", *QUICK[1:])
    done = command("train", *given, cwd=workplace, **secrets)
    (workplace / ".env").unlink()
    assert done.returncode == 0, done.stderr
    left = [path for path in (workplace / "logs" / "secret").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in left)
    for path in left:
        assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in done.stdout + done.stderr
    record_property("figures", f"{len(left)} files searched")


@pytest.mark.fault(14)
@pytest.mark.parametrize(
    "override",
    [f"+logger.wandb.key={CANARY}", "+logger.wandb.key=${oc.env:WANDB_API_KEY}", f"name=x{CANARY}"],
)
def test_secret_in_the_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    code, _, err = command_here("train", override, cwd=tmp_path)
    assert code == 1
    key = override.removeprefix("+").partition("=")[0]
    assert err == (
        f"error: {key}: contains the value of the environment variable WANDB_API_KEY, which would "
        "be written to files; leave it out\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(13)
def test_weights_that_would_run_code_are_refused(workplace: Path, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/executed",)

    for suffix in (".pth", ".npz", ".safetensors"):
        (tmp_path / f"evil{suffix}").write_bytes(pickle.dumps({"net": Evil()}, protocol=2))
        given = ("steps=4", "schedule.warmup_steps=1", *QUICK, "logger=none")
        weights = f"teacher.weights={tmp_path}/evil{suffix}"
        code, _, err = command_here("train", *given, weights, cwd=tmp_path)
        assert code == 1, suffix
        assert err.startswith("error: "), suffix
        assert err.count("\n") == 1, suffix
    assert not (tmp_path / "executed").exists()
    assert not [run for run in tmp_path.glob("logs/*/*/summary.json") if Run(run.parent).completed]


def test_run_of_an_earlier_version_names_the_missing_module(tmp_path: Path) -> None:
    run = tmp_path / "logs" / "old" / "consistent-s0-00000000"
    run.mkdir(parents=True)
    (run / "student.safetensors").touch()
    (run / "config.yaml").write_text(
        "recipe: {_target_: funmatch.recipes.Shared, name: consistent}\n"
        "data: {splits: {}}\nstudent: {}\nsteps: 4\nseed: 0\ntrainer: {precision: 32-true}\n"
    )
    code, out, err = command_here("evaluate", f"run={run}", cwd=tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: recipe._target_=funmatch.recipes.Shared: ")
    assert "this version has no module funmatch.recipes: " in err

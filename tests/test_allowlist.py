"""The allowlist of configuration targets, foreign code and secrets."""

import importlib
import inspect
import os
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from commands import QUICK, command, command_here
from funmatch import objectives
from funmatch.models import user_models
from funmatch.objectives.base import Objective
from funmatch.runs.directory import Run
from funmatch.runtime import allowlist, env_file
from funmatch.runtime.hydra_versions import HAS_WHITELIST

pytestmark = pytest.mark.fault(13)
CANARY = "canary-5f2b9c1e77aa4d10"


NET = "funmatch.models.conv.build"
BY_PATH = "funmatch.models.user_models.from_path"
FOREIGN = (
    *("os.system", "subprocess.run", "builtins.eval", "posix.system", "torch.os.system"),
    *("torch.hub.load", "torch.load", "system", "timmy.models.net", "toysome.forgetful"),
    *("funmatch.runtime.atomic_files.write", "funmatch.cli.app.os.system"),
    *("timm.models.load_state_dict", "torchvision.models._api.load_state_dict_from_url"),
    *("torch.nn.functional.warnings.warn", "funmatch.data.datasets.digits.np.load"),
    # Of ours, but private, imported, or made for another key.
    *("funmatch.models.user_models._imported", "funmatch.models.pretrained.urlopen"),
    *("funmatch.data.decoded_cache.cached", "funmatch.training.loggers.csv.CsvLogger"),
    *("funmatch.training.callbacks.best_student.Path", "funmatch.optim.adam.adam"),
    *("torch.nn._VF", "torch.nn.Module._call_impl", "torch.optim.Adam", "lightning.Trainer"),
)


@pytest.mark.parametrize("target", FOREIGN)
def test_configuration_with_foreign_target_is_refused(target: str) -> None:
    for place in ("splits", "task"):
        node = {"data": {place: {"_target_": target}}}
        with pytest.raises(ValueError, match=rf"^data.{place}._target_={target}: a configuration"):
            allowlist.check(OmegaConf.create(node))
    nodes = {"a": {"_target_": target}}, {"student": {"net": {"x": [{"_target_": target}]}}}
    for node in nodes:
        with pytest.raises(ValueError, match=rf"_target_={target}: a configuration may call here"):
            allowlist.check(OmegaConf.create(node))


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("student.net", NET),
        ("teacher.members.a.net", "torchvision.models.resnet18"),
        ("model.net", "torch.nn.Identity"),
        ("optimizer", "torch.optim.SGD"),
        ("callbacks.mine", "lightning.pytorch.callbacks.LearningRateMonitor"),
        ("student.net.layers.act", "torch.nn.GELU"),
    ],
)
def test_configuration_may_call_what_is_listed_for_the_key(key: str, target: str) -> None:
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, f"{key}._target_", target, force_add=True)
    allowlist.check(cfg)


@pytest.mark.parametrize("path", ["os:system", "logs.x-s0.evil:f", "os.system"])
@pytest.mark.parametrize("key", ["student", "teacher.members.b"])
def test_function_path_must_be_trusted(key: str, path: str) -> None:
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, f"{key}.net", {"_target_": BY_PATH, "path": path, "num_classes": 3})
    with pytest.raises(ValueError, match=f"^{key}.net.path={path}: a configuration may call here"):
        allowlist.check(cfg)


@pytest.mark.parametrize("arguments", [["evil:f"], [], [{"path": "evil:f"}]])
def test_positional_arguments_are_refused(arguments: list[object]) -> None:
    cfg = OmegaConf.create({"student": {"net": {"_target_": BY_PATH, "_args_": arguments}}})
    with pytest.raises(ValueError, match=r"^student\.net\."):
        allowlist.check(cfg)


def test_interpolated_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FM_T", NET)
    for target in ("${name}", "${oc.env:FM_T,torch.nn.Identity}"):
        cfg = OmegaConf.create({"name": NET, "student": {"net": {"_target_": target}}})
        with pytest.raises(ValueError, match=r"^student.net._target_=\$.*write out what is called"):
            allowlist.check(cfg)


def test_instantiate_refuses_names_that_a_package_imported() -> None:
    node = {"_target_": "torch.nn.modules.module.OrderedDict"}
    allowlist.check(OmegaConf.create({"student": {"net": node}}))  # which imports nothing
    with pytest.raises(ValueError, match=r"OrderedDict: is collections\.OrderedDict"):
        allowlist.instantiate(node, "student.net")
    with pytest.raises(ValueError, match=r"^data.splits._target_=os.system: a configuration"):
        allowlist.instantiate({"_target_": "os.system", "command": "id"}, "data.splits")


def test_variables_set_later_allow_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = OmegaConf.create({"student": {"net": {"_target_": "other.net"}}})
    with allowlist.environment_as_it_is():
        monkeypatch.setenv("FUNMATCH_ALLOW", "mine,other")
        with pytest.raises(ValueError, match="FUNMATCH_ALLOW=other into the environment"):
            allowlist.check(cfg)
    allowlist.check(cfg)


def test_every_objective_of_the_package_is_listed() -> None:
    names = set()
    for info in pkgutil.iter_modules(objectives.__path__):
        module = importlib.import_module(f"{objectives.__name__}.{info.name}")
        names |= {
            f"{module.__name__}.{name}"
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, Objective)
            and value.__module__ == module.__name__
            and not inspect.isabstract(value)
        }
    assert len(names) >= 2
    for name in names - {f"{Objective.__module__}.Objective"}:
        allowlist.check(OmegaConf.create({"objective": {"_target_": name}}))


def test_env_file_sets_keys_and_nothing_that_steers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("WANDB_API_KEY", "WANDB_BASE_URL", "FUNMATCH_ALLOW", "PYTHONPATH", "FUNMATCH_DATA")
    path = tmp_path / ".env"
    path.write_text("".join(f"{name}=given\n" for name in names))
    for name in names:
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    assert env_file.load(tmp_path / "none") == []
    assert env_file.load(path) == ["FUNMATCH_ALLOW", "PYTHONPATH"]
    assert os.environ["WANDB_API_KEY"] == os.environ["FUNMATCH_DATA"] == "given"
    assert os.environ["WANDB_BASE_URL"] == "given"  # where the key of the file is sent
    path.write_text("WANDB_BASE_URL=http://elsewhere\n")
    monkeypatch.delenv("WANDB_BASE_URL")
    assert env_file.load(path) == ["WANDB_BASE_URL"]  # the key of the environment goes nowhere else


def test_ignored_variables_of_the_env_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUNMATCH_ALLOW")
    (tmp_path / ".env").write_text("FUNMATCH_ALLOW=evil\n")
    (tmp_path / "evil.py").write_text("def f(num_classes): raise SystemExit('run')")
    given = ("student=module", "student.path=evil:f", "steps=2", "schedule.warmup_steps=1", *QUICK)
    code, _, err = command_here("train", *given, cwd=tmp_path)
    assert code == 1
    warning, error = err.splitlines()
    assert warning.startswith("warning: .env: FUNMATCH_ALLOW ignored; ")
    assert error.startswith("error: student.net.path=evil:f: a configuration may call here only ")


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
    assert err.startswith(f"error: {key}: a configuration may call here only what ")
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

"""What is shipped: the wheel, what an import loads, the pins."""

import ast
import importlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaxnn

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LANES = ("py311", "py313")
APART = (
    "cuda",
    "tpu",
    "dev",
    "peers",
)  # extras that the constraints do not cover: of a machine, or an environment apart


def run(code: str, **kwargs) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pins(lane: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{lane}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The wheel of a copy of the checkout, so that no build folder is left in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("jaxnn", "tests", "experiments", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", str(out), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.iterdir())


def test_wheel_holds_the_library_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"jaxnn_training-{jaxnn.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"jaxnn", info}
    assert {"jaxnn/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxnn").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = """
import importlib, json, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import jaxnn
names = [m.name for m in pkgutil.walk_packages(jaxnn.__path__, "jaxnn.") if not m.name.endswith("__main__")]
print(json.dumps([importlib.import_module(name).__file__ for name in names]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(site)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)
    assert files
    assert all(pathlib.Path(file).is_relative_to(site) for file in files), files


def test_command_is_the_function_it_names(wheel):
    entries = zipfile.ZipFile(wheel).read(f"jaxnn_training-{jaxnn.__version__}.dist-info/entry_points.txt").decode()
    module, _, function = re.search(r"jaxnn = ([\w.]+)(:)(\w+)", entries).groups()
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.smoke
def test_import_loads_nothing_heavy_beyond_jax_flax_and_optax():
    heavy = ["PIL", "grain", "matplotlib", "orbax", "rich", "scipy", "tensorboardX", "tensorstore", "tokenizers"]
    heavy.append("tyro")
    code = f"""
import sys, jax, flax.linen, optax
before = set(sys.modules)
from jaxnn import data, losses, metrics, models, parallel, train
print(sorted({{name for name in sys.modules if name not in before and name.split(".")[0] in {heavy}}}))
"""
    assert run(code, cwd=ROOT) == "[]\n"


def test_import_of_the_package_loads_only_itself():
    code = "import sys; before = set(sys.modules); import jaxnn; print(sorted(set(sys.modules) - before))"
    assert run(code, cwd=ROOT) == "['jaxnn']\n"


def test_import_starts_no_backend():
    # jax refuses another number of devices once a backend runs.
    code = """
import jax
from jaxnn import data, losses, metrics, models, parallel, train
jax.config.update("jax_num_cpu_devices", 3)
print(len(jax.devices("cpu")))
"""
    assert run(code, cwd=ROOT, env={"PATH": os.defpath, "JAX_PLATFORMS": "cpu"}) == "3\n"


def test_no_private_module_of_jax_is_named():
    private = "jax." + "_src"
    folders = ("jaxnn", "experiments", "benchmarks", "tests")
    found = [
        str(path)
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if private in path.read_text(encoding="utf-8")
    ]
    assert found == []


def imported(folder: str) -> set[str]:
    """The distributions whose modules the files of `folder` import, anywhere in them."""
    owners = importlib.metadata.packages_distributions()
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        if path.parent.name == "fixtures":  # what makes fixtures runs in an environment of its own
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.split(".")[0] for name in names}
    ours = {"jaxnn", "experiments", "benchmarks", "tests"}
    return {canonicalize_name(owners.get(name, [name])[0]) for name in found - ours - set(sys.stdlib_module_names)}


def test_every_import_is_of_a_declared_dependency():
    project = PROJECT["project"]
    needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    extras = {
        name: {canonicalize_name(Requirement(line).name) for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    shipped = (
        needed | extras["images"] | extras["tensorboard"] | extras["grain"] | extras["text"] | extras["translation"]
    )
    assert imported("jaxnn") - shipped - {"pytest"} == set()  # bench's plugin, which pytest alone loads
    assert imported("experiments") - shipped - extras["experiments"] == set()
    assert imported("tests") - shipped - extras["experiments"] - extras["test"] == set()
    assert imported("benchmarks") - shipped - extras["experiments"] - extras["test"] - extras["peers"] == set()


@pytest.mark.parametrize("lane", LANES)
def test_constraints_hold_names_and_versions_only(lane):
    lines = (ROOT / "constraints" / f"{lane}.txt").read_text(encoding="utf-8").splitlines()
    odd = [line for line in lines if not re.fullmatch(r"#[^:@/]*|[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+", line)]
    assert odd == []
    names = [canonicalize_name(name) for name in pins(lane)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("lane", LANES)
def test_constraints_satisfy_the_bounds_of_the_project(lane):
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    declared += [line for name, lines in extras.items() if name not in APART for line in lines]
    versions = {canonicalize_name(name): version for name, version in pins(lane).items()}
    for requirement in map(Requirement, declared):
        if requirement.name != PROJECT["project"]["name"]:
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_constraints_pin_everything_that_an_install_brings():
    lane = "py311" if sys.version_info < (3, 12) else "py313"
    pinned = {canonicalize_name(name) for name in pins(lane)}
    extras = PROJECT["project"]["optional-dependencies"]
    queue = [
        *PROJECT["project"]["dependencies"],
        *extras["images"],
        *extras["tensorboard"],
        *extras["text"],
        *extras["experiments"],
        *extras["test"],
    ]
    seen: set[str] = set()
    while queue:
        requirement = Requirement(queue.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
        )
        if not wanted or name in seen or name == PROJECT["project"]["name"]:
            continue
        seen.add(name)
        queue += [line for line in importlib.metadata.requires(name) or [] if "extra ==" not in line]
    assert "tensorstore" in seen  # a dependency of a dependency: the walk goes down
    assert seen - pinned == set()

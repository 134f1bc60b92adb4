"""The package as pip sees it: what each extra installs is what the requirement files do."""

import ast
import collections
import graphlib
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import desloc_jax
from desloc_jax import version
from tests.environment import environment

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def listed(name):
  lines = (ROOT / name).read_text().splitlines()
  return sorted(line for line in lines if line and not line.startswith(('#', '-r')))


@pytest.mark.parametrize(
  'extra, file',
  [
    ('train', 'requirements-cpu.txt'),
    ('cuda', 'requirements.txt'),
    ('tpu', 'requirements-tpu.txt'),
    ('export', 'requirements-export.txt'),
    ('dev', 'requirements-dev.txt'),
  ],
)
def test_extras_are_the_requirement_files(extra, file):
  packages = PROJECT['optional-dependencies'][extra]
  assert sorted(name for name in packages if not name.startswith('desloc_jax')) == listed(file)


def test_the_transform_alone_needs_jax_and_optax_of_the_same_versions():
  assert set(PROJECT['dependencies']) <= set(listed('requirements-cpu.txt'))


def test_a_wheel_works_from_another_folder(tmp_path):
  """Its data and configs included; a plan reads a config, and the path of imports is that of users."""
  pytest.importorskip('hatchling')
  build = [sys.executable, '-m', 'hatchling', 'build', '--target=wheel', f'--directory={tmp_path}']
  subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
  (wheel,) = tmp_path.glob('*.whl')
  zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
  code = 'import sys, desloc_jax.data as d; assert len(list(d.read_documents("sotu"))) == 249, d'
  train = 'from desloc_jax.train.main import main; main(["--config=configs/gpt_1b.py:stou"])'
  result = subprocess.run(
    [sys.executable, '-c', f'{code}; {train}'],
    cwd=tmp_path, capture_output=True, text=True, timeout=60,
    env=environment(PYTHONPATH=str(tmp_path / 'site')),
  )  # fmt: skip
  assert result.returncode == 2 and "Did you mean 'sotu'" in result.stderr, result.stderr


def test_type_checkers_see_the_public_names_where_they_are():
  tree = ast.parse(pathlib.Path(desloc_jax.__file__).read_text())
  (checked,) = (n for n in tree.body if isinstance(n, ast.If))
  seen = {name.name: line.module for line in checked.body for name in line.names}
  for name, module in seen.items():
    assert getattr(importlib.import_module(module), name) is getattr(desloc_jax, name), name
  assert sorted(seen) == sorted(desloc_jax.__all__) and set(seen) < set(dir(desloc_jax))


# As docs/code.md has them: each imports of itself and of those before it.
FLOORS = (
  {'optimizer'}, {'model', 'data', 'programs'}, {'options'}, {'hosts', 'logs'}, {'checkpoints'},
  {'hub'}, {'inference', 'train'}, {'plan'},
)  # fmt: skip


def imports():
  """Returns the modules of the package that each of them imports, also inside of functions."""
  package = pathlib.Path(desloc_jax.__file__).parent
  modules = {}
  for path in package.rglob('*.py'):
    name = '.'.join(path.relative_to(package.parent).with_suffix('').parts)
    modules[name.removesuffix('.__init__')] = ast.parse(path.read_text())
  return {
    name: {
      full if (full := f'{line.module}.{alias.name}') in modules else line.module
      for line in ast.walk(tree)
      if isinstance(line, ast.ImportFrom)
      for alias in line.names
    }
    for name, tree in modules.items()
  }


def test_rooms_import_downwards_only():
  floor = {f'desloc_jax.{room}': i for i, rooms in enumerate(FLOORS) for room in rooms}
  room = lambda module: '.'.join(module.split('.')[:2])
  found = imports()
  for module, asked in found.items():
    if room(module) in floor and module != 'desloc_jax.train.main':  # It asks for plans too.
      above = [x for x in asked if floor.get(room(x), -1) > floor[room(module)]]
      assert not above, (module, above)
  graphlib.TopologicalSorter(found).prepare()  # Raises where there is a circle.


def test_no_room_is_a_street_and_no_two_modules_have_one_name():
  paths = [path for top in ('desloc_jax', 'experiments') for path in (ROOT / top).rglob('*.py')]
  rooms = collections.Counter(path.parent for path in paths)
  assert max(rooms.values()) <= 21, rooms.most_common(3)
  names = collections.Counter(path.stem for path in paths if not path.stem.startswith('__'))
  assert max(names.values()) == 1, names.most_common(3)


def test_the_package_is_imported_without_jax():
  """So that its commands answer at once."""
  code = "import desloc_jax, sys; assert 'jax' not in sys.modules; desloc_jax.desloc"
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize('name', desloc_jax.__all__)
def test_public_names_are_annotated(name):
  found = getattr(desloc_jax, name)
  methods = (
    [f for key, f in vars(found).items() if key[0] != '_'] if isinstance(found, type) else []
  )
  for function in filter(inspect.isfunction, [found, *methods]):
    signature = inspect.signature(function)
    kinds = [p.annotation for key, p in signature.parameters.items() if key != 'self']
    assert inspect.Signature.empty not in [*kinds, signature.return_annotation], function


def test_the_version_is_known():
  assert desloc_jax.__version__.count('.') == 2


def test_the_commit_of_a_checkout_is_known(tmp_path, monkeypatch):
  found = version.commit()
  assert found is None or re.fullmatch(r'[0-9a-f]{7,40}(-dirty)?', found)
  monkeypatch.setattr(version, '__file__', str(tmp_path / 'site-packages' / 'version.py'))
  assert version.commit() is None

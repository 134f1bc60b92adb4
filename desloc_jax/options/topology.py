"""TPU slices that are not there: their devices, as libtpu's compiler knows them."""

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from types import MappingProxyType
from typing import Any

from absl import logging
import jax
from jax.experimental import topologies

from desloc_jax.errors import unknown_choice, UserError

INSTALL = 'pip install -r requirements-tpu.txt'
# What libtpu would otherwise look for on a TPU machine, and complain of on another one; and a log
# file that nobody asked for.
_ENVIRONMENT = MappingProxyType(
  {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_LOG_DIR': 'disabled',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # Several may compile at once: no chip is in use.
  }
)
_FORM = re.compile(r'(?:(\d+) ?x ?)?(\w+):(\d+(?:x\d+){1,2})')
_MOST_SLICES = 256


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of TPU.

  Attributes:
    memory_gib: of 2**30 bytes that XLA gives to a program, as libtpu 0.0.42 says where one asks for
      too much; the rest of the 16, 32 or 96 GiB is its own.
    peak_tflops: 1e12 bfloat16 operations a second, by Google's documentation.
    slices: usual ones.
    options: for libtpu, so that a device is a chip.
  """

  memory_gib: float
  peak_tflops: float
  slices: tuple[str, ...]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def memory_bytes(self) -> int:
    return int(self.memory_gib * 2**30)


_PLANE = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBE = (
  '2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16'
)  # fmt: skip
CHIPS = {
  'v4': Chip(30.75, 275.0, _CUBE, {'chip_config_name': 'megacore'}),
  'v5e': Chip(15.75, 197.0, _PLANE),
  'v5p': Chip(95.74, 459.0, _CUBE, {'chip_config_name': 'megacore'}),
  'v6e': Chip(31.25, 918.0, _PLANE),
}


@dataclasses.dataclass(frozen=True)
class TopologyName:
  """What `topology` says, e.g. '4x v5e:8x8': four slices of 64 chips."""

  chip: str
  shape: str
  slices: int

  def __str__(self) -> str:
    return f'{f"{self.slices}x " if self.slices > 1 else ""}{self.chip}:{self.shape}'


def parse_topology(text: str) -> TopologyName:
  """Returns the parts of a topology's name.

  Raises:
    UserError: it has another form, or no such chip is known.
  """
  match = _FORM.fullmatch(text.strip())
  if not match:
    raise UserError(
      f"topology is {text!r}; expected CHIP:SHAPE such as 'v5e:8x8' or 'v5p:4x4x8', or several "
      "slices, '4x v5e:8x8'."
    )
  slices, chip, shape = match.groups()
  if chip not in CHIPS:
    raise unknown_choice('topology: the chip', chip, CHIPS)
  if not 1 <= int(slices or 1) <= _MOST_SLICES:
    raise UserError(f'topology is {text!r}; expected 1 to {_MOST_SLICES} slices.')
  return TopologyName(chip, shape, int(slices or 1))


def topology_devices(name: TopologyName) -> list[jax.Device]:
  """Returns the devices of a topology, for compiling only, slice after slice.

  Raises:
    UserError: libtpu is not installed or cannot be loaded, or has no such slice.
  """
  if not importlib.util.find_spec('libtpu'):
    raise UserError(f'compiling for {name} needs libtpu, which is not installed: {INSTALL}')
  _warn_of_another_libtpu()
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  chip = CHIPS[name.chip]
  options = dict(chip.options) | ({'num_slices': name.slices} if name.slices > 1 else {})
  try:
    return list(
      topologies.get_topology_desc(
        platform='tpu', topology_name=f'{name.chip}:{name.shape}', **options
      ).devices
    )
  except jax.errors.JaxRuntimeError as error:
    raise UserError(_refusal(name, chip, str(error))) from error
  except (RuntimeError, OSError) as error:  # A library of another machine, a broken install.
    raise UserError(f'libtpu cannot be used ({error}): {INSTALL}') from error


def libtpu_version() -> str:
  """Returns the version of libtpu, whose compiler decides about memory and collectives; '' without."""
  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return ''


def _warn_of_another_libtpu() -> None:
  wanted = ' '.join(importlib.metadata.requires('jax') or ())
  made_for = re.search(r'libtpu==([\d.]+)\.\*', wanted)
  if made_for and not f'{libtpu_version()}.'.startswith(f'{made_for[1]}.'):
    logging.warning(
      'libtpu is %s, and jax %s is made for %s: what is compiled may differ, or not be read. %s',
      libtpu_version(),
      jax.__version__,
      made_for[1],
      INSTALL,
    )


def _refusal(name: TopologyName, chip: Chip, message: str) -> str:
  chips = lambda shape: math.prod(map(int, shape.split('x')))
  near = min(chip.slices, key=lambda shape: abs(math.log(chips(shape) / max(1, chips(name.shape)))))
  return (
    f"topology is '{name}', which libtpu refuses ({message.removeprefix('INVALID_ARGUMENT: ')}). "
    f"Nearest: '{name.chip}:{near}'. Usual ones: {', '.join(chip.slices)}."
  )

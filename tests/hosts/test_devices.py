"""What is known of devices, and threads for virtual ones."""

import os
from unittest import mock

import jax
import pytest

from desloc_jax.errors import UserError
from desloc_jax.hosts import aside, platforms
from desloc_jax.hosts.devices import peak_flops
from desloc_jax.hosts.platforms import give_threads_to_collectives


@pytest.mark.parametrize(
  ('kind', 'tflops'),
  [
    ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA H100 PCIe', 756),
    ('TPU v5 lite', 197),
    ('TPU v5', 459),
  ],
)
def test_peaks_are_found_by_the_kind_of_device(kind, tflops):
  assert peak_flops(kind) == tflops * 1e12


def test_the_peak_of_a_cpu_is_not_known():
  assert peak_flops('cpu') is None


@pytest.mark.parametrize(('devices', 'threads'), [(1, None), (2, '8'), (8, '32')])
def test_virtual_devices_get_more_threads(monkeypatch, devices, threads):
  monkeypatch.setenv('XLA_FLAGS', f'--xla_force_host_platform_device_count={devices}')
  monkeypatch.setenv('NPROC', '')
  monkeypatch.delenv('NPROC')
  give_threads_to_collectives()
  assert os.environ.get('NPROC') == threads


@pytest.mark.parametrize(('devices', 'threads'), [(2, '3'), (3, '10')])
def test_a_device_that_is_set_aside_adds_two_threads_to_the_cores(monkeypatch, devices, threads):
  """Of the process, not of the machine: more would take them from its steps."""
  monkeypatch.setattr(aside, '_is_set', True)
  monkeypatch.setattr(platforms, 'virtual_devices', lambda: devices)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {5}, raising=False)
  monkeypatch.setenv('NPROC', '')
  monkeypatch.delenv('NPROC')
  give_threads_to_collectives()
  assert os.environ.get('NPROC') == threads


def test_a_number_of_threads_that_is_set_stays(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
  monkeypatch.setenv('NPROC', '5')
  give_threads_to_collectives()
  assert os.environ['NPROC'] == '5'


def test_a_device_that_cannot_be_used_is_told_in_a_line(monkeypatch):
  """On a machine with a TPU that another process has."""
  error = RuntimeError(
    "Unable to initialize backend 'tpu': it is in use by process 7\nstack\nstack"
  )
  config = mock.Mock(spec=['jax_platforms'], jax_platforms=None)
  devices = mock.Mock(side_effect=error)
  monkeypatch.setattr(platforms, 'jax', mock.Mock(config=config, devices=devices))
  with pytest.raises(UserError, match="JAX finds no devices: .* 'tpu': it is in use by process 7$"):
    platforms.check_platforms()


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    (jax.disable_jit(), 'JAX_DISABLE_JIT is True, with which no run can be made; unset it'),
    (jax.debug_nans(True), 'JAX_DEBUG_NANS is True'),
    (jax.numpy_rank_promotion('raise'), 'JAX_NUMPY_RANK_PROMOTION is raise'),
    (jax.numpy_dtype_promotion('strict'), 'JAX_NUMPY_DTYPE_PROMOTION is strict'),
  ],
)
def test_settings_of_jax_with_which_no_run_can_be_made_are_refused(setting, message):
  platforms.check_platforms()
  with setting, pytest.raises(UserError, match=message):
    platforms.check_platforms()

"""What XLA makes of a training step: cross-worker collectives in conditionals and nowhere else."""

import re

import pytest

from desloc_jax.optimizer.hlo import Collective, read_collectives
from desloc_jax.train.job import make_job
from tests.runs import small_config


@pytest.fixture(scope='module')
def job(text):
  """4 workers on 8 devices: each worker is shared by two."""
  return make_job(small_config(text))


def worker_of_device(job):
  owners = {}
  for worker, devices in enumerate(job.mesh.devices):
    owners |= {device.id: worker for device in devices}
  return [owners[i] for i in range(len(owners))]


def test_cross_worker_collectives_are_in_conditionals(job):
  assert dict(job.mesh.shape) == {'workers': 4, 'fsdp': 2}
  text = job.train_step.as_text()
  collectives = read_collectives(text)
  across = [c for c in collectives if c.crosses(worker_of_device(job))]
  assert re.search(r' conditional\(', text)
  assert across and all(c.conditional for c in across)
  assert {c.opcode for c in across} == {'all-reduce'}


def test_inside_a_worker_every_step_communicates(job):
  """The check above can tell: FSDP's own collectives are unconditional and stay in the worker."""
  inside = [
    c for c in read_collectives(job.train_step.as_text()) if not c.crosses(worker_of_device(job))
  ]
  assert any(not c.conditional for c in inside)


def test_each_device_sends_its_own_shard_only(job):
  across = [
    c for c in read_collectives(job.train_step.as_text()) if c.crosses(worker_of_device(job))
  ]
  payload = sum(job.ledger.bytes_per_sync.values())
  assert sum(c.result_bytes for c in across) == pytest.approx(payload / 2, rel=0.01)


def test_all_leaves_of_a_quantity_go_together(job):
  """XLA combines the leaves of one average: of parameters, mu and nu, of the health check's vote,
  and of the moments for workers that restart.
  """
  across = [
    c for c in read_collectives(job.train_step.as_text()) if c.crosses(worker_of_device(job))
  ]
  assert len(across) == 5
  assert all(c.conditional for c in across)


HLO = """HloModule m, num_partitions=4
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}
%yes (p: f32[8]) -> f32[8] {
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%p), replica_groups={GROUPS}, to_apply=%sum
}
%no (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8] parameter(0)
}
%body (p: f32[8]) -> f32[8] {
  ROOT %g = (bf16[4]{0}, f32[2,3]{1,0}) all-gather-start(%p), replica_groups=[2,2]<=[4]
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %w = f32[8] while(%x), condition=%no, body=%body
  ROOT %c = f32[8] conditional(%i, %x, %x), branch_computations={%no, %yes}
}
"""


@pytest.mark.parametrize(
  ('printed', 'groups'),
  [
    ('{{0,2},{1,3}}', ((0, 2), (1, 3))),
    ('[2,2]<=[4]', ((0, 1), (2, 3))),
    ('[2,2]<=[2,2]T(1,0)', ((0, 2), (1, 3))),
    ("mesh['workers'=2,'fsdp'=2] {'workers'}", ((0, 2), (1, 3))),
    ("mesh['workers'=2,'fsdp'=2] {'fsdp'}", ((0, 1), (2, 3))),
    ('{}', ((0, 1, 2, 3),)),
  ],
)
def test_every_printed_form_of_groups_is_read(printed, groups):
  text = HLO.replace('replica_groups={GROUPS}', f'replica_groups={printed}')
  found = read_collectives(text)
  assert Collective('all-reduce', 32, groups, conditional=True) in found
  assert Collective('all-gather', 32, ((0, 1), (2, 3)), conditional=False) in found


def test_crossing_is_decided_by_the_workers_of_a_group():
  collective = Collective('all-reduce', 4, ((0, 1), (2, 3)), conditional=False)
  assert not collective.crosses([0, 0, 1, 1])
  assert collective.crosses([0, 1, 0, 1])

"""What XLA makes of a training step: cross-worker collectives in conditionals and nowhere else."""

import re

import pytest

from desloc_jax.programs.hlo import Collective, read_collectives
from desloc_jax.train.job import make_job
from tests.runs import small_config


@pytest.fixture(scope='module')
def job(text):
  """4 workers on 8 devices: each worker is shared by two."""
  return make_job(small_config(text, **{'model.remat': 'dots'}))  # With it blocks are in a loop.


def worker_of_device(job):
  owners = {}
  for worker, devices in enumerate(job.program.mesh.devices):
    owners |= {device.id: worker for device in devices}
  return [owners[i] for i in range(len(owners))]


def test_cross_worker_collectives_are_in_conditionals(job):
  assert dict(job.program.mesh.shape) == {'workers': 4, 'fsdp': 2}
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
  and, for workers that restart, of the moments; their counts, which are no floats, go by themselves.
  """
  across = [
    c for c in read_collectives(job.train_step.as_text()) if c.crosses(worker_of_device(job))
  ]
  assert len(across) == 6
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
%layer (p: f32[8]) -> f32[8] {
  ROOT %g = (bf16[4]{0}, f32[2,3]{1,0}) all-gather-start(%p), replica_groups=[2,2]<=[4]
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %w = f32[8] while(%x), condition=%no, body=%layer
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
  # Of the operand and the result that a start returns the result counts; the loop has no counter.
  assert Collective('all-gather', 24, ((0, 1), (2, 3)), conditional=False, times=None) in found


def test_crossing_is_decided_by_the_workers_of_a_group():
  collective = Collective('all-reduce', 4, ((0, 1), (2, 3)), conditional=False)
  assert not collective.crosses([0, 0, 1, 1])
  assert collective.crosses([0, 1, 0, 1])


# What libtpu 0.0.42 made of gpt_1b on v5e:8x8, with fewer layers, devices and operands, and without
# layouts: a loop over layers, in it the all-gather of a norm's scale in three pieces, and a matmul
# in which the weights go around a ring both ways; then the sum of a gradient of which each device
# keeps a part.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4
%fused_computation.954 (param_0.3237: f32[1,1,128]) -> (f32[1,1,128], f32[1,1,256], s32[2]) {
  %param_0.3237 = f32[1,1,128]{2,1,0:T(1,128)S(1)} parameter(0)
  %all-gather.140 = f32[1,1,256]{2,1,0:T(1,128)} all-gather(%param_0.3237), channel_id=222, replica_groups=[2,2]<=[4], dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="4"}
  ROOT %custom-call.137 = (f32[1,1,128]{2,1,0}, f32[1,1,256]{2,1,0}, s32[2]{0:S(4)}) custom-call(%all-gather.140), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.898 (param_0.3242: f32[1,1,128]) -> f32[1,1,256] {
  ROOT %all-gather.142 = f32[1,1,256]{2,1,0:T(1,128)S(1)} all-gather(%param_0.3242), channel_id=222, replica_groups=[2,2]<=[4], dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="4"}
}
%wide.windowed_dot_general_cond_ag (wide.param: (bf16[256,384], bf16[256,384], u32[])) -> pred[] {
  %constant.17877 = u32[]{:T(128)} constant(8)
  %wide.param = (bf16[256,384]{1,0}, bf16[256,384]{1,0}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.4123 = u32[]{:T(128)} get-tuple-element(%wide.param), index=2
  ROOT %compare.71 = pred[]{:T(512)} compare(%get-tuple-element.4123, %constant.17877), direction=LT
}
%wide.windowed_dot_general_body_ag.sunk (wide.param.23: (bf16[256,384], bf16[256,384], u32[])) -> (bf16[256,384], bf16[256,384], u32[]) {
  %wide.param.23 = (bf16[256,384]{1,0}, bf16[256,384]{1,0}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.5204 = bf16[256,384]{1,0} get-tuple-element(%wide.param.23), index=0
  %get-tuple-element.5206 = bf16[256,384]{1,0} get-tuple-element(%wide.param.23), index=1
  %get-tuple-element.5207 = u32[]{:T(128)} get-tuple-element(%wide.param.23), index=2
  %constant.18146..sunk3 = u32[]{:T(128)} constant(2)
  %collective-permute.231 = bf16[256,384]{1,0} collective-permute(%get-tuple-element.5204), channel_id=5, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}, metadata={op_name="qkv/dot_general"}
  %collective-permute.233 = bf16[256,384]{1,0} collective-permute(%get-tuple-element.5206), channel_id=6, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}, metadata={op_name="qkv/dot_general"}
  %add.3323 = u32[]{:T(128)} add(%get-tuple-element.5207, %constant.18146..sunk3)
  ROOT %tuple.838 = (bf16[256,384]{1,0}, bf16[256,384]{1,0}, u32[]{:T(128)}) tuple(%collective-permute.231, %collective-permute.233, /*index=2*/%add.3323)
}
%wide.region_6.6_spmd.clone (wide.param.189: (s32[], bf16[256,384])) -> pred[] {
  %constant.612.clone.4 = s32[]{:T(128)} constant(24)
  %wide.param.189 = (s32[]{:T(128)}, bf16[256,384]{1,0}) parameter(0)
  %get-tuple-element.4696 = s32[]{:T(128)} get-tuple-element(%wide.param.189), index=0
  ROOT %lt.169 = pred[]{:T(512)} compare(%get-tuple-element.4696, %constant.612.clone.4), direction=LT
}
%wide.region_1.5_spmd.clone (wide.param.190: (s32[], bf16[256,384])) -> (s32[], bf16[256,384]) {
  %wide.param.190 = (s32[]{:T(128)}, bf16[256,384]{1,0}) parameter(0)
  %get-tuple-element.5926 = s32[]{:T(128)} get-tuple-element(%wide.param.190), index=0
  %fusion.685 = bf16[256,384]{1,0} get-tuple-element(%wide.param.190), index=1
  %constant.18418..sunk2 = u32[]{:T(128)} constant(0)
  %constant.18419 = s32[]{:T(128)} constant(1)
  %copy.696 = u32[]{:T(128)} copy(%constant.18418..sunk2)
  %all-gather-start.1 = (f32[1,1,128]{2,1,0}, f32[1,1,256]{2,1,0}, s32[2]{0:S(4)}) fusion(%fusion.685), kind=kCustom, calls=%fused_computation.954
  %all-gather-done.1 = f32[1,1,256]{2,1,0} fusion(%all-gather-start.1), kind=kCustom, calls=%async_collective_fusion.898
  %collective-permute.187 = bf16[256,384]{1,0} collective-permute(%fusion.685), channel_id=4, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}, metadata={op_name="qkv/dot_general"}
  %tuple.923 = (bf16[256,384]{1,0}, bf16[256,384]{1,0}, u32[]{:T(128)}) tuple(%fusion.685, %collective-permute.187, /*index=2*/%copy.696)
  %while.564 = (bf16[256,384]{1,0}, bf16[256,384]{1,0}, u32[]{:T(128)}) while(%tuple.923), condition=%wide.windowed_dot_general_cond_ag, body=%wide.windowed_dot_general_body_ag.sunk, metadata={op_name="qkv/dot_general"}
  %add.1 = s32[]{:T(128)} add(%get-tuple-element.5926, %constant.18419)
  ROOT %tuple.924 = (s32[]{:T(128)}, bf16[256,384]{1,0}) tuple(%add.1, %fusion.685)
}
%all-reduce-scatter.clone.1 (input.2: f32[512,256]) -> f32[256,256] {
  %input.2 = f32[512,256]{1,0:T(8,128)} parameter(0)
  %all-reduce.208 = f32[512,256]{1,0:T(8,128)} all-reduce(%input.2), channel_id=180, replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%region_28.28.clone
  ROOT %dynamic-slice.15594 = f32[256,256]{1,0:T(8,128)} dynamic-slice(%all-reduce.208, %multiply.299, %constant.18365), dynamic_slice_sizes={256,256}
}
%average (p.1: f32[256,256]) -> f32[256,256] {
  ROOT %psum.246 = f32[256,256]{1,0} all-reduce(%p.1), channel_id=1, replica_groups={{0,2},{1,3}}, use_global_device_ids=true, to_apply=%region_74.75
}
%keep (p.2: f32[256,256]) -> f32[256,256] {
  ROOT %p.2 = f32[256,256]{1,0} parameter(0)
}
ENTRY %main.180_spmd (param.1: bf16[256,384]) -> f32[256,256] {
  %param.1 = bf16[256,384]{1,0} parameter(0)
  %constant.1 = s32[]{:T(128)} constant(0)
  %tuple.1067 = (s32[]{:T(128)}, bf16[256,384]{1,0}) tuple(%constant.1, %param.1)
  %while.1 = (s32[]{:T(128)}, bf16[256,384]{1,0}) while(%tuple.1067), condition=%wide.region_6.6_spmd.clone, body=%wide.region_1.5_spmd.clone, metadata={op_name="jvp(GPT)/while"}
  %fusion.1 = f32[256,256]{1,0} fusion(%while.1), kind=kCustom, calls=%all-reduce-scatter.clone.1
  ROOT %conditional.7 = f32[256,256]{1,0} conditional(%c, %fusion.1, %fusion.1), branch_computations={%keep, %average}
}
"""


def test_collectives_of_a_tpu_are_read():
  found = read_collectives(TPU)
  pairs, across = ((0, 1), (2, 3)), ((0, 2), (1, 3))
  both_ways = ((0, 1), (1, 0), (2, 3), (3, 2))
  shard = 256 * 384 * 2
  # (8 - 0) / 2 trips of the ring in each of 24 layers, and one permute before it.
  ring = [Collective('collective-permute', shard, both_ways, False, 4 * 24, 'all-gather')] * 2
  first = Collective('collective-permute', shard, both_ways, False, 24, 'all-gather')
  assert found == [
    Collective('all-gather', 1024, pairs, False, 24),
    *ring,
    first,
    Collective('reduce-scatter', 256 * 256 * 4, pairs, False, 1),
    Collective('all-reduce', 256 * 256 * 4, across, True, 1),
  ]


@pytest.mark.parametrize(
  ('opcode', 'sent'),
  [
    ('all-gather', 75),
    ('all-to-all', 75),
    ('all-reduce', 150),
    ('reduce-scatter', 300),
    ('collective-permute', 100),
  ],
)
def test_what_a_device_sends_in_a_ring_of_four(opcode, sent):
  assert Collective(opcode, 100, ((0, 1, 2, 3), (4, 5, 6, 7)), False).sent_bytes == sent


def test_averages_between_slices_go_through_the_hosts():
  """What libtpu 0.0.42 makes of an average over 4 slices; the program is that of one of them."""
  attributes = (
    '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous='
    '"psum.246_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3,4}x{0:1}",'
    '_xla_megascale_transfer_type="ALL_REDUCE"'
  )
  send = (
    '%send.1 = (f32[57,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%bitcast.2, %after-all.1), '
    f'channel_id=12, is_host_transfer=true, frontend_attributes={{{attributes}}}'
  )
  text = HLO.replace('num_partitions=4', 'num_partitions=2').replace(
    '%all-reduce.1 = f32[8]{0} all-reduce(%p), replica_groups={GROUPS}, to_apply=%sum', send
  )
  assert read_collectives(text)[0] == Collective(
    'all-reduce', 57 * 8 * 128 * 4, ((0, 2, 4, 6), (1, 3, 5, 7)), conditional=True
  )


def test_the_trips_of_a_loop_are_those_that_xla_notes():
  noted = TPU.replace(
    'body=%wide.region_1.5_spmd.clone,',
    'body=%wide.region_1.5_spmd.clone, backend_config={"known_trip_count":{"n":"3"}},',
  )
  assert read_collectives(noted)[0].times == 3


def test_loops_of_the_step_are_counted(job):
  """Gradients of 2 layers, each in a trip of the loop over layers."""
  inside = [
    c for c in read_collectives(job.train_step.as_text()) if not c.crosses(worker_of_device(job))
  ]
  assert any(c.times == job.program.model.layers for c in inside)
  assert all(c.times for c in inside)

"""torchft's DiLoCo: a process for each worker, a lighthouse, Gloo between them.

python -m experiments.systems.peers.torchft_diloco toy TOKENS.npy
"""

from datetime import timedelta
from importlib import metadata
import logging
import os
import sys

import numpy as np
import torch
from torch import distributed as dist
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo
from torchft.manager import Manager
from torchft.process_group import ProcessGroupGloo

from experiments.systems.peers import task as tasks
from experiments.systems.peers.running import Running
from experiments.systems.peers.torch_gpt import adamw, GPT, train

_WAIT = timedelta(minutes=10)  # Other programs have their turns.


class Counting(ProcessGroupGloo):
  """Counts the bytes that are handed to it to be added up."""

  payload_bytes = 0

  def allreduce(self, tensors, opts):
    self.payload_bytes += sum(tensor.nbytes for tensor in tensors)
    return super().allreduce(tensors, opts)


def replica(index: int, lighthouse: str) -> None:
  """Is one worker."""
  task, tokens = tasks.arguments()
  torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // task.workers))
  torch.manual_seed(0)
  model = GPT(task)
  inner = adamw(model)
  outer = torch.optim.SGD(
    model.parameters(), tasks.OUTER_LEARNING_RATE, momentum=tasks.OUTER_MOMENTUM, nesterov=True
  )
  store = dist.TCPStore('localhost', 0, is_master=True, wait_for_workers=False)
  group = Counting(timeout=_WAIT)
  everything = {'model': model, 'inner': inner, 'outer': outer}
  manager = Manager(
    pg=group,
    min_replica_size=task.workers,
    use_async_quorum=False,  # DiLoCo asks for it.
    load_state_dict=lambda state: [everything[name].load_state_dict(state[name]) for name in state],
    state_dict=lambda: {name: part.state_dict() for name, part in everything.items()},
    replica_id=f'worker{index}',
    store_addr='localhost',
    store_port=store.port,
    rank=0,
    world_size=1,
    lighthouse_addr=lighthouse,
    timeout=_WAIT,
    quorum_timeout=_WAIT,
  )
  batches = tokens[:, index].astype(np.int64)
  with DiLoCo(manager, [model], inner, outer, task.period):
    steps = train(model, inner, batches)
    steps(0, task.period)  # Up to the first average, whose bytes are counted.
    about = {'payload_bytes': group.payload_bytes}
    tasks.serve(about, lambda first, count: steps(first + task.period, count))
  manager.shutdown()


def main() -> None:
  task, _ = tasks.arguments()
  server = LighthouseServer(bind='127.0.0.1:0', min_replicas=task.workers, join_timeout_ms=60_000)
  command = [sys.executable, '-m', __spec__.name, *sys.argv[1:3]]
  workers = [Running([*command, str(index), server.address()]) for index in range(task.workers)]
  first = [worker.listen() for worker in workers]
  versions = f'torch {torch.__version__}, torchft {metadata.version("torchft")}'
  start_s = max(about['start_s'] for about in first)
  tasks.say({'versions': versions, **first[0], 'start_s': start_s})
  for line in sys.stdin:
    for worker in workers:
      worker.ask(int(line))
    answers = [worker.listen() for worker in workers]
    tasks.say(
      {
        'seconds': max(answer['seconds'] for answer in answers),
        'loss': float(np.mean([answer['loss'] for answer in answers])),
        'memory_bytes': sum(answer['memory_bytes'] for answer in answers),
      }
    )
  for worker in workers:
    worker.end()
  server.shutdown()


if __name__ == '__main__':
  logging.disable(logging.WARNING)
  if len(sys.argv) > 3:
    replica(int(sys.argv[3]), sys.argv[4])
  else:
    main()

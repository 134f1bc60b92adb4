"""How many tokens a step takes, and in which shape: worked out once, by `make_clock`."""

import dataclasses

from ml_collections import config_dict


@dataclasses.dataclass(frozen=True)
class Batch:
  """What all workers read in a step.

  Attributes:
    workers: W.
    worker_sequences: that each worker takes in a step.
    micro_batches: that these are split into, one after another.
    seq_len: tokens of a sequence.
  """

  workers: int
  worker_sequences: int
  micro_batches: int
  seq_len: int

  @property
  def sequences(self) -> int:
    """Sequences of a micro-batch of one worker."""
    return self.worker_sequences // self.micro_batches

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """[workers, micro-batches, sequences, seq_len + 1], of tokens with the next one of each."""
    return self.workers, self.micro_batches, self.sequences, self.seq_len + 1

  @property
  def tokens(self) -> int:
    """Tokens of all workers in a step."""
    return self.workers * self.worker_sequences * self.seq_len


def batch_of(config: config_dict.ConfigDict) -> Batch:
  """Returns the batch of a configuration."""
  sequences = config.global_batch_size // config.workers or config.batch_size
  return Batch(config.workers, sequences, config.accumulation, config.seq_len)

"""What tests of random input share: a run ends in success, or in one line and exit code 2.

What a user may give is drawn at random, always the same in each run of the tests. Nothing may
raise, touch a file that is not the run's, or unpickle.
"""

import contextlib
import copy
import io
import itertools
import json
import os

from hypothesis import HealthCheck, settings, strategies as st

from desloc_jax import data as data_lib
from desloc_jax.data import prepare, sources
from desloc_jax.train import cli

ROWS = [{'id': f'd{i}', 'year': 1900 + i, 'text': f'the state of the union {i} ' * 5}
        for i in range(30)]  # fmt: skip
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS).encode()
JUNK = [None, True, -1, 0, 2**31, 2**64, 10**30, 1.5, float('nan'), '', 'x', '../../precious',
        '/etc/passwd', '\0', 'a' * 5000, [], {}, [1], {'a': 1}, [['a', 'b']]]  # fmt: skip
pieces = st.sampled_from(
  [b'"', b'[', b'{', b'}', b'\n', b'\0', b'\xff', b'null', b'1e999', b'9' * 5000, b'[' * 100_000]
)


def fuzz(examples):
  """Returns hypothesis settings: the same examples in each run, as long as they take."""
  return settings(
    max_examples=examples,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
  )


def ending(action, codes=(2,)):
  """Runs `action` as run.py would; returns the line it ends with, '' if that is in success."""
  errors = io.StringIO()
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
    try:
      cli.exit_with_one_line(lambda argv: action())([])
      return ''
    except SystemExit as stop:
      assert stop.code in codes, (stop.code, errors.getvalue())
  *above, line = errors.getvalue().removesuffix('\n').split('\n')
  assert line.startswith('error: '), errors.getvalue()
  assert not [text for text in above if 'step/s' not in text], above  # A progress bar.
  return line


def contents(folder):
  """Returns path -> bytes of all files below a folder, links as where they point."""
  read = lambda path: os.readlink(path) if path.is_symlink() else path.read_bytes()
  return {p: p.is_symlink() or not p.is_dir() and read(p) for p in sorted(folder.rglob('*'))}


@st.composite
def damaged(draw, content):
  """Bytes of a file that was cut off, changed in a few places, or replaced."""
  if draw(st.integers(0, 9)) == 0:
    return draw(st.binary(max_size=100))
  for _ in range(draw(st.integers(1, 3))):
    place = draw(st.integers(0, len(content)) | st.integers(0, 16) | st.integers(-16, -1))
    new = draw(st.binary(max_size=4) | pieces | st.just(None))
    if new is None:
      content = content[:place]
    else:
      content = content[:place] + new + content[place:][draw(st.integers(0, 4)) :]
  return content


@st.composite
def changed_json(draw, content):
  """Parsed JSON of which a part was replaced or taken out."""
  content = copy.deepcopy(content)
  node = content
  while True:
    key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if not (isinstance(node[key], dict | list) and node[key]) or draw(st.integers(0, 2)) == 0:
      break
    node = node[key]
  if draw(st.booleans()):
    node[key] = draw(st.sampled_from(JUNK))
  else:
    del node[key]
  return content


def try_data(path, tokenizer='bytes', where=''):
  """Returns the line in which reading a source ends, '' if all of it can be read."""
  sources._tokenise.cache_clear()

  def read():
    loaded = data_lib.load_tokenizer(str(tokenizer))
    spec = data_lib.SourceSpec('text', str(path))
    open_split = lambda split: data_lib.open_source(str(path), loaded, split, 8, 0.2, where)
    train, validation = ([(spec, open_split(split))] for split in ('train', 'validation'))
    data_lib.fingerprint(train + validation)
    for _, packed in train + validation:
      for i in range(len(packed)):
        packed[i]
      assert packed.text_bytes > 0
    stream = data_lib.TrainingStream(train, workers=2, batch_size=2, seed=0)
    list(itertools.islice(stream.iterator(0, prefetch=0), 2))
    held_out = data_lib.Validation(validation, loaded, 4)
    assert len(list(held_out.batches(2, 2))) == 1 and held_out.bytes_per_token >= 0

  return ending(read)


def prepare_lines(folder):
  """Prepares `LINES` in a folder, and returns where the tokens are."""
  (folder / 'text.jsonl').write_bytes(LINES)
  prepare.prepare(str(folder / 'text.jsonl'), str(folder / 'tokens'), 'bytes', 0.2, 1000)
  return folder / 'tokens'

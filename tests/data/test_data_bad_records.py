"""Records that cannot be used are counted and named, and left out where that is asked for."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from desloc_jax.data import load_tokenizer, open_source, prepare, read_documents
from desloc_jax.data.reading.bad_records import BadRecords
from desloc_jax.errors import UserError

GOOD = [json.dumps({'text': f'text {i}', 'year': i}) for i in range(300)]
BAD = {
  '{"text": null}': r'a\.jsonl:3: text is None, expected a text',
  '{"text": "\\ud83d"}': r'a\.jsonl:3: text is not Unicode',
  '{"text": ["a"]}': r"a\.jsonl:3: text is \['a'\]",
  '{"txt": "a"}': r"a\.jsonl:3: field 'text' is unknown",
  '{"text": "a': r'a\.jsonl, line 3 is not JSON',
  '[1]': r'a\.jsonl, line 3 is a JSON list',
  'null': r'a\.jsonl, line 3 is a JSON NoneType',
  '\udcff': r'a\.jsonl, line 3 is not UTF-8',
}


def write(folder, *bad, name='a.jsonl'):
  lines = [*GOOD[:2], *bad, *GOOD[2:]]
  (folder / name).write_bytes('\n'.join(lines).encode('utf-8', 'surrogateescape'))
  return str(folder / name)


@pytest.mark.parametrize('bad', BAD)
def test_one_bad_record_is_named_or_left_out(tmp_path, bad):
  path = write(tmp_path, bad)
  with pytest.raises(UserError, match=f'1 of 301 records .* cannot be used: .*{BAD[bad]}') as error:
    list(read_documents(path))
  assert '--on_bad=skip' in str(error.value) and 'data.on_bad=skip' in str(error.value)
  told = []
  kept = [d.text for d in read_documents(path, on_bad='skip', tell=told.append)]
  assert kept == [f'text {i}' for i in range(300)]
  assert len(told) == 1 and '1 of 301 records cannot be used and are left out' in told[0]


def test_all_are_counted_and_the_first_are_named(tmp_path):
  path = write(tmp_path, *BAD)
  for on_bad in ('error', 'skip'):
    told = []
    try:
      list(read_documents(path, on_bad=on_bad, tell=told.append))
    except UserError as error:
      told.append(str(error))
    assert len(told) == 1 and '8 of 308 records' in told[0] and 'and 5 more' in told[0]
    assert 'a.jsonl:3:' in told[0] and 'a.jsonl:5:' in told[0] and 'a.jsonl:6' not in told[0]


def test_only_few_may_be_left_out(tmp_path):
  path = write(tmp_path, *['{"text": null}'] * 11)
  with pytest.raises(UserError, match='11 of 311 .*At most 1% of them, or 10, can be left out'):
    list(read_documents(path, on_bad='skip'))
  bad = BadRecords('x', 'skip')
  for i in range(2000):
    bad.count_record()
    if i < 20:
      bad.add(UserError(f'record {i}'))
  assert '20 of 2,000' in bad.finish()
  with pytest.raises(UserError, match='can be left out'):  # Long before the end.
    for _ in range(1000):
      bad.count_record()
      bad.add(UserError('record'))
  with pytest.raises(UserError, match="'skpi' is unknown. Did you mean 'skip'"):
    list(read_documents(path, on_bad='skpi'))


def test_where_and_tables(tmp_path):
  rows = [{'text': 'a', 'year': 1}, {'text': None, 'year': 2}, {'text': 'c', 'year': None}]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'a.parquet')
  path = str(tmp_path / 'a.parquet')
  options = dict(on_bad='skip', tell=lambda line: None)
  assert [d.text for d in read_documents(path, **options)] == ['a', 'c']
  assert [d.text for d in read_documents(path, 'year:0-9', **options)] == ['a']
  with pytest.raises(UserError, match=r'2 of 3 records .*parquet:1: text is None.*parquet:2: year'):
    list(read_documents(path, 'year:0-9'))


@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl', 'a.json'])
@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be', 'utf-32'])
def test_other_unicode_is_refused_in_words(tmp_path, name, encoding):
  mark = '\ufeff' if encoding == 'utf-16-be' else ''
  (tmp_path / name).write_bytes((mark + GOOD[0]).encode(encoding))
  with pytest.raises(UserError, match='byte order mark of UTF-16 or UTF-32, expected UTF-8'):
    list(read_documents(str(tmp_path)))


@pytest.mark.parametrize('processes', [1, 2])
def test_prepare_leaves_out_and_says_so(tmp_path, capsys, processes):
  path = write(tmp_path, '{"text": null}', 'no json')
  command = [f'--input={path}', f'--output={tmp_path}/out', '--tokenizer=bytes']
  command += [f'--processes={processes}', '--validation_fraction=0.2']
  with pytest.raises(SystemExit):
    prepare.main(command)
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and '2 of 302 records' in error and '--on_bad=skip' in error
  assert not (tmp_path / 'out' / 'manifest.json').exists()
  prepare.main([*command, '--on_bad=skip'])
  captured = capsys.readouterr()
  assert '2 of 302 records cannot be used and are left out' in captured.err
  write(tmp_path, name='good.jsonl')
  again = [f'--input={tmp_path}/good.jsonl', f'--output={tmp_path}/good', *command[2:]]
  prepare.main(again)
  assert capsys.readouterr().out == captured.out
  for name in ('train', 'validation'):
    file = f'{name}_00000.npy'
    assert (tmp_path / 'out' / file).read_bytes() == (tmp_path / 'good' / file).read_bytes()


def test_a_run_reads_text_so_too(tmp_path):
  path = write(tmp_path, '{"text": null}')
  arguments = (path, load_tokenizer('bytes'), 'train', 8, 0.2)
  with pytest.raises(UserError, match='1 of 301 records'):
    open_source(*arguments)
  assert len(open_source(*arguments, on_bad='skip')) > 100

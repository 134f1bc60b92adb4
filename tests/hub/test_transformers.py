"""Exported folders as transformers loads them; skipped where requirements-export.txt is not installed."""

import json

import pytest

from desloc_jax.errors import UserError
from desloc_jax.hub import check, export
from tests.stored_models import KINDS, random_model

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


@pytest.mark.parametrize('kind', KINDS)
def test_logits_are_ours(kind, tmp_path):
  stored = random_model(**KINDS[kind])
  export.export(stored, tmp_path / 'out', shard_bytes=50_000, check=True)
  assert check.check_folder(stored, tmp_path / 'out', 'float32').same == 1


@pytest.mark.parametrize('kind', ['llama', 'apertus', 'qwen3'])
def test_a_difference_is_noticed(kind, tmp_path):
  stored = random_model(**KINDS[kind])
  export.export(stored, tmp_path / 'out')
  path = tmp_path / 'out' / 'config.json'
  content = json.loads(path.read_bytes())
  content['rope_theta'] = content['rope_parameters']['rope_theta'] = 500.0
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match='That is no rounding'):
    check.check_folder(stored, tmp_path / 'out', 'float32')


def test_bfloat16_is_near_and_gpt2s_tokenizer_is_the_same(tmp_path):
  stored = random_model('gpt2')
  export.export(stored, tmp_path / 'out', dtype='bfloat16', check=True)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out', dtype='auto')
  assert model.dtype.itemsize == 2
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert tokenizer('state of the Union')['input_ids'] == [5219, 286, 262, 4479]
  assert tokenizer.eos_token_id == 50256 == model.generation_config.eos_token_id

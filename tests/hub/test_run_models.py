"""Models of a run's checkpoints, read beside it, and what is told of them."""

import json

import jax
import numpy as np
import pytest

from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.data import load_tokenizer, train_tokenizer
from desloc_jax.errors import UserError
from desloc_jax.hub import opening, run_models, stored
from desloc_jax.hub.export import main
from desloc_jax.logs.metrics import read_metrics
from desloc_jax.logs.workdir import keep_tokenizer


def saved(workdir, name):
  reader = Checkpoints(workdir / 'checkpoints', keep=1)
  with reader.reader(7) as leaves:
    like = reader.leaves(7)[name]
    cpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return np.asarray(leaves.read(name, jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=cpu)))


def test_the_consensus_and_the_mean_of_the_workers_own(seven_steps):
  consensus = run_models.RunModel(seven_steps, 7)
  mean = run_models.RunModel(seven_steps, 7, mean=True)
  for leaf in stored.leaf_names(consensus.config):
    np.testing.assert_array_equal(consensus.read(leaf), saved(seven_steps, f'params.{leaf}'))
    own = saved(seven_steps, f'optimizer.params.{leaf}')
    assert own.shape[0] == 4
    np.testing.assert_allclose(mean.read(leaf), own.mean(0), rtol=1e-5, atol=1e-7)
  assert not np.array_equal(mean.read('embedding'), consensus.read('embedding'))
  assert consensus.seq_len == 32 and consensus.tokenizer.name == 'bytes'


def test_what_is_known_of_a_run(seven_steps):
  about = run_models.open_steps(seven_steps)[0].about
  line = read_metrics(seven_steps)[-1]
  assert about['step'] == 7 and about['method'] == 'desloc' and about['workers'] == 4
  assert about['validation_loss'] == line['val_loss']
  assert about['bytes_sent_per_worker'] == line['bytes_per_worker']
  assert list(about['data']) == ['text']


def test_a_save_in_flight_stays(after_seven_steps, capsys, tmp_path):
  pytest.importorskip('safetensors')
  saving = after_seven_steps / 'checkpoints' / '9.orbax-checkpoint-tmp'
  saving.mkdir()
  files = lambda: {p: p.stat().st_mtime_ns for p in after_seven_steps.rglob('*')}
  before = files()
  main([f'--workdir={after_seven_steps}', f'--output={tmp_path / "out"}'])
  assert files() == before and 'LlamaForCausalLM' in capsys.readouterr().out
  assert json.loads((tmp_path / 'out' / 'provenance.json').read_bytes())['step'] == 7


def test_mistakes_are_one_line(after_seven_steps, tmp_path):
  with pytest.raises(UserError, match='no checkpoint of step 9; it has 7'):
    run_models.open_steps(after_seven_steps, [9])
  with pytest.raises(UserError, match='is no folder of a run'):
    run_models.open_steps(tmp_path / 'nowhere')
  victim = max((after_seven_steps / 'checkpoints' / '7').rglob('*'), key=lambda p: p.stat().st_size)
  victim.write_bytes(victim.read_bytes()[:-1])
  with pytest.raises(UserError, match='step 7 is damaged: .*The other steps: none'):
    run_models.open_steps(after_seven_steps)


def test_the_mean_of_several_models(seven_steps):
  models = [run_models.RunModel(seven_steps, 7), run_models.RunModel(seven_steps, 7, mean=True)]
  mean = stored.Mean(models)
  for leaf in ('embedding', 'blocks.qkv.kernel'):
    expected = np.mean([model.read(leaf) for model in models], axis=0)
    np.testing.assert_allclose(mean.read(leaf), expected, rtol=1e-6, atol=1e-8)
  assert mean.about['averaged_steps'] == [7, 7]
  assert models[0].about['validation_loss'] and not models[1].about['validation_loss']
  assert not mean.about['validation_loss'] and not mean.about['training_loss']


def test_steps_are_read_from_the_command_line(seven_steps):
  assert opening._steps('all', seven_steps) == [7]
  assert opening._steps('9,3,9', seven_steps) == [3, 9]
  with pytest.raises(UserError, match='expected numbers'):
    opening._steps('3;4', seven_steps)


def test_a_tokenizer_that_was_kept_is_read_and_a_changed_one_refused(text, tmp_path):
  texts = (path.read_text() for path in sorted(text.iterdir()))
  path = tmp_path / 'own.json'
  path.write_text(train_tokenizer.train_tokenizer(texts, 300, progress=False).to_str())
  tokenizer = load_tokenizer(str(path))
  keep_tokenizer(tokenizer.file, tmp_path)
  options = {'data.tokenizer': str(path)}
  path.write_text('changed')
  found = run_models.run_tokenizer(tmp_path, options, tokenizer.fingerprint)
  assert found.encode('the people').tolist() == tokenizer.encode('the people').tolist()
  kept = tmp_path / 'tokenizer.json'
  kept.write_text(kept.read_text() + ' ')
  with pytest.raises(UserError, match='is not the tokenizer that'):
    run_models.run_tokenizer(tmp_path, options, tokenizer.fingerprint)

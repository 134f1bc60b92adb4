"""Models written as folders and read again, and folders that are refused."""

import json

import numpy as np
import pytest

from desloc_jax import data
from desloc_jax.data import train_tokenizer
from desloc_jax.errors import UserError
from desloc_jax.hub import export, folders, layouts, tokenizer_folder
from tests.stored_models import KINDS, random_model

safetensors = pytest.importorskip('safetensors')  # Colleagues' environments may lack it.


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_is_read_back_bit_for_bit(kind, tmp_path):
  stored = random_model(**KINDS[kind])
  lines = export.export(stored, tmp_path / 'out', shard_bytes=20_000)
  found = folders.FolderModel(tmp_path / 'out')
  architecture = {
    'llama': 'LlamaForCausalLM', 'apertus': 'ApertusForCausalLM', 'qwen3': 'Qwen3ForCausalLM',
  }[kind.partition('-')[0]]  # fmt: skip
  assert architecture in lines[0]
  for name, leaf in stored.leaves.items():
    np.testing.assert_array_equal(found.read(name), leaf)
  same = ('key_heads', 'head_dim', 'hidden', 'norm_eps', 'rope_base', 'rope_scaling', 'mlp')
  assert [getattr(found.config, n) for n in same] == [getattr(stored.config, n) for n in same]
  assert found.seq_len == 48 and found.tokenizer.fingerprint == stored.tokenizer.fingerprint


def test_large_models_are_cut_into_files_with_an_index(tmp_path):
  export.export(random_model(), tmp_path / 'out', shard_bytes=20_000)
  index = json.loads((tmp_path / 'out' / folders.INDEX_FILE).read_bytes())
  files = sorted(path.name for path in (tmp_path / 'out').glob('*.safetensors'))
  assert sorted(set(index['weight_map'].values())) == files and len(files) > 3
  sizes = {}
  for file in files:
    with safetensors.safe_open(tmp_path / 'out' / file, 'np') as opened:
      assert opened.metadata() == {'format': 'pt'}
      sizes[file] = sum(opened.get_tensor(name).nbytes for name in opened.keys())
      assert {name for name, f in index['weight_map'].items() if f == file} == set(opened.keys())
      assert sizes[file] <= 20_000 or len(opened.keys()) == 1
  assert sum(sizes.values()) == index['metadata']['total_size']


def test_the_files_say_what_other_programs_look_for(tmp_path):
  export.export(random_model(), tmp_path / 'out')
  read = lambda name: json.loads((tmp_path / 'out' / name).read_bytes())
  config = read('config.json')
  assert config['rope_theta'] == config['rope_parameters']['rope_theta'] == 10_000
  assert config['rope_scaling'] is None and config['torch_dtype'] == config['dtype'] == 'float32'
  assert config['max_position_embeddings'] == 48 and config['rms_norm_eps'] == 1e-6
  assert config['tie_word_embeddings'] is True and config['mlp_bias'] is True
  ends = {'bos_token_id': 256, 'eos_token_id': 256}
  generation = read('generation_config.json')
  assert (
    ends.items() <= config.items() and (ends | {'max_length': 48}).items() <= generation.items()
  )
  assert read('tokenizer_config.json')['eos_token'] == '<|endoftext|>'
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert '| run | random |' in card and 'LlamaForCausalLM' in card
  assert not [path for path in tmp_path.iterdir() if path.name != 'out']


@pytest.mark.parametrize('kind', ['bytes', 'gpt2', 'own'])
def test_tokenizers_encode_as_before(kind, tmp_path):
  spec = kind
  if kind == 'own':
    texts = ['the people of the united states'] * 9
    trained = train_tokenizer.train_tokenizer(iter(texts), 300, progress=False)
    content = json.loads(trained.to_str()) | {'padding': None}
    content['post_processor'] = {
      'type': 'TemplateProcessing', 'pair': [], 'special_tokens': {
        '<|endoftext|>': {'id': '<|endoftext|>', 'ids': [0], 'tokens': ['<|endoftext|>']}},
      'single': [{'SpecialToken': {'id': '<|endoftext|>', 'type_id': 0}},
                 {'Sequence': {'id': 'A', 'type_id': 0}}],
    }  # fmt: skip
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
    spec = str(tmp_path / 'tokenizer.json')
  ours = data.load_tokenizer(spec)
  (tmp_path / 'out').mkdir()
  tokenizer_folder.write_tokenizer(ours, 48, tmp_path / 'out')
  written = data.load_tokenizer(str(tmp_path / 'out' / 'tokenizer.json'))
  assert written.end_of_document == ours.end_of_document
  for text in ('the united', ' Naïve — 東京 🙂\n\n\t  two \u200b', '', 'a\r\n', '<|endoftext|>'):
    assert written.encode(text).tolist() == ours.encode(text).tolist()
  assert json.loads((tmp_path / 'out' / 'tokenizer.json').read_bytes())['post_processor'] is None
  known = tokenizer_folder.describe(ours, tmp_path / 'out')
  again = tokenizer_folder.read_tokenizer(tmp_path / 'out', known)
  assert again.fingerprint == ours.fingerprint


def test_a_layout_that_is_not_exact_is_refused():
  with pytest.raises(UserError, match='qk_norm is True.*--layout=apertus is exact'):
    layouts.find_layout(random_model(qk_norm=True).config, 'llama')
  with pytest.raises(UserError, match="layout 'lama' is unknown. Did you mean 'llama'"):
    layouts.find_layout(random_model().config, 'lama')
  with pytest.raises(UserError, match='no multiple'):
    layouts.find_layout(random_model(width=34, head_size=8).config)


def test_an_output_that_is_there_or_fails_leaves_nothing_behind(tmp_path):
  (tmp_path / 'out').mkdir()
  with pytest.raises(UserError, match='exists'):
    export.export(random_model(), tmp_path / 'out')
  broken = random_model()
  broken.leaves.pop('final_norm.scale')
  with pytest.raises(KeyError):
    export.export(broken, tmp_path / 'new')
  assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('written') / 'out'
  export.export(random_model(**KINDS['llama-gated']), folder)
  return folder


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'attention_bias': True}, 'attention_bias is True, which ours has not'),
    ({'mlp_bias': True}, 'lacks model.layers.0.mlp.down_proj.bias'),
    ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'"),
    ({'architectures': ['GPT2LMHeadModel']}, "architecture 'GPT2LMHeadModel' is unknown"),
    ({'architectures': ['Qwen3ForCausalLM']}, 'lacks model.layers.0.self_attn.k_norm.weight'),
    ({'rope_theta': 1e4}, 'contradict each other'),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "scaled by 'yarn'"),
    ({'layer_types': ['full_attention', 'sliding_attention']}, 'sliding_attention'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'num_hidden_layers': 1}, 'holds model.layers.1.*which our model has not'),
    ({'intermediate_size': 41}, r'\(32, 40\); expected \(32, 41\)'),
    ({'hidden_size': None}, 'cannot be used'),
    ({'head_dim': 7}, 'head_size is 7'),
  ],
)
def test_what_is_not_exact_is_refused(written, tmp_path, changes, message):
  for path in written.iterdir():
    (tmp_path / path.name).symlink_to(path)
  (tmp_path / 'config.json').unlink()
  content = json.loads((written / 'config.json').read_bytes()) | changes
  (tmp_path / 'config.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match=message):
    folders.FolderModel(tmp_path)


def test_damaged_weights_are_one_line(written, tmp_path):
  for path in written.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  weights = tmp_path / folders.WEIGHTS_FILE
  weights.write_bytes(weights.read_bytes()[:-100])
  with pytest.raises(UserError, match='cannot be read as safetensors'):
    folders.FolderModel(tmp_path)
  weights.unlink()
  with pytest.raises(UserError, match='has neither'):
    folders.FolderModel(tmp_path)

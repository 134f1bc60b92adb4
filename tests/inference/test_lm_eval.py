"""lm-evaluation-harness on an exported folder: bits a byte are ours; skipped where it is not installed."""

import pathlib

import pytest

from desloc_jax.hub import export, folders
from desloc_jax.inference import document_scores
from desloc_jax.inference.lm_eval import held_out
from tests.stored_models import random_model

lm_eval = pytest.importorskip('lm_eval')


def test_bits_a_byte_are_ours(tmp_path, monkeypatch):
  from lm_eval.tasks import TaskManager

  texts = held_out.messages()['test']['text']
  assert 8 <= len(texts) <= 20  # A twentieth of 249.
  texts = [text[:2000] for text in texts[:3]]
  import datasets

  export.export(random_model(), tmp_path / 'out')
  folder = pathlib.Path(held_out.__file__).parent
  (tmp_path / 'task').mkdir()
  task = (folder / 'desloc_sotu.yaml').read_text()
  (tmp_path / 'task' / 'desloc_sotu.yaml').write_text(task)
  datasets.Dataset.from_dict({'text': texts}).to_json(tmp_path / 'texts.jsonl')
  (tmp_path / 'task' / 'held_out.py').write_text(
    'import datasets\n'
    'def messages(**_):\n'
    f'  return {{"test": datasets.Dataset.from_json({str(tmp_path / "texts.jsonl")!r})}}\n'
  )
  found = lm_eval.simple_evaluate(
    model='hf',
    model_args=f'pretrained={tmp_path / "out"},dtype=float32',
    tasks=['desloc_sotu'],
    task_manager=TaskManager(include_path=str(tmp_path / 'task'), include_defaults=False),
    device='cpu',
  )
  score = document_scores.score(folders.FolderModel(tmp_path / 'out'), texts)
  bits = score.nats / score.bytes / 0.6931471805599453
  assert found['results']['desloc_sotu']['bits_per_byte,none'] == pytest.approx(bits, abs=1e-6)

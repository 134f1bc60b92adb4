"""Evaluation of checkpoints and folders: the numbers are those of the run."""

import math

import numpy as np
import pytest

from desloc_jax import model
from desloc_jax.hub import export, run_models
from desloc_jax.hub.stored import read_params
from desloc_jax.inference import document_scores, evaluation
from desloc_jax.logs.metrics import read_metrics
from tests.stored_models import random_model


def numbers(out):
  return [float(cell) for cell in out.splitlines()[2].split()[-3:]]


def test_a_run_is_evaluated_as_it_was(seven_steps, capsys):
  expected = read_metrics(seven_steps)[-1]
  model = run_models.open_steps(seven_steps)[0]
  (row,) = evaluation.evaluate(
    model, evaluation.sequences_of(model, evaluation.own_sources(model), 16)
  )
  assert row.loss == pytest.approx(expected['val_loss'], abs=1e-6) and row.count == 16
  (mean,) = evaluation.evaluate(
    run_models.RunModel(seven_steps, 7, mean=True),
    evaluation.sequences_of(model, evaluation.own_sources(model), 16),
  )
  assert mean.loss == pytest.approx(expected['val_loss_local_mean'], abs=1e-6) != row.loss
  evaluation.main([f'--workdir={seven_steps}'])
  loss, perplexity, bits = numbers(capsys.readouterr().out)
  assert loss == pytest.approx(row.loss, abs=1e-4)
  assert perplexity == pytest.approx(math.exp(row.loss), rel=1e-4)
  # Bytes as tokens, but for the ends of documents, which have none.
  assert bits == pytest.approx(row.loss / math.log(2), rel=0.01)


def test_a_folder_and_named_data(seven_steps, text, tmp_path, capsys):
  pytest.importorskip('safetensors')
  export.export(run_models.open_steps(seven_steps)[0], tmp_path / 'out')
  data = f'--data=a={text / "000.txt"},b={text}'
  evaluation.main([f'--workdir={seven_steps}', data, '--sequences=20'])
  of_run = capsys.readouterr().out
  evaluation.main([f'--model={tmp_path / "out"}', data, '--sequences=20'])
  of_folder = capsys.readouterr().out
  cells = lambda out: [line.split()[-5:] for line in out.splitlines()[2:]]
  assert cells(of_run) == cells(of_folder)
  assert [line[0] for line in cells(of_run)] == ['all', 'a', 'b']
  with pytest.raises(SystemExit):
    evaluation.main([f'--model={tmp_path / "out"}'])
  assert 'name some with --data' in capsys.readouterr().err


def test_several_checkpoints_give_a_curve(seven_steps, tmp_path, capsys):
  model = run_models.open_steps(seven_steps)[0]
  held_out = evaluation.sequences_of(model, evaluation.own_sources(model), 4)
  rows = [row for each in (model, model) for row in evaluation.evaluate(each, held_out)]
  evaluation.plot(rows, [6, 7], tmp_path / 'curve.png')
  assert (tmp_path / 'curve.png').read_bytes()[1:4] == b'PNG'
  with pytest.raises(SystemExit):
    evaluation.main([f'--workdir={seven_steps}', '--output=x.png'])
  assert 'name several checkpoints' in capsys.readouterr().err


def test_documents_are_scored_as_lm_evaluation_harness_does():
  lm_eval_windows = []  # As lm_eval.utils.get_rolling_token_windows and make_disjoint_window.
  tokens, length, predicted = list(range(1, 24)), 8, 0
  while predicted < len(tokens):
    count = min(len(tokens) - predicted, length)
    end = predicted + count
    context = ([0] + tokens)[max(0, end - length) : end - count + 1]
    lm_eval_windows.append((context + tokens[end - count : end], count))
    predicted += count
  ours = [(ids.tolist(), n) for ids, n in document_scores.windows(np.arange(1, 24), 0, length)]
  assert ours == lm_eval_windows and [n for _, n in ours] == [8, 8, 7]
  assert ours[2][0] == list(range(15, 24))


def test_the_score_of_a_document_is_that_of_its_text_alone():
  stored = random_model()
  text = 'one document that is longer than the model reads at once, so it has two windows'
  found = document_scores.score(stored, [text, 'x'])
  params = read_params(stored)

  def nats(ids, counted):
    loss = lambda ids: model.token_losses(
      model.GPT(stored.config).apply({'params': params}, np.array(ids[:-1])[None]),
      params['embedding'], np.array(ids[1:])[None], 64,
    )  # fmt: skip
    return float(loss(ids)[0, -counted:].sum())

  ids = [256, *text.encode()]
  expected = nats(ids[:49], 48) + nats(ids[-49:], len(text) - 48) + nats([256, ord('x')], 1)
  assert found.nats == pytest.approx(expected, rel=1e-5)
  assert (found.documents, found.tokens, found.bytes) == (2, len(text) + 1, len(text) + 1)

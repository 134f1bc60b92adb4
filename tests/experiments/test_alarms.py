"""The table of false and true alarms of the health check."""

import csv
import pathlib

import pytest

from desloc_jax.errors import UserError
from experiments.systems import alarms
from experiments.systems.alarm_settings import SETTINGS

TABLE = pathlib.Path(__file__).parents[2] / 'experiments' / 'results' / 'alarms.csv'


def test_the_table_is_of_these_settings_without_false_alarms():
  rows = list(csv.DictReader(TABLE.open()))
  assert [row['setting'] for row in rows] == [setting.name for setting in SETTINGS]
  assert tuple(rows[0]) == alarms.COLUMNS
  for row, setting in zip(rows, SETTINGS, strict=True):
    assert row['false alarms'] == '0', row
    assert (row['true alarms'] != '-') == setting.broken
    assert not setting.broken or int(row['true alarms']) >= 1, row
    assert float(row['loss']) < 3 and 'ended' not in row['at the end']


def test_a_setting_that_there_is_not_is_refused():
  chosen = alarms.parse(['--settings=NaN in the moments; warm-up, then K_x = 64']).settings
  assert [setting.broken for setting in chosen] == [True, False]
  with pytest.raises(UserError, match="--settings 'NaN in moments' is unknown. Did you mean"):
    alarms.parse(['--settings=NaN in moments'])
  with pytest.raises(UserError, match='--steps is 100; expected a whole number >= 600'):
    alarms.parse(['--steps=100'])
